"""TensorRT for RTX builds with no GPU, so what it builds is tested everywhere it installs."""

from __future__ import annotations

import importlib.util
import os

import onnx_ir as ir
import pytest

from lifedeploy import methods
from lifedeploy.exporters import forms
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.spec import GraphForm
from tests.conftest import make_tiny
from tests.model.other_methods import with_merging


@pytest.fixture(scope="session")
def rtx():
    """The vendor's module; may be missing on a developer's machine, never in continuous integration."""
    if importlib.util.find_spec("tensorrt_rtx") is None and not os.environ.get("CI"):
        pytest.skip("tensorrt-rtx is not installed")
    import tensorrt_rtx

    return tensorrt_rtx


@pytest.fixture(scope="session")
def graphs(tmp_path_factory, tracing_once):
    """FP32 graphs of a tiny model under all methods, dynamic and static; FORM(name, …) gives one in another form.

    Of ``merging`` layers 2, 3 and 4 have a bias on their keys.
    """
    folder = tmp_path_factory.mktemp("graphs")
    for label, batch in (("", None), ("-b4", 4)):
        model, spec = make_tiny()
        graph = tracing_once(model, spec, GraphOptions(batch_size=batch))
        for method in ("dense", "first-k"):
            exporter.save(
                exporter.derive(graph, spec, methods.get(method)), folder / f"{method}{label}.onnx", metadata={}
            )
        exporter.save(graph, folder / f"life{label}.onnx", metadata={})
        literal = tracing_once(*make_tiny(ordering="per-stage"), GraphOptions(ordering="per-stage", batch_size=batch))
        exporter.save(literal, folder / f"per-stage{label}.onnx", metadata={})

    merging = exporter.trace(*with_merging(*make_tiny(), 3, (1, 3)), GraphOptions())
    exporter.save(merging, folder / "merging.onnx", metadata={})

    def form(name, precision="fp16", attention="operator"):
        target = folder / f"{name}.{precision}.{attention}.onnx"
        if not target.exists():
            wanted = GraphForm(
                precision=precision, attention=attention, with_order=True, least_queries=2
            )  # FP32 operators too
            forms.prepare(folder / f"{name}.onnx", wanted, target)
        return target

    return form


@pytest.fixture
def load():
    """An ONNX file as the intermediate representation."""
    return ir.load
