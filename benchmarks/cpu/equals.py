"""Whether this machine treats equals alike: one engine, opened several times, takes turns with itself.

    python -m benchmarks.cpu.equals ENGINE [--openings 6] [--batch 8] [--budget 60]

ENGINE is the folder of a built engine, such as ``artifacts/deit_s-life-r0.7/openvino-bf16``. Shown is each opening's
throughput, and its ratio to the first one's within rounds: 1 where nothing but the model decides. Where memory is in
pieces, what is opened later is faster (../README.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.common import contest, interval, new_parser
from lifedeploy.engines.base import EngineOptions
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import named


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, open, measure, show."""
    parser = new_parser(__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--openings", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds")
    given = parser.parse_args(arguments)
    options = EngineOptions(batch=given.batch)
    with ExitStack() as stack:
        sessions = [stack.enter_context(Session(named(given.engine), options=options)) for _ in range(given.openings)]
        lanes = {f"opened {place}.": session.lane(given.batch, 0) for place, session in enumerate(sessions, start=1)}
        for name, row in contest(lanes, given.batch, given.budget).items():
            print(f"{name} {row['images_per_s']:.1f} img/s, {interval(row)} of the first, {row['rounds']} rounds")


if __name__ == "__main__":
    main()
