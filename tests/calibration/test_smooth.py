"""Moving scales changes no answer, and makes channels reach equally far."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from lifedeploy.calibration import compare
from lifedeploy.calibration.collect import collect
from lifedeploy.calibration.policy import products
from lifedeploy.calibration.quantize import Recipe, Source, prepare, write
from lifedeploy.calibration.smooth import migrations_of
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.kept import NOTHING_KEPT
from lifedeploy.targets.literal import ask
from tests.conftest import make_tiny

DEPTH = 4
HARD = "blocks.1.norm1/LayerNormalization_output_0"


def spread(statistics):
    return float(statistics.channels.max() / np.median(statistics.channels))


def test_seams_are_norms_and_gelus_in_front_of_linear_layers_only(life):
    model = ir.load(life[0])
    chosen = [product for product in products(model) if product.part == "linear"]
    found = migrations_of(chosen)
    assert [migration.free for migration in found].count(True) == 2 * DEPTH
    assert [migration.free for migration in found].count(False) == DEPTH
    # The predictor's own LayerNormalization, and a norm that a product outside of the choice uses, are none.
    assert not any("predictor" in migration.activation for migration in found)
    without = [product for product in chosen if "blocks.0.attn.qkv" not in product.name]
    assert len(migrations_of(without)) == len(found) - 1


def test_the_float_graph_computes_the_same(prepared, check):
    made = prepared(Recipe(smoothing=0.6))
    assert made.smoothed == 3 * DEPTH
    theirs = check.ask(made.graph, check.batches)
    np.testing.assert_allclose(theirs.logits, check.answers.logits, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(theirs.kept, check.answers.kept)


def test_hard_channels_become_easy(life, prepared, batches):
    before = collect(life[0], [HARD], batches, per_channel=[HARD])[HARD]
    after = collect(prepared().graph, [HARD], batches, per_channel=[HARD])[HARD]
    assert spread(before) > 20
    assert spread(after) < spread(before) / 3


def test_and_quantising_loses_less(prepared, check, tmp_path):
    lost = {}
    for label, alpha in (("plain", 0.0), ("smoothed", 0.5)):
        write(prepared(Recipe(smoothing=alpha, keep=("*fc2*", "*proj*"))), tmp_path / f"{label}.onnx")
        lost[label] = compare.noise(check.answers, check.ask(tmp_path / f"{label}.onnx", check.batches))
    assert lost["smoothed"] < lost["plain"] / 2


def test_without_gelu_nothing_is_put_into_the_graph(life, prepared):
    made = prepared(Recipe(smooth_gelu=False))
    assert made.smoothed == 2 * DEPTH
    assert len(ir.load(made.graph).graph) == len(ir.load(life[0]).graph)


@pytest.mark.parametrize("blocks", [(1,), (1, 2)], ids=["one", "two"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_norms_whose_weight_and_bias_are_one_constant_are_taken_apart(tmp_path, batches, blocks, value):
    """An exporter keeps equal constants once: a norm shares them with others, or with itself."""
    model, spec = make_tiny()
    with torch.no_grad():
        for block in blocks:
            for parameter in model.backbone.blocks[block].norm2.parameters():
                parameter.fill_(value)
    path = tmp_path / "shared.onnx"
    exporter.save(exporter.trace(model, spec, GraphOptions()), path, metadata={})
    norms = [node for node in ir.load(path).graph if node.name == f"blocks.{blocks[0]}.norm2/LayerNormalization"]
    assert norms[0].inputs[1] is norms[0].inputs[2], "nothing is shared, so nothing is tested"
    made = prepare(Source(path, "graph", "data", tmp_path / "cache"), Recipe(smoothing=0.6), batches, tmp_path)
    assert made.smoothed == 3 * DEPTH
    before, after = ask(NOTHING_KEPT, path, batches), ask(NOTHING_KEPT, made.graph, batches)
    np.testing.assert_allclose(after.logits, before.logits, rtol=2e-3, atol=2e-3)
    for norm in [node for node in ir.load(made.graph).graph if "norm2" in (node.name or "")]:
        scale, bias = (value.const_value.numpy() for value in norm.inputs[1:])
        assert scale.shape == bias.shape == (32,)
    write(made, tmp_path / "int8.onnx")
    assert np.isfinite(ask(NOTHING_KEPT, tmp_path / "int8.onnx", batches).logits).all()
