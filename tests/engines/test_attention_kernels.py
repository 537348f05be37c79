"""Which kernel computed attention: what ONNX Runtime prints, read; and what a build makes of it, without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.cli.commands import build_engine
from lifedeploy.cli.console import out
from lifedeploy.engines import attention_kernels, cuda, onnxruntime_gpu, registry
from lifedeploy.engines.attention_kernels import has_unfused, parse, read_back, report
from lifedeploy.engines.attention_nodes import AttentionNode, attention_nodes
from lifedeploy.engines.base import Availability, BuildOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.engines.onnxruntime_gpu import OnnxRuntimeCuda, OnnxRuntimeRtx, OnnxRuntimeTensorRT
from lifedeploy.engines.openvino import OpenVino
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.errors import EngineError, UsageError
from lifedeploy.exporters import forms
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.spec import BIAS_INPUT, GraphForm
from lifedeploy.workflows.build import BuildRequest, build
from tests.conftest import make_tiny
from tests.engines.devices import FakeCuda
from tests.model.other_methods import with_merging

LAYERS = 6  # of timm's test_vit
REASON = "memory-efficient attention takes one over multiples of {} keys, flash attention none"


def line(node: str, kernel: str, operator: str = "MultiHeadAttention", dtype: str = "fp16") -> str:
    """As ONNX Runtime 1.20 and later print it: coloured."""
    name = f" Node={node}" if node else ""
    return f"\x1b[36mOperator={operator}{name} DataType={dtype} SdpaKernel={kernel}\x1b[0m\n"


OPTIONS = (
    "\x1b[36mAttentionKernelOptions: FLASH_ATTENTION=1 EFFICIENT_ATTENTION=1 TRT_FUSED_ATTENTION=1 "
    "CUDNN_FLASH_ATTENTION=0 TRT_FLASH_ATTENTION=1 TRT_CROSS_ATTENTION=1 TRT_CAUSAL_ATTENTION=0 MATH=1\x1b[0m\n"
)


def printed(kernel: str, times: int = 1) -> str:
    return OPTIONS + "".join(line(f"blocks.{block}.attn/MultiHeadAttention", kernel) for block in range(LAYERS)) * times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a line of something else\n", {}),
        (OPTIONS, {}),  # what is allowed is not what ran
        (OPTIONS + line("a", "FLASH_ATTENTION"), {"a": "FLASH_ATTENTION"}),
        (line("a", "MATH") + line("a", "CUDNN_FLASH_ATTENTION"), {"a": "CUDNN_FLASH_ATTENTION"}),  # two runs
        (line("a b", "MATH", "Attention", "bf16"), {"a b": "MATH"}),
        (
            line("", "EFFICIENT_ATTENTION") + line("", "MATH"),
            {"#0 MultiHeadAttention": "EFFICIENT_ATTENTION", "#1 MultiHeadAttention": "MATH"},
        ),
        (
            "Operator=Attention Node=a DataType=fp16 FLASH_ATTENTION=1\nOperator=Attention Node=b DataType=fp32\n",
            {"a": "FLASH_ATTENTION", "b": "MATH"},  # 1.19: what is on, or nothing
        ),
        ("Operator=Attention Node=a DataType=fp16 in words of a later version\n", {}),
        (line("a", "FLASH_ATTENTION").replace("\n", "\r\n"), {"a": "FLASH_ATTENTION"}),
    ],
)
def test_what_is_printed_is_read(text, expected):
    assert parse(text) == expected


def test_fusion_is_only_claimed_of_what_was_told():
    told = {f"b{number}": "FLASH_ATTENTION" for number in range(4)}
    nodes = [AttentionNode(name=name, operator="MultiHeadAttention") for name in told]
    every = report(nodes, 4, 1, told, "silent")
    assert (every.attention, every.of, every.topk, every.kernels, every.note) == (4, 4, 1, {"FLASH_ATTENTION": 4}, "")
    some = report(nodes, 4, 1, told | {"b3": "MATH"}, "silent")
    assert (some.attention, some.kernels["MATH"]) == (3, 1)
    assert some.note == "1 of 4 attentions are not fused by ONNX Runtime"
    silent = report(nodes, 4, 1, {}, "this onnxruntime does not tell")
    assert (silent.attention, silent.kernels) == (None, {})
    assert silent.note == "0 of 4 attention kernels are known: this onnxruntime does not tell"
    assert report(nodes, 4, 1, {"b0": "FLASH_ATTENTION"}, "silent").attention is None
    others = report(nodes, 4, 1, {f"other{number}": "FLASH_ATTENTION" for number in range(4)}, "silent")
    assert (others.attention, others.note) == (None, "0 of 4 attention kernels are known: silent")
    unnamed = report(nodes, 4, 1, {f"#{number} MultiHeadAttention": "FLASH_ATTENTION" for number in range(4)}, "silent")
    assert (unnamed.attention, unnamed.note) == (4, "")
    products = report((), 4, 0, {}, "silent")
    assert products.attention == 0 and "MatMul, Softmax, MatMul" in products.note
    assert set(every.to_dict()) == {"attention", "of", "topk", "kernels", "unfused", "note", "source"}


def test_what_is_known_to_be_unfused_is_said_also_where_not_all_is_known():
    nodes = [AttentionNode(name=f"blocks.{block}.attn/A", operator="MultiHeadAttention") for block in range(4)]
    partly = report(nodes, 4, 1, {nodes[0].name: "FLASH_ATTENTION", nodes[3].name: "MATH"}, "silent")
    assert (partly.attention, partly.unfused) == (None, {"blocks.3.attn": "no fused kernel was taken"})
    assert partly.note == (
        "1 of 4 attentions are not fused by ONNX Runtime; 2 of 4 attention kernels are known: silent"
    )
    assert has_unfused(partly)
    silent = report(nodes, 4, 1, {}, "silent")
    assert silent.attention is None and not has_unfused(silent)


def test_an_attention_that_is_no_operator_is_not_fused():
    """As of a layer that the others' form does not fit: what is told of the rest says nothing of it."""
    nodes = [AttentionNode(name=f"b{number}", operator="MultiHeadAttention") for number in range(3)]
    record = report(nodes, 4, 1, {node.name: "FLASH_ATTENTION" for node in nodes}, "silent")
    assert (record.attention, record.of) == (3, 4)
    assert record.note == "1 of 4 attentions are MatMul, Softmax, MatMul in this graph"
    assert has_unfused(record)


