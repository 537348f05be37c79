"""A method that no line of lifedeploy knows goes through all of it: the package in lifedeploy-outside."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import lifedeploy as package
from lifedeploy import children, methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.calibration import policy
from lifedeploy.data.samples import PHOTOS, Sample, photo_folder
from lifedeploy.engines.base import BuildOptions
from lifedeploy.engines.tensorrt import fusion
from lifedeploy.engines.tensorrt.builder import build_plan
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.errors import UsageError
from lifedeploy.evaluation import parity
from lifedeploy.exporters import forms
from lifedeploy.model import checkpoint
from lifedeploy.model.blocks import plain_attention
from lifedeploy.model.reducers import BlockAttention, Plan, Tokens, build_reducer
from lifedeploy.model.vit import SlimViT
from lifedeploy.spec import ModelSpec
from lifedeploy.targets.formed import check_graph
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import named
from lifedeploy.workflows.calibrate import CalibrateRequest, calibrate
from tests.conftest import TINY
from tests.outside.conftest import EXPORT

DEPTH = 6
COUNTS = {2: 12, 4: 9, 5: 7}  # drop layer → tokens that go on: ⌈0.7 n⌉, the fused one among them
PHOTO = photo_folder() / PHOTOS[0]


def errors(ended) -> list[str]:
    return [line for line in ended.lines if line.startswith("error:")]


# --- where it is, and where it is not ---------------------------------------------------------------------------


def test_no_line_of_lifedeploy_knows_it():
    name = re.compile(r"""lifedeploy.outside|["']outside["']""", re.IGNORECASE)
    sources = list(Path(package.__file__).parent.rglob("*.py"))
    assert len(sources) > 100
    assert not [path for path in sources if name.search(path.read_text())]


def test_where_it_is_not_installed_it_is_unknown_and_nothing_is_written(lifedeploy, folder):
    before = sorted(Path("artifacts").rglob("*"))
    ended = lifedeploy(*EXPORT)
    assert ended.code == 2
    assert errors(ended) == [f"error: method 'outside' is unknown; there are: {', '.join(methods.names('slimmed'))}"]
    assert sorted(Path("artifacts").rglob("*")) == before


def test_a_process_of_its_own_has_it_too_and_needs_no_framework_for_its_row(outside):
    said = "import sys; from lifedeploy import methods; print(methods.get('outside').package, 'torch' in sys.modules)"
    done = subprocess.run(
        children.python("-c", said), env=children.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["lifedeploy-outside", "0.1.0", "False"]


# --- the row ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patches", "rate", "counts"),
    [(196, 0.7, (138, 97, 68)), (16, 0.7, (12, 9, 7)), (100, 0.07, (7, 1, 1)), (16, 1.0, (16, 16, 16))],
)
def test_its_schedule_rounds_up_from_drop_to_drop(outside, patches, rate, counts):
    schedule = methods.get("outside").make_schedule(patches, 12, keep_rate=rate)
    assert (schedule.drop_layers, schedule.counts, schedule.keep_rate) == ((4, 7, 10), counts, rate)


def counted(model: SlimViT, spec: ModelSpec) -> int:
    """Multiply-accumulates of one image, as PyTorch counts them while it computes."""
    with plain_attention(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *spec.image_size))
    return counter.get_total_flops() // 2


def test_its_work_without_fusing_is_what_is_computed(outside, by_outside):
    model, spec = checkpoint.load(Workspace(by_outside).latest_export().folder / "weights.safetensors")
    method, cost = methods.get("outside"), model.adapted.cost(spec.image_size)
    work = method.work(spec.schedule, method.settle({"fuse": False}), cost)
    assert work.attention == (16, 16, 12, 12, 9, 7)
    assert work.mlp == (16, 12, 12, 9, 7, 7)
    model.reducer = reducer(spec.schedule, fuse=False)
    assert cost.total(work) == counted(model, spec)


# --- the reducer ------------------------------------------------------------------------------------------------


