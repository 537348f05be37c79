"""TensorRT 10 and 11, and TensorRT for RTX: one builder and one runtime, the vendor's module being a parameter.

``library`` looks names up in it, ``builder`` compiles, ``fusion`` reads what was compiled, ``loading`` decides what is
loaded, ``profiler`` times layers, ``engine`` and ``rtx`` put them behind the contract.
"""