def single_query(keys: int, *, biased: bool, operator: str = "MultiHeadAttention") -> onnx.ModelProto:
    """The attention of one query over keys, as a last layer has it that is computed for CLS alone."""
    half, shapes = onnx.TensorProto.FLOAT16, {"q": (2, 1, 64), "k": (2, keys, 64), "v": (2, keys, 64)}
    bias = {"bias": (2, 1, 1, keys)} if biased else {}
    inputs = [*shapes, *([""] * (BIAS_INPUT[operator] - 3) + ["bias"] if biased else [])]
    node = onnx.helper.make_node(operator, inputs, ["y"], name=f"blocks.11.attn/{operator}")
    values = [onnx.helper.make_tensor_value_info(name, half, shape) for name, shape in (shapes | bias).items()]
    answer = onnx.helper.make_tensor_value_info("y", half, (2, 1, 64))
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", values, [answer]))


@pytest.mark.parametrize(
    ("operator", "keys", "why"),
    [
        ("MultiHeadAttention", 136, "takes one with multiples of 8 queries, and here are 1, flash attention none"),
        ("Attention", 136, "with a bias over 136 keys: flash attention takes none"),
        ("Attention", 133, "takes one over multiples of 4 keys, flash attention none"),
    ],
)
def test_a_single_query_is_told_as_any_other_attention(operator, keys, why):
    """MultiHeadAttention's memory-efficient kernel asks for aligned queries, whatever keys there are."""
    (plain,) = attention_nodes(single_query(keys, biased=False, operator=operator))
    (biased,) = attention_nodes(single_query(keys, biased=True, operator=operator))
    assert (plain.bias, biased.bias, biased.queries) == (None, keys, 1)
    fused = report([plain], 1, 0, parse(line(plain.name, "FLASH_ATTENTION", operator)), "silent")
    assert (fused.attention, fused.note, has_unfused(fused)) == (1, "", False)
    record = report([biased], 1, 0, parse(line(biased.name, "MATH", operator)), "silent")
    assert record.unfused["blocks.11.attn"].endswith(why)
    assert record.note == ("1 of 1 attentions are not fused by ONNX Runtime; for their bias on keys: blocks.11.attn")
    assert has_unfused(record)


