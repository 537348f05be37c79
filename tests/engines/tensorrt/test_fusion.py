"""What is read off a plan, without a GPU and without the runtime."""

from __future__ import annotations

import json

import pytest

from lifedeploy.engines.attention_nodes import AttentionNode
from lifedeploy.engines.tensorrt import fusion
from lifedeploy.errors import EngineError


def plan(attentions=2, sorts=1, kind="half"):
    """The text of a plan, between bytes that are none."""
    launches = ["_gemm_mha_v2"] * attentions + ["__myl_Topk"] * sorts + ["__myl_CastMeanSub"] * 3
    # A matrix product has a program of its own before the plan's, which says how it is computed.
    lines = ["main {", '  fully_connected={ name="inner" output={"o" } }', "}", "main {", " label bb1: "]
    lines += [f"  function={{ name={name} fqn={name}_0x12 args={{ a }} }}" for name in launches]
    lines += ["  runtime_fusion={ name=__myl_FcAdd input_args={ a } }"] * 2
    lines += [
        '  fully_connected={ name="head/Gemm" output={"o" } }',
        '  corrltn={ name="embed/Conv" output={"o" } }',
        "}",
    ]
    lines += [
        f'  tensor={{ alignment=128 dims={{ 1 2 }} name="t{i}" strides={{ 2 1 }} type={kind} }}' for i in range(3)
    ]
    lines += ['  tensor={ alignment=128 dims={ 1 } name="n" strides={ 1 } type=int64 }']
    lines += ['  tensor={ alignment=128 dims={ 1 } name="f" strides={ 1 } type=float }']
    return b"\x00\xff\x80\n" + "\n".join(lines).encode() + b"\n\x00\xfe _gemm_mha_v2 struct"


def test_launches_are_counted_and_mentions_are_not():
    found = fusion.of_plan(plan(attentions=4, sorts=1)).record
    assert (found.source, found.attention, found.topk) == ("plan", 4, 1)
    generated = {"_gemm_mha_v2": 4, "__myl_CastMeanSub": 3, "__myl_Topk": 1, "__myl_FcAdd": 2}
    assert found.launches == generated | {"matrix product": 1, "convolution": 1}


@pytest.mark.parametrize(("kind", "precision"), [("half", "fp16"), ("bf16", "bf16"), ("float", "fp32")])
def test_precision_is_that_of_most_floating_point_tensors(kind, precision):
    assert fusion.of_plan(plan(kind=kind)).record.precision == precision


def test_a_plan_without_text_is_an_error_and_not_zero_kernels():
    with pytest.raises(EngineError, match="names no kernels"):
        fusion.of_plan(b"\x00\x01 plan of another version")


def test_what_is_required():
    found = fusion.of_plan(plan(attentions=2, sorts=1))
    found.require("model", attentions=2, sorts=1, allow_unfused=False)
    with pytest.raises(EngineError, match="attention is fused in 2 of 4 layers of model") as caught:
        found.require("model", attentions=4, sorts=1, allow_unfused=False)
    assert "--allow-unfused" in caught.value.hint
    found.require("model", attentions=4, sorts=1, allow_unfused=True)
    with pytest.raises(EngineError, match="1 TopK kernels, expected 3"):  # sorting more or less is never allowed
        found.require("model", attentions=2, sorts=3, allow_unfused=True)