def reducer(schedule: methods.Schedule, **options: object):
    method = methods.get("outside")
    return build_reducer(
        method,
        Plan(schedule=schedule, width=64, heads=4, prefix=1, ordering="per-stage", options=method.settle(options)),
    )


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("fuse", [True, False])
def test_what_cls_attends_to_stays_and_the_rest_becomes_one_token(outside, fuse):
    schedule = methods.get("outside").make_schedule(9, DEPTH, keep_rate=0.7)
    x, attention = noise(2, 10, 4), BlockAttention(noise(2, 3, 10, 8), noise(2, 3, 10, 8), 0.4, None)
    tokens = reducer(schedule, fuse=fuse).inside_block(2, Tokens(x=x, prefix=1), attention)
    for image in range(2):
        heads = [(0.4 * attention.k[image, head] @ attention.q[image, head, 0]).softmax(0) for head in range(3)]
        score = torch.stack(heads).mean(0)[1:]
        order = sorted(range(9), key=score.tolist().__getitem__, reverse=True)
        stay, leave = order[: 7 - fuse], order[7 - fuse :]
        expected = [x[image, 0], *(x[image, 1 + patch] for patch in stay)]
        expected += [sum(score[patch] * x[image, 1 + patch] for patch in leave)] if fuse else []
        torch.testing.assert_close(tokens.x[image], torch.stack(expected))
        assert tokens.positions[image].tolist() == stay + [-1] * fuse


def test_noise_is_on_its_scores_in_training_only(outside):
    schedule = methods.get("outside").make_schedule(9, DEPTH, keep_rate=0.7)
    attention = BlockAttention(noise(2, 3, 10, 8), noise(2, 3, 10, 8), 0.4, None)

    def scores(form):
        return form.scores(2, attention, 1)

    quiet, loud = reducer(schedule), reducer(schedule, explore=0.5)
    row = attention.cls_row()[:, 1:]
    with torch.random.fork_rng(devices=()):
        assert torch.equal(scores(quiet.relaxed(schedule)), row)
        assert torch.equal(scores(loud), row)
        one, other = scores(loud.relaxed(schedule)), scores(loud.relaxed(schedule))
    assert not torch.equal(one, other)
    assert 0.1 < (one / row - 1).std() < 1


def test_a_fused_token_alone_is_refused(outside):
    schedule = methods.get("outside").make_schedule(16, DEPTH, keep_rate=0.2)
    assert schedule.counts == (4, 1, 1)
    with pytest.raises(UsageError, match="1 token is kept after layer 4") as refusal:
        reducer(schedule)
    assert "--no-fuse" in refusal.value.hint
    assert reducer(schedule, fuse=False).sorts == 2  # after layer 5 nothing is left to drop


# --- export -----------------------------------------------------------------------------------------------------


def test_its_export_passed_the_gate_and_says_what_it_keeps(by_outside):
    artifact = Workspace(by_outside).latest_export()
    manifest = artifact.manifest
    assert artifact.name == f"{TINY}-outside-r0.7-64x64px"
    assert manifest.parity.passed and manifest.parity.overlap == 1.0
    assert manifest.graph.kept == (2, 4, 5)
    assert manifest.graph.form == "per-stage"
    assert not manifest.predicts_lives
    assert manifest.spec.options == {"fuse": True, "explore": 0.0}
    assert manifest.spec.schedule.counts == tuple(COUNTS.values())
    assert manifest.spec.provenance.predictor == "none"
    assert set(manifest.siblings) == {"outside", "dense", "first-k"}
    assert [output.name for output in manifest.outputs] == ["logits"]
    graph = ir.load(artifact.path)
    shapes = {value.name: value.shape[1] for node in graph.graph for value in node.outputs if "kept" in value.name}
    assert shapes == {f"kept_{layer}": count for layer, count in COUNTS.items()}


