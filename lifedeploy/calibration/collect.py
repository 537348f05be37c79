"""Statistics of a graph's inner tensors over images, and a cache of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lifedeploy.calibration.feed import Feed
from lifedeploy.calibration.ranges import TensorStatistics
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Array
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.exporters.inspect import load
from lifedeploy.files import atomic_file, user_cache

_FORMAT = 1  # of what is cached, and of how it is computed
Count = Callable[[int], None]  # told the images that are done


def collect(
    graph: Path,
    names: Sequence[str],
    feed: Feed,
    *,
    per_channel: Collection[str] = (),
    count: Count = lambda images: None,
) -> dict[str, TensorStatistics]:
    """Run ``graph`` on ``feed`` and count how far the tensors ``names`` reach; some of them channel by channel too.

    Raises:
        EngineError: a tensor holds NaN or infinity, or ONNX Runtime refused.
        ImageError: an image cannot be read.
    """
    found = {name: TensorStatistics(per_channel=name in per_channel) for name in names}
    for tensors, counted in watch(graph, names, feed):
        for name, statistics in found.items():
            statistics.add(tensors[name])
        count(counted)
    return found


def watch(graph: Path, names: Sequence[str], feed: Feed) -> Iterator[tuple[dict[str, Array], int]]:
    """Tensors of ``graph`` batch by batch, inner ones and inputs, and how many images they are of."""
    entry = load(graph, check=False).graph.input[0].name
    with OnnxRuntime(graph, EngineOptions(taps=tuple(name for name in names if name != entry))) as engine:
        for images, counted in feed:
            tensors = {entry: images} | engine.run({entry: images})
            yield {name: tensors[name][:counted] for name in names}, counted


def cached(
    key: Mapping[str, Any], make: Callable[[], dict[str, TensorStatistics]], folder: Path | None = None
) -> tuple[dict[str, TensorStatistics], bool]:
    """The statistics under ``key``, made if they are not known; and whether they were known."""
    path = (folder or user_cache() / "calibration") / f"{_name(key)}.json"
    known = _read(path, key)
    if known is not None:
        return known, True
    made = make()
    tensors = {name: statistics.to_dict() for name, statistics in made.items()}
    # Where nothing can be kept (a read-only home), there is nothing to reuse, and no reason to lose what was computed.
    with suppress(OSError), atomic_file(path) as temporary:
        temporary.write_text(json.dumps({"format": _FORMAT, "key": dict(key), "tensors": tensors}), encoding="utf-8")
    return made, False


def _name(key: Mapping[str, Any]) -> str:
    text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, TensorStatistics] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != _FORMAT or data["key"] != json.loads(json.dumps(key)):
            return None
        return {name: TensorStatistics.from_dict(item) for name, item in data["tensors"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, or damaged: it can be made again
