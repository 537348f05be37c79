"""The exported graphs: their form, their names, and that they compute what PyTorch computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from lifedeploy import methods
from lifedeploy.errors import ArtifactError, ExportError
from lifedeploy.exporters import inspect
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.reducers import Reducer, Tokens
from lifedeploy.model.vit import SlimViT, build_model
from tests.conftest import make_tiny


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Model, spec, and a folder with its three graphs: life traced, the others derived."""
    model, spec = make_tiny()
    folder = tmp_path_factory.mktemp("graphs")
    graph = exporter.trace(model, spec, GraphOptions(with_life=True))
    for method in ("dense", "first-k"):
        exporter.save(exporter.derive(graph, spec, methods.get(method)), folder / f"{method}.onnx", metadata={})
    exporter.save(graph, folder / "life.onnx", metadata={"lifedeploy.method": "life", "lifedeploy.tokens": [16, 11]})
    return model, spec, folder


def facts(path: Path) -> inspect.GraphFacts:
    return inspect.facts(inspect.load(path))


def ask(path: Path, images: torch.Tensor) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})


# Operators of the tiny model's graphs, as they were before there were other methods than these. A method more must not
# cost these an operator.
DENSE = {
    "Add": 25,
    "Concat": 2,
    "Conv": 1,
    "Expand": 1,
    "Gather": 1,
    "Gelu": 4,
    "Gemm": 1,
    "LayerNormalization": 9,
    "MatMul": 24,
    "Mul": 4,
    "Reshape": 9,
    "Shape": 1,
    "Slice": 12,
    "Softmax": 4,
    "Squeeze": 12,
    "Transpose": 13,
}
OPERATORS = {
    "life": {
        "Add": 28,
        "Clip": 1,
        "Concat": 4,
        "Conv": 1,
        "Div": 1,
        "Expand": 2,
        "Gather": 2,
        "Gelu": 4,
        "Gemm": 1,
        "LayerNormalization": 10,
        "MatMul": 26,
        "Mul": 6,
        "Pow": 1,
        "Range": 1,
        "ReduceMean": 2,
        "Reshape": 12,
        "Shape": 1,
        "Slice": 15,
        "Softmax": 4,
        "Sqrt": 1,
        "Squeeze": 14,
        "Sub": 1,
        "TopK": 1,
        "Transpose": 14,
        "Unsqueeze": 1,
    },
    "dense": DENSE,
    "first-k": DENSE | {"Slice": 14},  # two cuts
    "per-stage": {
        "Add": 29,
        "Concat": 5,
        "Conv": 1,
        "Expand": 2,
        "Gather": 3,
        "Gelu": 4,
        "Gemm": 1,
        "LayerNormalization": 10,
        "MatMul": 26,
        "Mul": 6,
        "Range": 1,
        "Reshape": 15,
        "Shape": 1,
        "Slice": 14,
        "Softmax": 4,
        "Squeeze": 14,
        "TopK": 2,
        "Transpose": 14,
        "Unsqueeze": 1,
    },
}


@pytest.mark.parametrize("method", ["life", "dense", "first-k"])
def test_graphs_hold_these_operators_and_no_others(traced, method):
    assert facts(traced[2] / f"{method}.onnx").operators == OPERATORS[method]


def test_order_once_has_one_topk_one_gather_and_static_slices(traced):
    _, _, folder = traced
    found = facts(folder / "life.onnx")
    assert found.topk == (11,)
    assert found.gathers_after_topk == 1
    slices = [node for node in onnx.load(folder / "life.onnx").graph.node if node.name.startswith("reducer.keep")]
    assert [node.op_type for node in slices] == ["Slice"]  # the second drop; the first one orders


def test_per_stage_has_a_topk_and_a_gather_per_drop_and_the_same_answers(traced, tmp_path):
    model, spec, folder = traced
    literal = build_model(model.backbone, spec, ordering="per-stage")
    literal.load_state_dict(model.state_dict())
    exporter.save(exporter.trace(literal, spec, GraphOptions(ordering="per-stage")), tmp_path / "p.onnx", metadata={})
    found = facts(tmp_path / "p.onnx")
    assert found.topk == (11, 6)
    assert found.gathers_after_topk == 2
    assert found.operators == OPERATORS["per-stage"]
    images = torch.randn(3, 3, 32, 32)
    np.testing.assert_array_equal(ask(folder / "life.onnx", images)[0], ask(tmp_path / "p.onnx", images)[0])


