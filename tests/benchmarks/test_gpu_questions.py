"""The GPU day's open questions, asked at toy size on a CPU: everything runs, and what is wrong gets no time."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import ExportError, ParityError
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.weights import ModelRequest
from lifedeploy.optional import installed
from lifedeploy.workflows.export import ExportRequest, export
from tests.conftest import TINY, TINY_SIZE

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
TOY = ["--device", "cpu", "--width", "32", "--depth", "4", "--heads", "2", "--side", "4", "--seconds", "0.02"]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """The folder of the scripts, from where they import each other; one thread, since cores are shared."""
    monkeypatch.syspath_prepend(GPU)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny export, ordered once."""
    folder = tmp_path_factory.mktemp("variants")
    asked = ModelRequest(TINY, keep_rate=0.7, weights="random", image_size=TINY_SIZE)
    export(ExportRequest(asked, GraphOptions(), folder / "tiny", check_parity=False), Workspace(folder))
    return folder / "tiny" / "model.onnx"


def test_the_questions_need_nothing_but_torch():
    code = f"import sys; sys.path.insert(0, {str(GPU)!r}); import questions; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=GPU.parents[1])
    assert not {"onnx", "onnx_ir", "onnxruntime", "timm"} & set(done.stdout.split())


def test_every_question_is_answered_for_every_form(tmp_path):
    questions = importlib.import_module("questions")
    plain = importlib.import_module("plain")
    questions.main(["--out", str(tmp_path), "--batches", "2,1", *TOY])
    found = json.loads((tmp_path / "questions.json").read_text())
    assert found["failed"] == found["skipped"] == []
    assert found["machine"]["versions"]["torch"] and found["command"].endswith("--seconds 0.02") and found["date"]
    for batch in (1, 2):
        for question, forms in plain.FORMS.items():
            rows = [row for row in found["rows"] if (row["question"], row["batch"]) == (question, batch)]
            assert [row["form"] for row in rows if row["level"] == "model"] == list(forms)
            in_operations = {row["form"] for row in rows if row["level"] == "operation"}
            assert in_operations >= set(forms) or question == 3  # a layout is no operation
    for row in found["rows"]:
        assert row["us"] > 0 and 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["rounds"] >= 3 and row["error"] is not None
        assert row["ratio"] == 1 or row["form"] != row["reference"]
    ranking = [row for row in found["rows"] if row["question"] == 2]
    assert all(0.9 <= row["kept"] <= 1 for row in ranking)
    assert all(0 <= row["ties_at_cut_fp16"] <= 1 for row in ranking if row["level"] == "operation")
    text = (tmp_path / "QUESTIONS.md").read_text()
    assert "nothing about a GPU" in text and all(f"## {question}. " in text for question in plain.FORMS)


def test_what_there_was_no_time_for_is_named(tmp_path):
    questions = importlib.import_module("questions")
    questions.main(["--out", str(tmp_path), "--batches", "2", "--minutes", "0", *TOY])
    text = (tmp_path / "QUESTIONS.md").read_text()
    assert "There was no time for these" in text and "- question 3, model, batch 2, eager" in text
    assert "Not measured." in text


def test_a_form_that_gathers_other_tokens_is_not_timed(tmp_path, monkeypatch):
    questions, plain = importlib.import_module("questions"), importlib.import_module("plain")
    monkeypatch.setitem(plain.GATHERS, "elements", lambda x, index, axis: plain.flat(x, index.clamp_min(2), axis))
    with pytest.raises(SystemExit, match="2 steps failed"):
        questions.main(["--out", str(tmp_path), "--batches", "2", *TOY])
    found = json.loads((tmp_path / "questions.json").read_text())
    assert not any(row["question"] == 1 for row in found["rows"])
    assert any(row["question"] == 3 for row in found["rows"])
    reasons = {one["what"]: one["reason"] for one in found["failed"]}
    assert "the model with elements in FP32 is off by" in reasons["question 1, model, batch 2, eager"]
    assert "with elements is off by" in reasons["question 1, operation, batch 2, eager"]


def test_an_fp16_ranking_may_swap_tokens_and_nothing_else():
    cases = importlib.import_module("cases")
    scores = torch.tensor([[4.0, 3.0001, 3.0, 1.0]])  # the second and the third are equal in FP16
    first, second = cases.topk(scores, 2), cases.topk(scores.half(), 2)
    limits = {"scores": scores, "tolerance": cases.ROUNDING}
    assert cases.same_ranking(first, first, "FP32", **limits) == {"error": 0.0, "kept": 1.0, "ties_at_cut_fp16": 1.0}
    lowest = torch.return_types.topk((second.values, torch.tensor([[2, 3]])))
    with pytest.raises(AssertionError, match=r"FP16 keeps 0.0% of the tokens .*, expected 90%"):
        cases.same_ranking(first, lowest, "FP16", **limits)
    wrong = torch.return_types.topk((second.values - 0.1, second.indices))
    with pytest.raises(AssertionError, match=r"FP16 is off by 0\.025 of the largest entry"):
        cases.same_ranking(first, wrong, "FP16", **limits)


