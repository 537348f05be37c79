"""Where the time of an inference goes: a runtime's own times of its layers, gathered by what they do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lifedeploy.engines.base import LayerTime

# The first that a layer's operator or its name falls into. Names are those that the export gives ("blocks.4.mlp.fc1/
# MatMul"), as far as the runtime keeps them.
GROUPS = (
    ("predictor", "", r"reducer\.predictor"),
    ("TopK", r"topk|sort", ""),
    ("Gather", r"gath", ""),  # TensorRT cuts operators to four letters
    ("scoring", "", r"\breducer/"),  # of other methods: what they compute themselves
    ("patch embedding", "", r"patch_embed"),
    ("MLP", r"gelu", r"\bmlp\b"),
    ("attention", r"attention|softmax|_mha_", r"\battn\b"),
    ("Slice", r"slice|crop", ""),
    ("norm", r"norm|^mvn$", r"\bnorm|MVN"),
    ("Cast", r"cast|convert|reorder|reformat", ""),
)
OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Shares of one model's layers; ``ms`` is their sum, per inference."""

    model: str
    method: str
    engine: str
    precision: str
    batch: int
    ms: float
    shares: dict[str, float]  # group → share of ``ms``, largest first
    layers: tuple[LayerTime, ...]  # slowest first


def group(layer: LayerTime) -> str:
    """What a layer does: the name of its group."""
    operator = layer.kind or layer.name
    for name, operators, names in GROUPS:
        if (operators and re.search(operators, operator, re.IGNORECASE)) or (names and re.search(names, layer.name)):
            return name
    return OTHER


def summarise(
    layers: Sequence[LayerTime], *, model: str, method: str, engine: str, precision: str, batch: int
) -> Profile:
    """Gather the times of a model's layers by what they do (:func:`group`)."""
    whole = sum(layer.ms for layer in layers)
    times: dict[str, float] = {}
    for layer in layers:
        times[group(layer)] = times.get(group(layer), 0.0) + layer.ms
    shares = {name: spent / whole for name, spent in sorted(times.items(), key=lambda item: -item[1])} if whole else {}
    slowest = tuple(sorted(layers, key=lambda layer: -layer.ms))
    return Profile(
        model=model,
        method=method,
        engine=engine,
        precision=precision,
        batch=batch,
        ms=whole,
        shares=shares,
        layers=slowest,
    )
