"""What the toolchain does when it is given what nobody meant to give it, and when it is killed.

``make fuzz`` and ``make kill`` run the two large ones; ``pytest tests/robustness`` a share of each, and the properties
of the readers.
"""
