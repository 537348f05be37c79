"""What takes long and many tests need is made once, by whichever of the workers comes first, and read by all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from filelock import FileLock

from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.vit import SlimViT
from lifedeploy.spec import ModelSpec, Provenance

_TRACE = exporter.trace  # itself, whatever a test puts in its place


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder of this run of the suite, which all of its workers have."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(path: Path, make: Callable[[Path], Any]) -> Path:
    """``path``, which ``make`` writes if it is not there; who comes meanwhile waits."""
    with FileLock(f"{path}.lock"):
        if not path.exists():
            began = path.with_name(f"{path.name}.begun")
            make(began)
            began.rename(path)
    return path


def tracing(folder: Path) -> Callable[[SlimViT, ModelSpec, GraphOptions], ir.Model]:
    """``exporter.trace``, which traces the same model in the same way only once.

    For tests that need a graph; what is traced, and what is refused, has tests of its own.
    """

    def trace(model: SlimViT, spec: ModelSpec, options: GraphOptions) -> ir.Model:
        digest = hashlib.sha256()
        # A graph knows nothing of where its weights are from, and what its classes are called.
        alike = replace(spec, provenance=Provenance(weights="random"), classes=())
        for fact in (str(model), repr(type(model.reducer)), repr(alike), repr(options)):
            digest.update(fact.encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
        path = folder / f"{digest.hexdigest()}.onnx"
        return ir.load(made_once(path, lambda begun: ir.save(_TRACE(model, spec, options), begun)))

    return trace
