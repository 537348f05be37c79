"""The picture of a calibration: layers at their depth, floating-point ones hollow, and nothing that is no number."""

from __future__ import annotations

from matplotlib.figure import Figure

from lifedeploy.calibration.report import LayerReport
from lifedeploy.viz import calibration as viz


def test_layers_are_drawn_at_their_depth_even_if_all_of_a_kind_are_in_floating_point():
    layers = [
        LayerReport(name="patch_embed.proj/Conv", part="embedding", quantized=True, tensors=(), sqnr_db=31.0),
        LayerReport(name="blocks.0.attn.qkv/MatMul", part="linear", quantized=True, tensors=(), sqnr_db=32.0),
        LayerReport(name="blocks.1.attn.qkv/MatMul", part="linear", quantized=True, tensors=(), sqnr_db=33.0),
        LayerReport(name="head/Gemm", part="head", quantized=True, tensors=(), sqnr_db=34.0),
        LayerReport(name="blocks.0.mlp.fc1/MatMul", part="linear", quantized=False, tensors=(), sqnr_db=None),
        LayerReport(name="blocks.1.mlp.fc1/MatMul", part="linear", quantized=False, tensors=(), sqnr_db=None),
    ]
    axis = Figure().subplots()
    viz._layers(axis, layers)
    drawn = {
        line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.lines if line.get_data()[0].size
    }
    named = {name: points for name, points in drawn.items() if not name.startswith("_")}
    assert named == {"embedding": [(0, 31.0)], "qkv": [(1, 32.0), (2, 33.0)], "head": [(3, 34.0)]}
    hollow = [points for name, points in drawn.items() if name.startswith("_")]
    assert hollow == [[(1, 31.0), (2, 31.0)]]