@pytest.mark.parametrize(("operator", "step", "aligned"), [("MultiHeadAttention", 8, 136), ("Attention", 4, 132)])
def test_a_bias_that_is_not_fused_is_named_by_layer_with_the_reason(operator, step, aligned):
    """On GPUs whose cuDNN is not asked: what flash attention does not take and memory-efficient attention may."""
    biases = [None, None, 133, aligned, 133, 0]
    nodes = [
        AttentionNode(name=f"blocks.{block}.attn/{operator}", operator=operator, bias=bias)
        for block, bias in enumerate(biases)
    ]
    kernels = ["FLASH_ATTENTION", "MATH", "MATH", "MATH", "EFFICIENT_ATTENTION", "MATH"]
    record = report(nodes, 6, 1, dict(zip((node.name for node in nodes), kernels, strict=True)), "silent")
    assert record.attention == 2
    flash = "flash attention takes none"
    assert record.unfused == {
        "blocks.1.attn": "no fused kernel was taken",
        "blocks.2.attn": "with a bias over 133 keys: " + REASON.format(step),
        "blocks.3.attn": f"with a bias over {aligned} keys: {flash}",
        "blocks.5.attn": f"with a bias: {flash}",
    }
    assert record.note == (
        "4 of 6 attentions are not fused by ONNX Runtime; for their bias on keys: blocks.2.attn, blocks.3.attn, "
        "blocks.5.attn"
    )


def test_the_attentions_of_a_graph_and_their_biases(tmp_path):
    """A method's own softmax is none of them, and what no shape is known of has a bias all the same."""
    source = tmp_path / "merging.onnx"
    exporter.save(exporter.trace(*with_merging(*make_tiny(), 3, (1, 3)), GraphOptions()), source, metadata={})
    for kind, operator in (("products", "Softmax"), ("operator", "Attention"), ("contrib", "MultiHeadAttention")):
        forms.prepare(source, GraphForm(precision="fp16", attention=kind), tmp_path / "form.onnx")
        model = onnx.load(tmp_path / "form.onnx")
        nodes = attention_nodes(model)
        assert [node.name for node in nodes] == [f"blocks.{block}.attn/{operator}" for block in range(4)]
        assert [node.layer for node in nodes] == [f"blocks.{block}.attn" for block in range(4)]
        assert [node.bias for node in nodes] == [None, 14, 14, 11]
        assert {node.is_operator for node in nodes} == {kind != "products"}
        assert all(node.half for node in nodes)
        forms.prepare(source, GraphForm(precision="fp32", attention=kind), tmp_path / "fp32.onnx")
        assert not any(node.half for node in attention_nodes(onnx.load(tmp_path / "fp32.onnx")))
        del model.graph.value_info[:]
        assert [node.bias for node in attention_nodes(model)] == [None, 0, 0, 0]
    next(node for node in model.graph.node if node.name == "blocks.2.attn/MultiHeadAttention").name = "reducer/odd"
    softmax = onnx.helper.make_node("Softmax", ["images"], ["odd"], name="reducer/Softmax")
    model.graph.node.append(softmax)
    assert len(attention_nodes(model)) == 4


def test_what_a_bias_leaves_unfused_is_named_by_layer_where_it_is_allowed(built_with, monkeypatch):
    names = [f"blocks.{block}.attn" for block in range(LAYERS)]

    def biased(model):
        return tuple(
            AttentionNode(name=f"{name}/MultiHeadAttention", operator="MultiHeadAttention", bias=133 if block else None)
            for block, name in enumerate(names)
        )

    monkeypatch.setattr(attention_kernels, "attention_nodes", biased)
    with pytest.raises(EngineError, match=f"{LAYERS} of {LAYERS} attentions are not fused"):
        built_with(printed("MATH"))
    told = line(f"{names[0]}/MultiHeadAttention", "FLASH_ATTENTION")
    told += "".join(line(f"{name}/MultiHeadAttention", "MATH") for name in names[1:])
    with pytest.raises(EngineError, match=r"not fused.*; for their bias on keys: blocks\.1\.attn") as refused:
        built_with(told)
    assert "--allow-unfused" in refused.value.hint
    report_of_build = built_with(told, allow_unfused=True)
    unfused = report_of_build.manifests["life"].engine.details.fusion.unfused
    assert unfused == dict.fromkeys(names[1:], "with a bias over 133 keys: " + REASON.format(8))
    text = shown(report_of_build)
    assert f"1/{LAYERS}" in text
    assert "not fused by ONNX Runtime; for their bias on keys: blocks.1.attn" in " ".join(text.split())