def test_its_bound_drops_where_it_does_and_differs_by_its_scoring_alone(by_outside):
    own = Workspace(by_outside).latest_export()
    bound = own.sibling("first-k").manifest
    assert bound.spec.options == {"inside": True}
    assert bound.macs.mlp_tokens == own.manifest.macs.mlp_tokens != bound.macs.attention_tokens
    assert bound.macs.total == own.manifest.macs.total - own.manifest.macs.predictor
    assert own.manifest.macs.predictor > 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_in_half_precision_its_ranking_alone_stays_fp32_and_every_attention_is_fused(
    rtx, by_outside, tmp_path, precision
):
    member, target = Workspace(by_outside).latest_export(), tmp_path / "half.onnx"
    report = forms.prepare(member.path, TensorRT.form(precision, BuildOptions()), target)
    assert report.attentions == DEPTH - 1  # that of the last block's single query stays products
    (ranking,) = report.islands.values()
    assert {"MatMul", "ReduceMean", "Softmax", "TopK"} <= set(ranking)
    assert not {"Add", "Gelu", "LayerNormalization", "Attention", "Gather"} & set(ranking)
    half = ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.BFLOAT16
    products = {
        node.name: node.outputs[0].dtype
        for node in ir.load(target).graph
        if node.op_type in ("MatMul", "Attention") and node.name.startswith("blocks.")
    }
    # qkv, attention, proj, fc1, fc2; in the last block q and kv, and attention is two products.
    assert len(products) == DEPTH * 5 + 2
    assert set(products.values()) == {half}
    evidence, reach = check_graph(target, member, precision, precision)
    evidence.require("the emulated graph")
    assert evidence.max_rel > 0 and not reach.overflows
    found = fusion.of_plan(build_plan(rtx, target, BuildOptions()).data).record
    assert (found.attention, found.topk, found.precision) == (DEPTH, len(COUNTS), precision)


def test_what_it_scores_with_is_never_quantised(folder, labelled):
    report = calibrate(
        CalibrateRequest(data=str(labelled), images=4, check_images=2, cache=Path("cache")),
        Workspace(Path("artifacts")),
    )
    assert set(report.members) == {"outside", "dense", "first-k"}
    assert report.members["outside"].overlap > 0.5
    artifact = Artifact.read(folder / "int8" / "model.json")
    artifact.check()
    own = [product for product in policy.products_in(artifact.path) if product.part == "ranking"]
    assert len(own) == 3 * len(COUNTS)  # the scores, and two sums, at every drop
    quantised = {name.rpartition("/")[0] for name in artifact.manifest.quantized_products}
    whole = {f"blocks.{layer}.{part}" for layer in range(DEPTH) for part in ("attn.proj", "mlp.fc1", "mlp.fc2")}
    first = {f"blocks.{layer}.attn.qkv" for layer in range(DEPTH - 1)}
    last = f"blocks.{DEPTH - 1}.attn"  # of prefix tokens alone
    assert quantised == whole | first | {f"{last}.q", f"{last}.kv"}
    makers = [value.producer() for product in own for value in product.node.inputs]
    assert not [maker for maker in makers if maker is not None and maker.op_type == "DequantizeLinear"]


# --- engines ----------------------------------------------------------------------------------------------------


def kept_by(path: Path, images: np.ndarray) -> dict[int, np.ndarray]:
    """What a model says that it keeps after each drop."""
    target = named(path)
    with Session(target, "drops") as session:
        tensors = session.tensors(images)
    return {layer: target.kept.after(layer, tensors) for layer in target.kept.counts}


def test_engines_keep_after_every_drop_what_pytorch_does(outside, by_outside):
    folder = Workspace(by_outside).latest_export().folder
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    wanted = kept_by(folder / "weights.safetensors", images)
    assert {layer: kept.shape for layer, kept in wanted.items()} == {layer: (3, n) for layer, n in COUNTS.items()}
    assert (wanted[2][:, -1] == -1).all()
    for name in ("onnxruntime-fp32", "openvino-fp32"):
        engine = Artifact.read(folder / name / "model.json").manifest
        assert engine.parity.passed and engine.parity.overlap == 1.0
        found = kept_by(folder / name, images)
        assert list(found) == list(wanted)
        assert all(np.array_equal(found[layer], wanted[layer]) for layer in wanted)