@pytest.mark.parametrize("method", ["life", "dense", "first-k"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_graphs_compute_what_pytorch_computes_at_any_batch(traced, method, batch):
    model, spec, folder = traced
    torch.manual_seed(batch)
    images = torch.randn(batch, 3, 32, 32)
    reference = model if method == "life" else build_model(model.backbone, spec.under(method))
    with torch.inference_mode():
        expected = reference(images)
    answers = ask(folder / f"{method}.onnx", images)
    np.testing.assert_allclose(answers[0], expected.logits.numpy(), atol=1e-5)
    if method == "life":
        np.testing.assert_allclose(answers[1], expected.lives.numpy(), atol=1e-3)


@pytest.mark.parametrize("method", ["dense", "first-k"])
def test_derived_graphs_are_those_that_tracing_would_give(traced, method, tmp_path):
    model, spec, folder = traced
    own = spec.under(method)
    exporter.save(
        exporter.trace(build_model(model.backbone, own), own, GraphOptions()), tmp_path / "traced.onnx", metadata={}
    )
    assert facts(folder / f"{method}.onnx").operators == facts(tmp_path / "traced.onnx").operators


def test_derived_graphs_lose_the_predictor_and_the_life_output(traced):
    _, _, folder = traced
    dense = onnx.load(folder / "dense.onnx")
    assert not [node.name for node in dense.graph.node if "reducer" in node.name]
    assert not [tensor.name for tensor in dense.graph.initializer if "reducer" in tensor.name]
    assert [output.name for output in dense.graph.output] == ["logits"]


def test_names_read_well_and_tell_nothing_of_the_machine(traced):
    _, _, folder = traced
    model = onnx.load(folder / "life.onnx")
    names = {node.name for node in model.graph.node}
    assert {"blocks.0.attn.qkv/MatMul", "reducer.order.2/TopK", "reducer.order.2/Gather", "head/Gemm"} <= names
    assert all(name for name in names)
    assert len(names) == len(model.graph.node)
    assert {"kept_2", "life_scores"} <= {name for node in model.graph.node for name in node.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    assert {"blocks.3.mlp.fc1.bias", "blocks.3.mlp.fc1.weight_t", "head.weight", "pos_embed"} <= weights
    assert str(Path(torch.__file__).parent.parent) not in str(model.graph)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "lifedeploy.method": "life",
        "lifedeploy.tokens": json.dumps([16, 11]),
    }


@pytest.mark.parametrize("method", ["life", "dense", "first-k"])
def test_every_tensor_has_its_type_in_the_file(traced, method):
    """What engines tap and what stays in FP32 is told by it."""
    graph = onnx.load(traced[2] / f"{method}.onnx").graph
    typed = {value.name for value in (*graph.value_info, *graph.output) if value.type.tensor_type.elem_type}
    assert {name for node in graph.node for name in node.output} <= typed


def test_token_counts_are_static_and_the_batch_is_not(traced):
    _, _, folder = traced
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / "life.onnx"))
    shapes = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    assert shapes["reducer.order.2/Reshape_2_output_0"][1:] == [12, 32]  # CLS and 11 patches
    assert shapes["reducer.keep.3/Slice_output_0"][1:] == [7, 32]
    assert not isinstance(shapes["reducer.keep.3/Slice_output_0"][0], int)


def test_no_arithmetic_on_the_batch_size_in_the_blocks(traced):
    _, _, folder = traced
    in_blocks = [node for node in onnx.load(folder / "life.onnx").graph.node if node.name.startswith("blocks.")]
    assert in_blocks
    assert not [node.name for node in in_blocks if node.op_type in ("Shape", "Concat", "Expand", "Range")]


def test_static_batch(tiny, tmp_path):
    model, spec = tiny
    exporter.save(exporter.trace(model, spec, GraphOptions(batch_size=2)), tmp_path / "b2.onnx", metadata={})
    found = facts(tmp_path / "b2.onnx")
    assert found.inputs[0].shape == (2, 3, 32, 32)
    assert found.outputs[0].shape == (2, 5)
    assert found.topk == (11,)


def test_preprocessing_in_the_graph_equals_preprocessing_outside(tiny, tmp_path):
    model, spec = tiny
    options = GraphOptions(with_preprocess=True)
    exporter.save(exporter.trace(model, spec, options), tmp_path / "u8.onnx", metadata={})
    found = facts(tmp_path / "u8.onnx")
    assert (found.inputs[0].dtype, found.inputs[0].shape) == ("uint8", (None, 32, 32, 3))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(spec.preprocess.mean), torch.tensor(spec.preprocess.std)
    images = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model(images).logits.numpy()
    np.testing.assert_allclose(ask(tmp_path / "u8.onnx", pixels)[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"reg_tokens": 3, "no_embed_class": True},  # registers, DeiT-3's positions
        {"init_values": 0.1, "qk_norm": True},  # layer scale, QK-norm
        {"img_size": (32, 48)},  # not square
    ],
    ids=["registers", "layer scale and qk-norm", "not square"],
)
def test_other_vits(options, tmp_path):
    model, spec = make_tiny(**options)
    exporter.save(exporter.trace(model, spec, GraphOptions()), tmp_path / "m.onnx", metadata={})
    images = torch.randn(3, 3, *spec.image_size)
    with torch.inference_mode():
        expected = model(images).logits.numpy()
    np.testing.assert_allclose(ask(tmp_path / "m.onnx", images)[0], expected, atol=1e-5)


