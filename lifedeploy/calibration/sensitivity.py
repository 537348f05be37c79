"""Which layers suffer most from 8 bits, and how many of them have to stay in floating point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from lifedeploy.calibration.compare import Check, ask, noise, report
from lifedeploy.calibration.quantize import Prepared, write
from lifedeploy.calibration.report import MemberReport
from lifedeploy.errors import ParityError

SCAN_IMAGES = 32


def scan(
    prepared: Prepared, check: Check, work: Path, progress: Callable[[str], None] = lambda layer: None
) -> dict[str, float]:
    """Every product quantised alone: its name → relative error of the logits, worst first.

    Errors of single layers add up, near enough, to the error of all of them (benchmarks/quantization), so their order
    is the order in which leaving them out helps.
    """
    feed = check.feed.first(SCAN_IMAGES)
    reference = ask(prepared.graph, feed, check.kept)
    found = {}
    graph = work / "alone.onnx"
    for name in prepared.names:
        progress(name)
        write(prepared, graph, leave=set(prepared.names) - {name})
        found[name] = noise(reference, ask(graph, feed, check.kept))
    graph.unlink(missing_ok=True)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def restore(
    prepared: Prepared,
    check: Check,
    target: Path,
    work: Path,
    max_drop: float,
    say: Callable[[str], None] = lambda message: None,
) -> MemberReport:
    """Leave the worst layers in floating point, 1, 2, 4 … half of them, until top-1 drops by at most ``max_drop``.

    ``target`` is written anew.

    Raises:
        ParityError: it drops by more with half of the layers in floating point; then 8 bits are not worth it.
    """
    names = prepared.names
    most, made = len(names) // 2, None
    noises = scan(prepared, check, work, lambda name: say(f"quantising {name} alone"))
    for count in _counts(most):
        leave = list(noises)[:count]
        write(prepared, target, leave=leave)
        made = report(prepared, target, check, restored=leave, noises=noises)
        say(f"with {count} layers in floating point top-1 drops by {made.drop:.2f} points")
        if made.drop <= max_drop:
            return made
    least = f"{made.drop:.2f}" if made else "more"
    raise ParityError(
        f"{check.method}: top-1 drops by {least} points with {most} of {len(names)} layers in floating "
        f"point, allowed {max_drop:g}",
        hint="more --images, another --method, or a larger --max-drop",
    )


def _counts(most: int) -> Iterator[int]:
    """1, 2, 4, 8 … up to ``most``, which is the last."""
    count = 1
    while count < most:
        yield count
        count *= 2
    if most:
        yield most
