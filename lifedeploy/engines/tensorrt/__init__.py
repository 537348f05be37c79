"""TensorRT 10 and 11, and TensorRT for RTX: one builder and one runtime, the vendor's module being a parameter.

``flavour`` says what differs, ``builder`` compiles, ``fusion`` reads what was compiled, ``cuda`` is the little of CUDA
that is needed to run it, ``engine`` puts them behind the contract.
"""