@pytest.fixture
def graph(exported, tmp_path) -> Path:
    """An FP32 graph with ONNX Runtime's own attention."""
    target = tmp_path / "contrib.onnx"
    forms.prepare(next(exported.glob("*/model.onnx")), GraphForm(attention="contrib"), target)
    return target


def test_a_process_of_its_own_infers_once(graph, tmp_path, monkeypatch):
    """The CPU provider prints nothing, and that is said; a provider that is not there gives its reason."""
    silent = read_back(graph, "CPUExecutionProvider", LAYERS)
    assert (silent.attention, silent.of, silent.topk) == (None, LAYERS, 1)
    assert silent.note == f"0 of {LAYERS} attention kernels are known: this onnxruntime does not tell"
    missing = read_back(graph, "CUDAExecutionProvider", LAYERS)
    assert missing.attention is None
    assert "in a process of its own failed" in missing.note and "fell back from CUDAExecutionProvider" in missing.note
    monkeypatch.setattr(attention_kernels, "TIMEOUT_S", 0.01)
    assert "took over 0 s" in read_back(graph, "CPUExecutionProvider", LAYERS).note


def test_what_c_prints_in_that_process_is_heard(graph, tmp_path, monkeypatch):
    """Not Python's own output: the child writes to the descriptor, as C++ does, and only if the variable is set."""
    code = "import os; os.write(1, os.environ['TOLD'].encode() if os.environ[{!r}] == '1' else b'')"
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!{sys.executable}\n{code.format(attention_kernels.VARIABLE)}\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("TOLD", printed("FLASH_ATTENTION", times=2))
    monkeypatch.setattr(sys, "executable", str(interpreter))
    found = read_back(graph, "CUDAExecutionProvider", LAYERS)
    assert (found.attention, found.kernels, found.note) == (LAYERS, {"FLASH_ATTENTION": LAYERS}, "")


@pytest.mark.parametrize(
    ("version", "forms_of"),
    [
        ("1.15.1", {"fp32": "products", "fp16": "products", "bf16": "products"}),
        ("1.23.2", {"fp32": "products", "fp16": "contrib", "bf16": "products"}),
        ("1.31.1", {"fp32": "products", "fp16": "contrib", "bf16": "contrib"}),
        ("1.33.0.dev20261101", {"fp32": "products", "fp16": "contrib", "bf16": "contrib"}),
        ("2.0.0", {"fp32": "products", "fp16": "contrib", "bf16": "contrib"}),
    ],
)
def test_the_form_of_attention_is_the_one_that_the_installed_version_fuses(monkeypatch, version, forms_of):
    monkeypatch.setattr(onnxruntime_gpu, "require", lambda name, extra: SimpleNamespace(__version__=version))
    found = {precision: OnnxRuntimeCuda.form(precision, BuildOptions()).attention for precision in forms_of}
    assert found == forms_of
    for other in ("operator", "products"):
        assert OnnxRuntimeCuda.form("fp16", BuildOptions(attention=other)).attention == other
    for behind in (OnnxRuntimeTensorRT, OnnxRuntimeRtx):
        assert {behind.form(precision, BuildOptions()).attention for precision in forms_of} == {"products"}


@pytest.mark.parametrize("engine", [OpenVino, TensorRT, OnnxRuntimeTensorRT, OnnxRuntimeRtx])
def test_who_cannot_read_it_refuses_it(engine):
    with pytest.raises(UsageError, match=f"{engine.name} cannot read attention as 'contrib'; it takes: products, oper"):
        engine.require_options(BuildOptions(attention="contrib"))
    engine.require_options(BuildOptions(attention="operator"))
    OnnxRuntime.require_options(BuildOptions(attention="contrib"))
    OnnxRuntimeCuda.require_options(BuildOptions(attention="contrib", allow_unfused=True))