def test_layers_that_are_not_fused_are_named_with_what_is_special_about_them():
    nodes = [
        AttentionNode(name=f"blocks.{block}.attn/Softmax", operator="Softmax", bias=bias)
        for block, bias in enumerate([None, 14, 0])
    ]
    kernel = {"Name": "a", "TacticName": "_gemm_mha_v2", "Metadata": "[ONNX Layer: blocks.0.attn/Softmax]"}
    others = [{"Name": "b", "TacticName": "softmax", "Metadata": "[ONNX Layer: blocks.1.attn/Softmax]"}]
    report = fusion.of_inspector(json.dumps({"Layers": [kernel, *others]})).of_nodes(nodes)
    assert report.attentions == {"blocks.0.attn/Softmax"}
    assert report.record.unfused == {"blocks.1.attn": "with a bias over 14 keys", "blocks.2.attn": "with a bias"}
    assert report.record.note == "not fused with a bias on keys: blocks.1.attn, blocks.2.attn"
    with pytest.raises(
        EngineError,
        match=r"attention is fused in 1 of 3 layers of model: not in blocks\.1\.attn \(with a bias over 14 keys\), blo",
    ):
        report.require("model", attentions=3, sorts=0, allow_unfused=False)
    # Where kernels do not say what they are of, nothing is said of layers.
    silent = fusion.of_inspector(json.dumps({"Layers": [{"Name": "a", "TacticName": "_gemm_mha_v2"}]})).of_nodes(nodes)
    assert (silent.record.unfused, silent.record.note) == ({}, "")
    plain = fusion.of_inspector(json.dumps({"Layers": others})).of_nodes(nodes[:1])
    assert (plain.record.unfused, plain.record.note) == ({"blocks.0.attn": "no fused kernel was taken"}, "")


def test_the_inspector_says_the_same():
    layers = [
        {"Name": "a", "TacticName": "_gemm_mha_v2_0xab", "Outputs": [{"Format/Datatype": "Row major linear FP16"}]},
        {"Name": "b", "TacticName": "__myl_Topk_0xcd", "Outputs": [{"Format/Datatype": "Row major linear Int64"}]},
        {"Name": "c", "TacticName": "sm80_xmma_gemm", "Outputs": [{"Format/Datatype": "Row major linear Half"}]},
    ]
    found = fusion.of_inspector(json.dumps({"Layers": layers})).record
    assert (found.source, found.attention, found.topk, found.precision) == ("inspector", 1, 1, "fp16")
    typed = {"Name": "x/mha/y", "LayerType": "kgen", "Outputs": [{"Format/Datatype": "Row major linear BFloat16"}]}
    report = fusion.of_inspector(json.dumps({"Layers": [typed, {"Name": "t", "LayerType": "TopK"}]}))
    found = report.record
    assert (found.attention, found.topk, found.precision) == (0, 1, "bf16")  # a node's name is no kernel's
    with pytest.raises(EngineError, match="1 TopK kernels, expected 0"):
        report.require("model", attentions=0, sorts=0, allow_unfused=False)
    report.require(
        "model", attentions=0, sorts=0, allow_unfused=True
    )  # the inspector's words are not the same everywhere
    with_origin = layers[0] | {"Metadata": "[ONNX Layer: blocks.0.attn/Attention]"}
    assert fusion.origins(json.dumps({"Layers": [with_origin, *layers[1:]]})) == {
        "a": ("_gemm_mha_v2_0xab", "[ONNX Layer: blocks.0.attn/Attention]"),
        "b": ("__myl_Topk_0xcd", ""),
        "c": ("sm80_xmma_gemm", ""),
    }
    names_only = fusion.of_inspector(json.dumps({"Layers": ["__mye_mha_1", "gemm"]})).record
    assert (names_only.attention, names_only.precision) == (1, "")
    with pytest.raises(EngineError, match="not understood"):
        fusion.of_inspector("no JSON")


def test_the_inspector_tells_8_bits_too():
    layers = [
        {
            "Name": "a",
            "LayerType": "gemm",
            "Metadata": "[ONNX Layer: fc1/MatMul][ONNX Layer: fc1.weight/DequantizeLinear]",
            "Inputs": [{"Format/Datatype": "Row major Int8 format"}],
            "Outputs": [{"Format/Datatype": "Row major Half"}],
        },
        {
            "Name": "b",
            "LayerType": "gemm",
            "Metadata": "[ONNX Layer: fc2/MatMul]",
            "Inputs": [{"Format/Datatype": "Half"}],
            "Outputs": [{"Format/Datatype": "FP16"}],
        },
    ]
    report = fusion.of_inspector(json.dumps({"Layers": layers}))
    assert report.eight_bits == {"fc1/MatMul": "int8"}
    assert report.record.precision == "int8"
