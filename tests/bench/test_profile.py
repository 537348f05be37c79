"""Where the time goes: layers as runtimes name them, and two runtimes that really tell."""

from __future__ import annotations

import pytest

from lifedeploy.artifact import Workspace
from lifedeploy.bench.measure import Stop
from lifedeploy.bench.profile import OTHER, group, summarise
from lifedeploy.engines.base import EngineOptions, LayerTime
from lifedeploy.engines.onnxruntime_gpu import OnnxRuntimeCuda
from lifedeploy.errors import EngineError
from lifedeploy.workflows.bench import BenchRequest, bench


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("blocks.4.mlp.fc1/MatMul", "MatMul", "MLP"),
        ("BiasGelu_token_108", "BiasGelu", "MLP"),
        ("blocks.0.attn.qkv/MatMul", "FusedMatMul", "attention"),
        ("blocks.0.attn/Slice_2", "Slice", "attention"),  # taking queries, keys and values apart
        ("_gemm_mha_v2", "", "attention"),
        ("[ONNX Layer: blocks.0.attn/Attention]", "_gemm_mha_v2", "attention"),
        ("[ONNX Layer: blocks.0.mlp.act/Gelu][ONNX Layer: blocks.0.mlp.fc1/Add]", "__myl_FcAddDivCastErf", "MLP"),
        ("[ONNX Layer: reducer.order.4/Range][ONNX Layer: reducer.order.4/Gather]", "__myl_ReplAddConcGath", "Gather"),
        ("[ONNX Layer: reducer.order.4/TopK]", "__myl_Topk", "TopK"),
        ("reducer.order.4/TopK", "TopK", "TopK"),
        ("reducer.order.4/Gather", "Gather", "Gather"),
        ("reducer.keep.7/Slice", "Slice", "Slice"),
        ("reducer.predictor/Slice_1/GatherSliceToSplitFusion", "Split", "predictor"),
        ("MVN_19648", "MVN", "norm"),
        ("SkipLayerNormalization", "SkipLayerNormalization", "norm"),
        ("blocks.4.norm2/LayerNormalization", "LayerNormalization", "norm"),
        ("InsertedCast_logits", "Cast", "Cast"),
        ("patch_embed.proj/Conv_output_0_nchwc", "Conv", "patch embedding"),
        ("blocks.4/Add_1", "Subgraph", OTHER),
    ],
)
def test_layers_fall_into_groups(name, kind, expected):
    assert group(LayerTime(name, kind, 1.0)) == expected


def test_shares_add_up():
    layers = (LayerTime("blocks.0.mlp.fc1/MatMul", "MatMul", 3.0), LayerTime("reducer.order.4/TopK", "TopK", 1.0))
    profile = summarise(layers, model="m", method="life", engine="e", precision="fp32", batch=1)
    assert profile.ms == 4.0
    assert profile.shares == {"MLP": 0.75, "TopK": 0.25}
    assert [layer.ms for layer in profile.layers] == [3.0, 1.0]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_runtimes_tell_what_reducing_tokens_costs(workspace, engine):
    quick = Stop(budget_s=0.01, min_rounds=3)
    report = bench(
        BenchRequest(engines=(engine,), batches=(2,), stop=quick, memory=False, profile=True), Workspace(workspace)
    )
    profiles = {profile.method: profile for profile in report.profiles}
    assert set(profiles) == {"dense", "first-k", "life"}
    assert {"TopK", "Gather", "attention", "MLP"} <= set(profiles["life"].shares)
    assert "TopK" not in profiles["dense"].shares
    for profile in profiles.values():
        assert profile.ms > 0
        assert sum(profile.shares.values()) == pytest.approx(1)
    assert len(report.to_dict()["profiles"]) == 3


def test_an_engine_without_a_profiler_says_so(workspace):
    request = BenchRequest(engines=("fake",), batches=(2,), memory=False, profile=True, stop=Stop(budget_s=0.01))
    with pytest.raises(EngineError, match="engine fake tells no times of its layers"):
        bench(request, Workspace(workspace))


def test_launches_of_kernels_are_no_profile(tmp_path):
    engine = OnnxRuntimeCuda(tmp_path / "model.onnx", EngineOptions())
    with pytest.raises(EngineError, match="times the launches of CUDA kernels, not the kernels"):
        engine._profile({}, 1)