def test_a_drop_layer_after_which_nothing_leaves_is_not_asked_about(outside, by_outside, tmp_path):
    model, spec = checkpoint.load(next(by_outside.glob("*/weights.safetensors")))
    schedule = methods.Schedule.from_counts(16, DEPTH, (16, 9, 7), tuple(COUNTS))
    checkpoint.save(tmp_path / "weights.safetensors", model, replace(spec, schedule=schedule))
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    kept = kept_by(tmp_path / "weights.safetensors", images)
    assert {layer: tokens.shape for layer, tokens in kept.items()} == {4: (2, 9), 5: (2, 7)}


def test_a_token_on_the_edge_of_a_cut_is_forgiven_beside_fused_ones_too():
    logits = np.array([[1.0, 0.0]], dtype=np.float32)
    ours, swapped, twice = ([[*kept, 7, 3, -1]] for kept in ((0, 1, 2), (0, 1, 4), (0, 5, 4)))
    sample = Sample("noise", np.zeros((1, 8, 8, 3), dtype=np.uint8))
    for kept, passed in ((ours, True), (swapped, True), (twice, False)):
        one, other = parity.Answer(logits, np.array(ours)), parity.Answer(logits, np.array(kept))
        assert parity.compare([one], [other], [sample], "bf16").passed == passed


def test_a_checkpoint_is_held_against_an_engine(lifedeploy, outside, folder):
    ended = lifedeploy("verify", folder / "weights.safetensors", folder / "openvino-fp32", "--json", "verify.json")
    assert ended.code == 0, ended.err
    evidence = json.loads(Path("verify.json").read_text())["parity"]
    assert evidence["passed"] and evidence["overlap"] == 1.0


# --- what a user looks at ---------------------------------------------------------------------------------------


def test_inspect_shows_both_counts_of_a_layer_in_which_tokens_leave(lifedeploy, outside, folder):
    ended = lifedeploy("inspect", folder, "--json", "inspect.json")
    assert ended.code == 0, ended.err
    assert "outside: OutsideViT (fuse True, explore 0.0)" in ended.out
    for line in ("1 +16 ", "2 +16, MLP 12 ", "3 +12 ", "4 +12, MLP 9 ", "5 +9, MLP 7 ", "6 +7 as keys ", "scoring "):
        assert re.search(f"^{line}", ended.out, re.MULTILINE), line
    macs = json.loads(Path("inspect.json").read_text())["manifest"]["macs"]
    model, spec = checkpoint.load(folder / "weights.safetensors")
    assert macs["total"] == counted(model.with_prefix_block(), spec)


def test_its_picture_is_of_what_is_kept_after_each_drop_and_of_no_lives(lifedeploy, outside, folder, monkeypatch):
    from lifedeploy.viz import lives as painter

    drawn, draw = [], painter.draw_lives

    def catching(given, *rest, **more):
        drawn.append(given)
        draw(given, *rest, **more)

    monkeypatch.setattr(painter, "draw_lives", catching)
    for model in (folder / "weights.safetensors", folder / "openvino-fp32"):
        ended = lifedeploy("visualize", model, PHOTO, "--output", "kept.png", "--json", "kept.json")
        assert ended.code == 0, ended.err
        report = json.loads(Path("kept.json").read_text())
        assert (report["kind"], report["images"], report["mean_life"]) == ("kept", 1, None)
        pixels = np.asarray(Image.open("kept.png").convert("RGB"))
        assert pixels.shape[1] > 2.5 * pixels.shape[0]  # one row of four panels
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    (one,), (other,) = drawn
    assert one.life is None
    assert {layer: int(mask.sum()) + one.fused[layer] for layer, mask in one.alive.items()} == COUNTS
    assert one.fused[2] == 1 and all(1 <= fused <= 3 for fused in one.fused.values())
    assert all(np.array_equal(one.alive[layer], other.alive[layer]) for layer in COUNTS)


def test_lives_that_it_does_not_predict_are_not_counted(lifedeploy, outside, folder, labelled):
    ended = lifedeploy("visualize", folder, "--histogram", "--data", labelled, "--output", "lives.png")
    assert ended.code == 2
    assert errors(ended) == [f"error: {folder} is a model of outside, which predicts no lives to count"]
    assert not Path("lives.png").exists()


