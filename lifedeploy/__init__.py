"""lifedeploy: token-pruned Vision Transformers, from timm to a measured engine.

Importing this package loads no framework; every heavy library waits behind the module that needs it.
"""

__version__ = "0.1.0"