def test_a_schedule_that_keeps_everything_needs_no_topk(tmp_path):
    model, spec = make_tiny()
    from lifedeploy.schedule import Schedule

    spec = replace(spec, schedule=Schedule.from_keep_rate(16, 4, 1.0, (2, 3)))
    kept = build_model(model.backbone, spec)
    exporter.save(exporter.trace(kept, spec, GraphOptions()), tmp_path / "m.onnx", metadata={})
    assert facts(tmp_path / "m.onnx").topk == ()


def test_a_graph_of_another_form_is_refused(traced):
    _, _, folder = traced
    found = facts(folder / "life.onnx")
    with pytest.raises(ExportError, match="the graph has 1 TopK nodes, expected 2"):
        inspect.check_structure(found, sorts=2, batch_size=None)
    with pytest.raises(ExportError, match="the graph has 2 Gather nodes fed by TopK, expected 1"):
        inspect.check_structure(replace(found, gathers_after_topk=2), sorts=1, batch_size=None)
    inspect.check_structure(found, sorts=None, batch_size=None)  # a method that does not say
    with pytest.raises(ExportError, match="the batch of images is dynamic, expected 4"):
        inspect.check_structure(found, sorts=1, batch_size=4)
    fixed = replace(found, inputs=(replace(found.inputs[0], shape=(1, 3, 32, 32)),))
    with pytest.raises(ExportError, match="the batch of images is 1, expected dynamic"):
        inspect.check_structure(fixed, sorts=1, batch_size=None)


def test_only_baselines_can_be_derived(traced):
    _, spec, _ = traced
    with pytest.raises(ExportError, match="the graph of life cannot be derived from one of life"):
        exporter.derive(None, spec, methods.get("life"))
    with pytest.raises(ExportError, match="the graph of dense cannot be derived from one of first-k"):
        exporter.derive(None, spec.under("first-k"), methods.baseline())


@pytest.mark.parametrize("content", [b"", b"not an onnx file at all", b"\x08\x07" + b"\xff" * 100])
def test_a_corrupt_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"bad\.onnx is not a valid ONNX file") as caught:
        inspect.load(path)
    assert "\n" not in caught.value.message


def test_a_truncated_file_is_refused(traced, tmp_path):
    _, _, folder = traced
    whole = (folder / "life.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="is not a valid ONNX file"):
        inspect.load(tmp_path / "cut.onnx")


class Forgetful(Reducer):
    """Drops, and does not say what."""

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        if layer not in self.schedule.drop_layers:
            return tokens
        return tokens.but(x=tokens.x[:, : tokens.prefix + self.schedule.after(layer)])


class Generous(Reducer):
    """Keeps one token more than its schedule says."""

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        more = self.schedule.after(layer) + 1
        return tokens.first(more) if layer in self.schedule.drop_layers else tokens


@pytest.mark.parametrize(
    ("reducer", "said"),
    [
        (Forgetful, "life drops tokens after layer 2 and does not say which: no positions"),
        (Generous, "life keeps 12 tokens after layer 2, and its schedule says 11"),
    ],
)
def test_a_method_that_does_not_keep_what_its_schedule_says_is_not_exported(reducer, said):
    model, spec = make_tiny()
    with pytest.raises(ExportError) as refused:
        exporter.trace(SlimViT(model.backbone, reducer(spec.schedule)).eval(), spec, GraphOptions())
    assert refused.value.message == said


def test_lives_that_are_promised_have_to_come():
    model, spec = make_tiny(method="first-k")
    with pytest.raises(ExportError, match="life is said to predict lives, and gives none"):
        exporter.trace(model, replace(spec, method="life"), GraphOptions())


def test_a_drop_of_another_form_is_not_taken_out_of_a_graph_by_halves():
    model, spec = make_tiny()
    graph = exporter.trace(model, spec, GraphOptions())
    for node in graph.graph:  # as if its modules were called otherwise
        for key, value in list(node.metadata_props.items()):
            node.metadata_props[key] = value.replace("reducer.keep", "reducer.cut")
    with pytest.raises(ExportError, match=r"dense cannot be derived from the graph of life, .* Slice is left of them"):
        exporter.derive(graph, spec, methods.get("dense"))