# --- where the package is not installed -------------------------------------------------------------------------


def test_an_export_is_measured_where_its_method_is_not_installed(lifedeploy, folder):
    engine = folder / "onnxruntime-fp32"
    ended = lifedeploy("bench", engine, "--batch", "2", "--budget", "0.1", "--no-memory", "--json", "bench.json")
    assert ended.code == 0, ended.err
    rows = {row["method"]: row for row in json.loads(Path("bench.json").read_text())["rows"]}
    assert list(rows) == ["dense", "first-k", "outside"]
    row, macs = rows["outside"], Artifact.read(folder / "model.json").manifest.macs
    assert row["mac_ratio"] == pytest.approx(macs.dense / macs.total)
    assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    assert row["efficiency"] == pytest.approx(row["speedup"] / row["mac_ratio"])
    assert row["first_k_share"] > 0
    assert re.search(r"^ *outside ", ended.out, re.MULTILINE)


def test_an_export_is_evaluated_where_its_method_is_not_installed(lifedeploy, folder, labelled):
    engines = (folder / "onnxruntime-fp32", folder / "openvino-fp32")
    ended = lifedeploy("evaluate", *engines, "--data", labelled, "--limit", "6", "--json", "evaluate.json")
    assert ended.code == 0, ended.err
    report = json.loads(Path("evaluate.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["outside", "outside"]
    (pair,) = report["pairs"]
    assert pair["agreement"] == 1.0
    assert pair["overlap"] == 1.0
    assert lifedeploy("visualize", engines[1], PHOTO, "--output", "kept.png").code == 0


# --- training ---------------------------------------------------------------------------------------------------

TRAIN = ("train", "--method", "outside", "--backbone", TINY, "--img-size", "64", "--weights", "random")


def test_it_trains_in_its_one_stage_and_what_comes_out_is_exported(lifedeploy, outside, folder, labelled):
    settings = ("--batch", "8", "--val-share", "0.25", "--workers", "0", "--epochs", "1", "--log-every", "1")
    ended = lifedeploy(*TRAIN, "--no-fuse", "--explore", "0.3", "--data", labelled, *settings, "--json", "train.json")
    assert ended.code == 0, ended.err
    report = json.loads(Path("train.json").read_text())
    run = Path(report["folder"])
    assert run.name == f"{TINY}-outside-r0.7-no-fuse-64x64px"
    assert [(row["stage"], row["epoch"]) for row in report["epochs"]] == [("finetune", 1)]
    assert report["config"]["options"] == {"fuse": False, "explore": 0.3}
    model, spec = checkpoint.load(run / "after-finetune.safetensors")
    assert spec.options == {"fuse": False, "explore": 0.3}
    assert (spec.provenance.weights, spec.provenance.predictor) == ("trained", "none")
    assert not model.reducer.fuse

    exported = lifedeploy(*EXPORT, "--weights", run / "best.safetensors")
    assert exported.code == 0, exported.err
    made = Artifact.read(Path("artifacts") / f"{TINY}-outside-r0.7-no-fuse-64x64px" / "model.json")
    assert made.manifest.spec.options == spec.options
    assert made.manifest.parity.overlap == 1.0
    assert "Pad" not in made.manifest.graph.operators  # no token is fused
    predicted = lifedeploy("predict", PHOTO, "--model", made.folder)
    assert predicted.code == 0, predicted.err
    assert all(name in predicted.out for name in spec.classes)


def test_its_schedule_does_not_change_while_it_trains(lifedeploy, outside, folder, labelled):
    before = sorted(Path("artifacts").rglob("*"))
    ended = lifedeploy(*TRAIN, "--elastic", "--data", labelled, "--batch", "8", "--workers", "0")
    assert ended.code == 2
    assert errors(ended) == ["error: OutsideReducer is built for one schedule and cannot change it"]
    assert "--elastic" in ended.err
    assert sorted(Path("artifacts").rglob("*")) == before
