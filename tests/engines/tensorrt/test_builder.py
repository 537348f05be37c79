"""Plans, built by TensorRT for RTX on a machine that need not have a GPU."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from lifedeploy.engines.attention_nodes import attention_nodes
from lifedeploy.engines.base import BuildOptions
from lifedeploy.engines.tensorrt import fusion
from lifedeploy.engines.tensorrt.builder import build_plan
from lifedeploy.engines.tensorrt.library import concise, named
from lifedeploy.errors import EngineError, EngineUnavailableError, UsageError

LAYERS = 4


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("attention", ["operator", "products"])
@pytest.mark.parametrize(("name", "sorts"), [("dense", 0), ("first-k", 0), ("life", 1), ("per-stage", 2)])
def test_every_attention_is_one_kernel_and_order_once_sorts_once(rtx, graphs, name, sorts, attention, precision):
    plan = build_plan(rtx, graphs(name, precision, attention), BuildOptions(batch=(1, 8, 128)))
    found = fusion.of_plan(plan.data).record
    assert (found.attention, found.topk, found.precision) == (LAYERS, sorts, precision)
    assert plan.profile == {"images": tuple((size, 3, 32, 32) for size in (1, 8, 128))}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("attention", ["operator", "products"])
def test_attention_with_a_bias_on_its_keys_is_one_kernel_too(rtx, graphs, attention, precision):
    """Mixed: the first layer has none."""
    graph = graphs("merging", precision, attention)
    nodes = attention_nodes(onnx.load(graph))
    assert [node.bias for node in nodes] == [None, 14, 14, 11]
    report = fusion.of_plan(build_plan(rtx, graph, BuildOptions(batch=(1, 8, 128))).data)
    assert (report.record.attention, report.record.precision) == (LAYERS, precision)
    assert {node.name for node in nodes} <= report.attentions
    assert report.of_nodes(nodes).record.unfused == {}
    if attention == "products":  # the sum is inside of the kernel
        assert {f"blocks.{block}.attn/Add" for block in (1, 2, 3)} <= report.attentions


def test_fp32_attention_with_a_bias_is_not_fused_and_every_layer_says_so(rtx, graphs):
    graph = graphs("merging", "fp32", "products")
    report = fusion.of_plan(build_plan(rtx, graph, BuildOptions()).data).of_nodes(attention_nodes(onnx.load(graph)))
    assert report.record.attention == 0
    assert report.record.unfused == {
        "blocks.0.attn": "no fused kernel was taken",
        "blocks.1.attn": "with a bias over 14 keys",
        "blocks.2.attn": "with a bias over 14 keys",
        "blocks.3.attn": "with a bias over 11 keys",
    }


def test_the_slices_of_order_once_are_no_kernels_of_their_own(rtx, graphs):
    """The idea: against the dense plan the drops cost the ranking, and after it nothing but what another sort costs."""
    count = {
        name: sum(fusion.of_plan(build_plan(rtx, graphs(name), BuildOptions()).data).record.launches.values())
        for name in ("dense", "first-k", "life", "per-stage")
    }
    assert count["first-k"] == count["dense"]
    assert count["dense"] < count["life"] < count["per-stage"]


def test_a_static_graph_needs_no_profile(rtx, graphs):
    plan = build_plan(rtx, graphs("life-b4"), BuildOptions())
    assert plan.profile == {}
    assert fusion.of_plan(plan.data).record.attention == LAYERS
    build_plan(rtx, graphs("life-b4"), BuildOptions(batch=(4, 4, 4)))
    with pytest.raises(UsageError, match="is fixed to batch 4, and 1,8,128 was asked for"):
        build_plan(rtx, graphs("life-b4"), BuildOptions(batch=(1, 8, 128)))


def test_fp32_attention_is_not_fused_as_products_and_does_not_build_as_an_operator(rtx, graphs):
    found = fusion.of_plan(build_plan(rtx, graphs("dense", "fp32", "products"), BuildOptions()).data).record
    assert (found.attention, found.precision) == (0, "fp32")
    with pytest.raises(
        EngineError, match=r"cannot build dense.fp32.operator.onnx: .*not supported by a dedicated kernel"
    ):
        build_plan(rtx, graphs("dense", "fp32", "operator"), BuildOptions())


def test_progress_is_told_by_phase(rtx, graphs):
    told = []
    build_plan(rtx, graphs("life"), BuildOptions(), told.append)
    assert len({step.what for step in told}) > 1
    assert all(0 <= step.share <= 1 for step in told)
    assert any(step.share == 1 for step in told)


def test_options_reach_the_builder(rtx, graphs):
    options = BuildOptions(batch=(2, 2, 2), level=1, workspace_gib=0.5, target=("sm89", "sm120"))
    plan = build_plan(rtx, graphs("life"), options)
    assert plan.profile["images"] == ((2, 3, 32, 32),) * 3
    with pytest.raises(UsageError, match="does not build for sm90; it builds for: sm75, sm80"):
        build_plan(rtx, graphs("life"), BuildOptions(target=("sm90",)))
    with pytest.raises(UsageError, match="optimisation level 9 is not allowed"):
        build_plan(rtx, graphs("life"), BuildOptions(level=9))
    for batch in ((8, 1, 2), (0, 1, 2)):
        with pytest.raises(UsageError, match="smallest, usual, largest"):
            build_plan(rtx, graphs("life"), BuildOptions(batch=batch))


def test_a_damaged_file_is_refused_with_the_parsers_reason(rtx, graphs, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(graphs("life").read_bytes()[:2000])
    with pytest.raises(EngineError, match=r"cannot read bad.onnx: .*Failed to parse the ONNX model"):
        build_plan(rtx, tmp_path / "bad.onnx", BuildOptions())


@pytest.mark.parametrize(("k", "builds"), [(3840, True), (3841, False)])
def test_topk_ends_at_3840(rtx, tmp_path, k, builds):
    graph = helper.make_graph(
        [helper.make_node("TopK", ["x", "k"], ["values", "order"], name="big/TopK")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5000])],
        [helper.make_tensor_value_info("order", TensorProto.INT64, [2, k])],
        [helper.make_tensor("k", TensorProto.INT64, [1], [k])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "topk.onnx")
    if builds:
        assert fusion.of_plan(build_plan(rtx, tmp_path / "topk.onnx", BuildOptions()).data).record.topk == 1
        return
    with pytest.raises(EngineError, match=r"big/TopK: K exceeds the maximum value allowed \(3840\)"):
        build_plan(rtx, tmp_path / "topk.onnx", BuildOptions())


def test_names_that_a_version_does_not_have_are_errors(rtx):
    with pytest.raises(EngineUnavailableError, match=r"tensorrt_rtx [\d.]+ has no BuilderFlag.FP16"):
        named(rtx, "BuilderFlag", "FP16")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("IBuilder::x: Error Code 4: API Usage Error (ITopKLayer t: K is 5. In f at /a.cpp:1)", "ITopKLayer t: K is 5"),
        ("[a.h:1: f] Bad thing. (See https://x)", "Bad thing"),
        ("plain", "plain"),
    ],
)
def test_messages_are_made_short(message, said):
    assert concise(message) == said
