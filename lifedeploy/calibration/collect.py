"""Statistics of a graph's inner tensors over images, and a cache of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lifedeploy.caches import private_cache
from lifedeploy.calibration.batches import ImageBatches
from lifedeploy.calibration.ranges import Counted, TensorStatistics
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Array
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import ArtifactError
from lifedeploy.exporters.inspect import load
from lifedeploy.reading import decode_json, read_json
from lifedeploy.writing import atomic_file, saving

_FORMAT = 2  # of what is cached, and of how it is computed
Count = Callable[[int], None]  # told the images that are done


def collect(
    graph: Path,
    names: Sequence[str],
    batches: ImageBatches,
    *,
    per_channel: Collection[str] = (),
    count: Count = lambda images: None,
) -> dict[str, TensorStatistics]:
    """Run ``graph`` on ``batches`` and count how far the tensors ``names`` reach; some of them channel by channel too.

    Raises:
        EngineError: a tensor holds NaN or infinity, or ONNX Runtime refused.
        ImageError: an image cannot be read.
    """
    collected = {name: TensorStatistics(per_channel=name in per_channel) for name in names}
    for tensors, counted in watch(graph, names, batches):
        for name, statistics in collected.items():
            statistics.add(tensors[name])
        count(counted)
    return collected


def watch(graph: Path, names: Sequence[str], batches: ImageBatches) -> Iterator[tuple[dict[str, Array], int]]:
    """Tensors of ``graph`` batch by batch, inner ones and inputs, and how many images they are of."""
    entry = load(graph, check=False).graph.input[0].name
    with OnnxRuntime(graph, EngineOptions(taps=tuple(name for name in names if name != entry))) as engine:
        for images, counted in batches:
            tensors = {entry: images} | engine.run({entry: images})
            yield {name: tensors[name][:counted] for name in names}, counted


def cached(
    key: Mapping[str, Any], make: Callable[[], dict[str, TensorStatistics]], folder: Path | None = None
) -> tuple[dict[str, TensorStatistics], bool]:
    """The statistics under ``key``, made if they are not known; and whether they were known."""
    # Where nothing can be kept (a home that is read only, or another user's) there is nothing to reuse, and no reason
    # to lose what was computed.
    path = None
    with suppress(OSError, ArtifactError):
        path = (folder or private_cache("calibration")) / f"{_name(key)}.json"
    known = _read(path, key) if path is not None else None
    if known is not None:
        return known, True
    computed = make()
    if path is not None:
        tensors = json.dumps({name: tensor.to_dict() for name, tensor in computed.items()}).encode()
        kept = _Cached(_FORMAT, dict(key), hashlib.sha256(tensors).hexdigest(), msgspec.Raw(tensors))
        with suppress(OSError, ArtifactError), atomic_file(path) as staging, saving(path):
            staging.write_bytes(msgspec.json.encode(kept))
    return computed, False


class _Cached(msgspec.Struct):
    """A file of the cache; what is damaged and still can be read would go into every graph made of it."""

    format: int
    key: dict[str, Any]
    sha256: str  # of what follows
    tensors: msgspec.Raw  # name → Counted


def _name(key: Mapping[str, Any]) -> str:
    text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, TensorStatistics] | None:
    try:
        data = read_json(path, _Cached)
        same = data.key == json.loads(json.dumps(key)) and data.sha256 == hashlib.sha256(data.tensors).hexdigest()
        if data.format != _FORMAT or not same:
            return None
        tensors = decode_json(bytes(data.tensors), dict[str, Counted], str(path))
    except ArtifactError:
        return None  # not there, or damaged: it can be made again
    return {name: TensorStatistics.of(counted) for name, counted in tensors.items()}
