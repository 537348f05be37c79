"""``python -m lifedeploy`` with turns that are too short to measure anything by: for dry runs (see ``sizes.py``)."""

from __future__ import annotations

from lifedeploy.bench import measure
from lifedeploy.cli.app import main

if __name__ == "__main__":
    measure.MIN_ROUND_S, measure.DEVICE_REQUESTS = 0.01, 1
    main()
