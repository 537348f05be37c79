"""Checkpoints against each other: what each is called, and which models are exported of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lifedeploy import methods
from lifedeploy.errors import UsageError, WeightsError
from lifedeploy.model import checkpoint
from lifedeploy.model.request import ModelRequest
from lifedeploy.reading import require_regular
from lifedeploy.spec import ModelSpec
from lifedeploy.text import printable, shortened

# Of a training run's files: which of its checkpoints one is, and not what was trained.
_OF_A_RUN = ("last", "best")
_STAGE = "after-"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Models to compare, by the names that they have in tables."""

    slimmed: Mapping[str, ModelRequest]  # at least one
    base: ModelRequest | None  # of the dense checkpoint, in the schedule of the first; None: there is none


def trained(paths: Sequence[Path]) -> Trained:
    """What checkpoints of ours are of.

    Raises:
        WeightsError: one cannot be read, or is none of ours.
        UsageError: they are not of one backbone and image size, or of several dense models, or of nothing else.
    """
    known: dict[Path, Path] = {}
    for path in paths:
        if known.setdefault(path.resolve(), path) is not path:
            raise UsageError(f"{path} is named twice: it would take turns with itself")
    specs = {path: _spec(path) for path in paths}
    first = next(iter(specs.values()))
    for path, spec in specs.items():
        ours, theirs = _input(first), _input(spec)
        if ours != theirs:
            raise UsageError(f"{path} is of {theirs}, and {paths[0]} of {ours}: they are compared on the same images")
        if spec.classes != first.classes:
            raise UsageError(
                f"{path} tells {shortened(', '.join(spec.classes), 60)} apart, and {paths[0]} "
                f"{shortened(', '.join(first.classes), 60)}: they are compared on the same images"
            )
    dense = [path for path, spec in specs.items() if methods.role_of(spec.method) == methods.BASELINE]
    if len(dense) > 1:
        raise UsageError(
            f"{dense[0]} and {dense[1]} both are of the dense model, which all others are held against", hint="name one"
        )
    slimmed = [path for path in specs if path not in dense]
    if not slimmed:
        raise UsageError(f"{dense[0]} is of the dense model, and there is none to hold against it")
    names = _names(slimmed, specs)
    lead = specs[slimmed[0]]
    return Trained(
        slimmed={names[path]: _request(path, specs[path]) for path in slimmed},
        base=_request(dense[0], lead) if dense else None,
    )


def _spec(path: Path) -> ModelSpec:
    require_regular(path, WeightsError)
    spec = checkpoint.read_spec(path)
    if spec is None:
        raise WeightsError(
            f"{path} carries no description of its model",
            hint="--checkpoints takes what `lifedeploy train` wrote; for other files of weights: --weights FILE",
        )
    methods.get(spec.method)
    return spec


def _input(spec: ModelSpec) -> str:
    height, width = spec.image_size
    return f"{spec.timm_name} at {height}x{width} pixels with {spec.num_classes} classes"


def _request(path: Path, spec: ModelSpec) -> ModelRequest:
    """The weights of a file under the method and schedule of ``spec``."""
    method, schedule = methods.get(spec.method), spec.schedule
    counted = schedule.keep_rate is None and method.takes_counts and not spec.own_budget
    return ModelRequest(
        backbone=spec.backbone,
        weights=str(path),
        method=spec.method,
        keep_rate=schedule.keep_rate,
        counts=schedule.counts if counted else None,
        drop_layers=schedule.drop_layers or None,
        options=method.plain_options(spec.options),
        image_size=spec.image_size,
        num_classes=spec.num_classes,
    )


def _names(paths: Sequence[Path], specs: Mapping[Path, ModelSpec]) -> dict[Path, str]:
    """What each is called: as its file, or, of a training run, as its folder, less the backbone that all have; as its
    method, if it is the only one.
    """
    of_method = Counter(specs[path].method for path in paths)
    names = {}
    for path in paths:
        stem, folder = path.stem, path.resolve().parent.name
        run = stem in _OF_A_RUN or stem.startswith(_STAGE)
        name = printable(folder if run else stem).removeprefix(f"{specs[path].backbone}-")
        if of_method[specs[path].method] == 1:
            name = specs[path].method
        elif name != specs[path].method and methods.built_in(name) is not None:  # as another method is called
            name = f"{specs[path].method} {name}"
        names[path] = name
    depth = 1  # of folders in a name
    while len(set(names.values())) < len(names):
        known = Counter(names.values())
        for path, name in names.items():
            if known[name] > 1:
                names[path] = printable("/".join((*path.resolve().parent.parts[-depth:], path.stem)))
        depth += 1
    return names
