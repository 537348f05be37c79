"""The engine that stands in for those on GPUs in dry runs: graphs, precisions, lanes and reports as they have them."""

from __future__ import annotations

import numpy as np
import pytest

from lifedeploy.artifact import Workspace
from lifedeploy.engines import registry
from lifedeploy.engines.base import BuildOptions, EngineOptions
from lifedeploy.engines.fake import FakeDevice
from lifedeploy.engines.lanes import DeviceLane
from lifedeploy.workflows.build import BuildRequest, build

LAYERS = 6  # of timm's test_vit


def test_nothing_offers_it():
    assert not {"fake", "fake-device"} & set(registry.names())
    assert {"fake", "fake-device"} <= set(registry.names(hidden=True))
    assert registry.get("fake-device") is FakeDevice


OPERATORS = LAYERS - 1  # attention of a single query, that of the last block, stays products, as for TensorRT


@pytest.mark.parametrize(("attention", "operator"), [("", "Attention"), ("contrib", "MultiHeadAttention")])
def test_a_half_graph_is_made_proven_and_reported(workspace, attention, operator):
    options = BuildOptions(attention=attention, batch=(1, 2, 4), allow_unfused=True)
    made = build(BuildRequest(engine="fake-device", options=options), Workspace(workspace))
    record = made.record
    assert (record.precision, record.graph.form.precision, record.graph.attentions) == ("fp16", "fp16", OPERATORS)
    assert record.graph.parity.passed and made.engine.manifest.parity.passed
    fusion = record.details.fusion
    assert (fusion.attention, fusion.of, fusion.topk, fusion.source) == (LAYERS, LAYERS, 1, "fake")
    assert fusion.launches[operator] == OPERATORS
    assert made.manifests["dense"].engine.details.fusion.topk == 0


def test_products_are_not_called_fused(workspace):
    made = build(BuildRequest(engine="fake-device", options=BuildOptions(attention="products")), Workspace(workspace))
    assert made.record.details.fusion.attention == 0


def test_its_lanes_compute_on_what_was_copied(workspace):
    built = build(BuildRequest(engine="fake-device"), Workspace(workspace)).engine
    with FakeDevice(built.path, EngineOptions(precision="fp16")) as engine:
        lane = engine.lane(2)
        assert isinstance(lane, DeviceLane)
        lane.inputs["images"][...] = 1
        lane.infer()
        first = lane.outputs["logits"].copy()
        lane.inputs["images"][...] = 2
        lane.compute()
        np.testing.assert_array_equal(lane.outputs["logits"], first)
        assert lane.device_ms(copies=False) > 0
        np.testing.assert_array_equal(lane.outputs["logits"], first)
        assert lane.device_ms(copies=True) > 0
        assert np.abs(lane.outputs["logits"] - first).max() > 0