def test_every_variant_of_the_graph_computes_the_same(model, tmp_path):
    rewrites = importlib.import_module("rewrites")
    spec = Artifact.read(model.with_suffix(".json")).manifest.spec
    facts = rewrites.prove(model, spec, tmp_path, "fp16")
    assert list(facts) == list(rewrites.VARIANTS)
    assert all(row["error_fp32"] <= rewrites.SAME and row["kept_emulated"] >= 0.95 for row in facts.values())
    for variant in rewrites.VARIANTS.values():
        rewrites.write(model, variant, "fp16", tmp_path / "variant.onnx")
        nodes = list(ir.load(tmp_path / "variant.onnx").graph)
        ranked = {node.op_type for node in nodes if "Gather" in node.op_type and rewrites._ranked(node.inputs[1])}
        assert ranked == {variant.gather}
        sort = next(node for node in nodes if node.op_type == "TopK")
        assert sort.inputs[0].dtype == (ir.DataType.FLOAT16 if variant.ranking == "fp16" else ir.DataType.FLOAT)
        attentions = sum(node.op_type == "Attention" for node in nodes)
        assert attentions == (spec.schedule.depth if variant.attention == "operator" else 0)


def wrongly(rewrites, gathers):
    """A Gather that takes another token in CLS's place."""

    def gather(model, tokens, index):
        moved = ir.node("Max", [index, rewrites.constant(model, "one", [1])])
        return [moved, *gathers(model, tokens, moved.outputs[0])]

    return gather


@pytest.mark.parametrize("gather", ["GatherElements", "GatherND"])
def test_a_wrong_rewriting_is_caught(model, tmp_path, monkeypatch, gather):
    rewrites = importlib.import_module("rewrites")
    spec = Artifact.read(model.with_suffix(".json")).manifest.spec
    monkeypatch.setitem(rewrites.GATHERS, gather, wrongly(rewrites, rewrites.GATHERS[gather]))
    with pytest.raises(ParityError, match=f"{gather} in FP32 is off by"):
        rewrites.prove(model, spec, tmp_path, "fp16")


def test_a_graph_without_a_ranked_gather_is_refused(model, tmp_path):
    rewrites = importlib.import_module("rewrites")
    with pytest.raises(ExportError, match="no flat Gather of ranked tokens that GatherND could replace"):
        rewrites.write(model.with_name("dense.onnx"), rewrites.Variant(gather="GatherND"), "", tmp_path / "out.onnx")


def test_a_contest_times_what_answers_the_same(model, tmp_path, monkeypatch):
    variants, rewrites = importlib.import_module("variants"), importlib.import_module("rewrites")
    counts = Artifact.read(model.with_suffix(".json")).manifest.spec.schedule.counts
    rewrites.write(model, rewrites.Variant(), "", tmp_path / "deployed.onnx")
    rewrites.write(model, rewrites.Variant(gather="GatherND"), "", tmp_path / "nd.onnx")
    monkeypatch.setitem(rewrites.GATHERS, "GatherND", wrongly(rewrites, rewrites.GATHERS["GatherND"]))
    rewrites.write(model, rewrites.Variant(gather="GatherND"), "", tmp_path / "wrong.onnx")
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(OnnxRuntime(tmp_path / f"{name}.onnx", EngineOptions(threads=1)))
            for name in ("deployed", "nd", "wrong")
        }
        found = variants.contest(engines, 2, 0.1, counts, "fp32")
    assert found["nd"]["ms"] > 0 and found["nd"]["kept"] == 1 and np.isfinite(found["nd"]["ratio"])
    assert "wrong is off by" in found["wrong"]["reason"] and "ms" not in found["wrong"]


@pytest.mark.skipif(
    not installed("tensorrt_rtx") and not os.environ.get("CI"), reason="TensorRT for RTX is not installed"
)
def test_kernels_are_counted_and_times_are_not_made_up(model, tmp_path, monkeypatch):
    variants, rewrites = importlib.import_module("variants"), importlib.import_module("rewrites")
    some = {name: rewrites.VARIANTS[name] for name in (rewrites.DEPLOYED, "attention as products")}
    monkeypatch.setattr(rewrites, "VARIANTS", some)
    monkeypatch.setattr(variants, "VARIANTS", some)
    variants.main(
        [str(model), "--out", str(tmp_path), "--engine", "tensorrt-rtx", "--batches", "2,1", "--minutes", "0"]
    )
    found = json.loads((tmp_path / "variants.json").read_text())
    deployed, products = found["rows"]
    assert deployed["kernels"] < products["kernels"] and deployed["attention"] == products["attention"] == 6
    assert deployed["topk"] == products["topk"] == 1 and deployed["times"] == []
    text = (tmp_path / "VARIANTS.md").read_text()
    assert found["not_timed"]["tensorrt-rtx"] in text and "MODEL.onnx" in text