@pytest.fixture
def built_with(workspace, monkeypatch):
    """Build in FP16 where ONNX Runtime prints what is given; the CPU provider answers."""
    monkeypatch.setattr(cuda, "availability", lambda: Availability(True))
    monkeypatch.setattr(cuda, "connect", lambda binding="": FakeCuda())

    def run(told: str, precision: str = "fp16", **options):
        monkeypatch.setattr(attention_kernels, "_listen", lambda graph, provider: told)
        request = BuildRequest(engine="onnxruntime-cuda", precision=precision, options=BuildOptions(**options))
        return build(request, Workspace(workspace))

    monkeypatch.setitem(registry._ENGINES, "onnxruntime-cuda", "tests.engines.test_onnxruntime_gpu:OnCpu")
    return run


def shown(made) -> str:
    with out.capture() as captured:
        out.print(build_engine.built(made))
    return captured.get()


def test_the_manifest_says_which_kernels_ran(built_with):
    made = built_with(printed("FLASH_ATTENTION"))
    record = Artifact.read(made.engine.folder / "model.json").manifest.engine
    fusion = {"attention": LAYERS, "of": LAYERS, "topk": 1, "kernels": {"FLASH_ATTENTION": LAYERS}}
    assert record.details.fusion.to_dict() == fusion | {"unfused": {}, "note": "", "source": "onnxruntime"}
    assert record.graph.form.attention == "contrib"
    assert record.graph.attentions == LAYERS
    assert made.manifests["dense"].engine.details.fusion.topk == 0
    text = shown(made)
    assert f"{LAYERS}/{LAYERS}" in text and "not fused" not in text


def test_what_is_not_told_is_a_question_mark(built_with):
    report_of_build = built_with("")
    text = shown(report_of_build)
    assert f"?/{LAYERS}" in text
    assert report_of_build.fusion_note.startswith(f"0 of {LAYERS} attention kernels are known")  # `compare` warns
    assert f"all: 0 of {LAYERS} attention kernels are known: this onnxruntime does not tell" in text


def test_unfused_attention_in_half_precision_is_refused_unless_it_is_allowed(built_with):
    with pytest.raises(
        EngineError, match=rf"{LAYERS} of {LAYERS} attentions are not fused .*: .* in FP16 on numpy"
    ) as e:
        built_with(printed("MATH"))
    assert e.value.hint is not None and "--allow-unfused" in e.value.hint
    made = built_with(printed("MATH"), allow_unfused=True)
    assert made.manifests["life"].engine.details.fusion.attention == 0
    text = shown(made)
    assert f"0/{LAYERS}" in text
    assert f"all: {LAYERS} of {LAYERS} attentions are not fused by ONNX Runtime" in text


def test_products_that_nobody_asked_for_are_refused(built_with, monkeypatch):
    """Where the installed version has no fused kernel."""
    monkeypatch.setattr(OnnxRuntimeCuda, "_usual_attention", classmethod(lambda cls, precision: "products"))
    with pytest.raises(EngineError, match=r"attention is MatMul, Softmax, MatMul in this graph: .* in FP16") as refused:
        built_with("")
    assert "--allow-unfused" in refused.value.hint
    assert built_with("", allow_unfused=True).manifests["life"].engine.details.fusion.attention == 0
    built_with("", precision="fp32")


def test_products_are_what_was_asked_for(built_with):
    text = shown(built_with("", attention="products"))
    assert f"0/{LAYERS}" in text and "all: attention is MatMul, Softmax, MatMul in this graph" in text


def test_fp32_has_no_fused_kernel_to_ask_for(built_with):
    made = built_with(printed("MATH"), precision="fp32", attention="contrib")
    assert made.manifests["life"].engine.details.fusion.kernels == {"MATH": LAYERS}
    layers = [f"blocks.{block}.attn" for block in range(LAYERS)]
    nodes = [AttentionNode(name=f"{layer}/Attention", operator="Attention", half=False, bias=9) for layer in layers]
    record = report(nodes, LAYERS, 0, {node.name: "MATH" for node in nodes}, "")
    assert record.unfused == dict.fromkeys(layers, "FP32 has no fused kernel for so few tokens")
    assert record.note == f"{LAYERS} of {LAYERS} attentions are not fused by ONNX Runtime"
