"""Generated bad inputs for every command: ``python -m tests.robustness.fuzz --cases 2000 --seed 0``, or ``make fuzz``.

A case is a function of the seed and its number. It makes a folder with files of which one is not as it should be, or a
command line with a value that nobody meant, runs the command in a child with limits on time and memory, and looks at
what it said, what it used, and what it left.
"""
