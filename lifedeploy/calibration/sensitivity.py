"""Which layers suffer most from 8 bits, and how many of them have to stay in floating point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lifedeploy.calibration.compare import Check, noise, report
from lifedeploy.calibration.quantize import Prepared, write
from lifedeploy.calibration.report import GraphReport
from lifedeploy.errors import ParityError
from lifedeploy.progress import Say, silent

SCAN_IMAGES = 32


def scan(prepared: Prepared, check: Check, work: Path, say: Say = silent) -> dict[str, float]:
    """Every product quantised alone: its name → relative error of the logits, worst first.

    Errors of single layers add up, near enough, to the error of all of them (benchmarks/quantization), so their order
    is the order in which leaving them out helps.
    """
    batches = check.batches.first(SCAN_IMAGES)
    reference = check.ask(prepared.graph, batches, lambda images: None)
    noises = {}
    graph = work / "alone.onnx"
    for name in prepared.names:
        say(name)
        write(prepared, graph, leave=set(prepared.names) - {name})
        noises[name] = noise(reference, check.ask(graph, batches, lambda images: None))
    graph.unlink(missing_ok=True)
    return dict(sorted(noises.items(), key=lambda item: -item[1]))


def restore(
    prepared: Prepared,
    check: Check,
    destination: Path,
    work: Path,
    max_drop: float,
    say: Say = silent,
) -> GraphReport:
    """Leave the worst layers in floating point, 1, 2, 4 … half of them, until top-1 drops by at most ``max_drop``.

    ``destination`` is written anew.

    Raises:
        ParityError: it drops by more with half of the layers in floating point; then 8 bits are not worth it.
    """
    names = prepared.names
    most, latest = len(names) // 2, None
    noises = scan(prepared, check, work, lambda name: say(f"quantising {name} alone"))
    for count in _counts(most):
        leave = list(noises)[:count]
        write(prepared, destination, leave=leave)
        latest = report(prepared, destination, check, restored=leave, noises=noises)
        say(f"with {count} layers in floating point top-1 drops by {latest.drop:.2f} points")
        if latest.drop <= max_drop:
            return latest
    least = f"{latest.drop:.2f}" if latest else "more"
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
