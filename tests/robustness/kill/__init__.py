"""Commands killed at random moments: ``python -m tests.robustness.kill --kills 60 --seed 0``, or ``make kill``.

Every command that writes is run to its end twice, which says how long it takes and what of its results is the same
every time. Then it is killed somewhere on the way. What others find must not trip them, and the same command again must
come to the same results and leave nothing else behind.
"""
