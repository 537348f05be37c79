"""A graph that is simplified by our choice of rules is the one that the exporter would have made of it."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnxscript import optimizer
from onnxscript.rewriter.rules import common

from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters import simplification
from lifedeploy.exporters.onnx import GraphOptions
from tests.model.conftest import described


def test_all_rules_are_there():
    assert [name for name in simplification.RULES if not hasattr(common, name)] == []


@pytest.mark.parametrize("options", [GraphOptions(), GraphOptions(ordering="per-stage", batch_size=2)])
def test_a_graph_is_the_same_to_the_byte(monkeypatch, options):
    model, spec = described("distilled", (32, 32), depth=3)
    ours = ir.to_proto(exporter.trace(model, spec, options))
    monkeypatch.setattr(exporter, "simplify", lambda graph: None)
    assert len(ir.to_proto(exporter.trace(model, spec, options)).graph.node) > len(ours.graph.node)
    monkeypatch.setattr(exporter, "simplify", optimizer.optimize_ir)
    assert ir.to_proto(exporter.trace(model, spec, options)) == ours
