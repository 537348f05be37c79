"""The last block of prefix tokens alone, through the commands: usual, recorded, and refused where it is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines.torch import Torch
from lifedeploy.errors import ArtifactError, UnsupportedModelError
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model import backbones
from lifedeploy.model.prefix_block import PrefixBlock
from lifedeploy.model.weights import ModelRequest
from lifedeploy.targets.evidence import require_current
from lifedeploy.targets.reuse import exports_like
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import named, of_artifact
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.export import ExportRequest, export
from tests.conftest import TINY, TINY_SIZE


def request(weights: Path, method: str = "life", last_block: str = "", **options: object) -> ExportRequest:
    rate = 0.7 if method in ("life", "topk") else None
    model = ModelRequest(
        backbone=TINY, keep_rate=rate, weights=str(weights), image_size=TINY_SIZE, method=method, **options
    )
    return ExportRequest(model, GraphOptions(last_block=last_block))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path / "artifacts")


def test_an_export_says_what_its_last_blocks_compute(exported):
    artifact = Workspace(exported).latest_export()
    for method in ("life", "dense", "first-k"):
        manifest = artifact.sibling(method).manifest
        assert manifest.last_block == "prefix" and manifest.parity.passed
        assert (manifest.macs.query_tokens[-1], manifest.macs.mlp_tokens[-1]) == (0, 0)
        assert manifest.macs.attention_tokens[-1] == (16 if method == "dense" else 5)
    dense = artifact.sibling("dense").manifest.macs
    assert dense.total == dense.dense < dense.plain
    assert dense.speedup_bound == 1 and dense.over_plain == dense.plain / dense.total > 1
    for engine in Workspace.engines_of(artifact):
        assert engine.manifest.last_block == "prefix"


def test_the_whole_block_is_another_export_with_the_same_answers(place, weights_file, traced_once):
    usual, full = (export(request(weights_file, last_block=form), place).folder for form in ("", "full"))
    name = f"{TINY}-life-r0.7-{TINY_SIZE[0]}x{TINY_SIZE[1]}px"
    assert (usual.name, full.name) == (name, f"{name}-full-block")
    assert export(request(weights_file, last_block="prefix"), place).folder == usual  # what is usual needs no name
    manifest = Artifact.read(full / "dense.json").manifest
    assert manifest.last_block == "full" and manifest.macs.dense == manifest.macs.plain == manifest.macs.total
    images = np.random.default_rng(0).standard_normal((2, 3, *TINY_SIZE)).astype(np.float32)
    answers = []
    for folder in (usual, full):
        with Session(named(folder / "model.onnx"), "drops") as session:
            answers.append(session.tensors(images))
    assert set(answers[0]) == set(answers[1])
    for name, tensor in answers[0].items():
        np.testing.assert_allclose(tensor, answers[1][name], rtol=1e-4, atol=1e-5)
    wanted = request(weights_file).model
    assert [known.folder for known in exports_like(wanted, place)] == [usual]  # the other is not what exporting makes


@pytest.mark.usefixtures("traced_once")
def test_where_the_method_reads_patches_its_own_block_is_whole_and_the_baseline_s_is_not(place, weights_file):
    manifests = export(request(weights_file, "evo-vit"), place).manifests
    assert {name: it.last_block for name, it in manifests.items()} == {
        "evo-vit": "full",
        "dense": "prefix",
        "first-k": "full",
    }
    assert manifests["evo-vit"].macs.dense == manifests["dense"].macs.total < manifests["evo-vit"].macs.plain
    with pytest.raises(UnsupportedModelError, match="under evo-vit cannot be of prefix tokens alone: evo-vit computes"):
        export(request(weights_file, "evo-vit", "prefix"), place)


@pytest.mark.usefixtures("traced_once")
def test_plain_is_the_model_as_timm_computes_it(place, weights_file):
    report = export(request(weights_file, "plain"), place)
    macs = report.manifests["plain"].macs
    assert macs.total == macs.plain > macs.dense and macs.speedup_bound < 1
    assert report.manifests["dense"].last_block == "prefix"
    vit = backbones.create(TINY, image_size=TINY_SIZE, num_classes=3)
    vit.load_state_dict(load_file(weights_file))
    images = np.random.default_rng(0).standard_normal((2, 3, *TINY_SIZE)).astype(np.float32)
    with torch.inference_mode():
        reference = vit.eval()(torch.from_numpy(images)).numpy()
    for name in ("model", "dense"):
        with Session(named(report.folder / f"{name}.onnx")) as session:
            np.testing.assert_allclose(session.answer(images).logits, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("traced_once")
def test_a_drop_in_the_last_layer_is_not_made_for_nobody(place, weights_file):
    wanted = request(weights_file, "topk", drop_layers=(2, 4, 6))
    report = export(wanted, place)
    manifest = report.manifests["topk"]
    assert manifest.spec.schedule.drop_layers == (2, 4, 6)  # as asked for
    assert manifest.graph.kept == (2, 4) and list(manifest.kept.counts) == [2, 4]
    assert manifest.graph.operators["TopK"] == 2 and manifest.parity.overlap == 1.0
    full = export(replace(wanted, graph=GraphOptions(last_block="full")), place).manifests["topk"]
    assert full.graph.kept == (2, 4, 6) and full.graph.operators["TopK"] == 3


def test_pytorch_runs_what_the_export_holds_and_weights_alone_the_whole_block(workspace):
    build(BuildRequest(engine="torch"), Workspace(workspace))
    export_folder = Workspace(workspace).latest_export().folder
    engine = of_artifact(Artifact.read(export_folder / "torch-fp32" / "dense.json"))
    for target, last in ((engine, PrefixBlock), (named(export_folder / "weights.safetensors"), object)):
        with Session(target) as session:
            assert isinstance(session.engine, Torch)
            block = session.engine._model.backbone.blocks[-1]
            assert isinstance(block, last) and isinstance(block, PrefixBlock) == (last is PrefixBlock)


def test_an_engine_of_the_other_form_is_refused(workspace, weights_file, tmp_path, traced_once):
    """As after files were copied from one export into another."""
    export_folder = Workspace(workspace).latest_export().folder
    other = export(request(weights_file, last_block="full"), Workspace(tmp_path / "other")).folder
    for name in ("model.onnx", "model.json"):
        shutil.copy(other / name, export_folder / name)
    engine = Artifact.read(export_folder / "onnxruntime-fp32" / "model.json")
    with pytest.raises(ArtifactError, match=r"was built of another \.\./model\.onnx than is there now"):
        require_current(engine)


@pytest.mark.parametrize(("form", "attending"), [("prefix", 5), ("full", 0)])
def test_a_manifest_whose_macs_are_of_the_other_form_is_refused(exported, tmp_path, form, attending):
    folder = Workspace(exported).latest_export().folder
    facts = json.loads((folder / "model.json").read_text())
    facts["graph"]["last_block"] = form
    facts["macs"]["query_tokens"][-1] = attending
    (tmp_path / "model.json").write_text(json.dumps(facts))
    said = rf"wrong at \$\.graph\.last_block: {form}, and in the last layer {attending} patch tokens attend"
    with pytest.raises(ArtifactError, match=said):
        Artifact.read(tmp_path / "model.json")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--last-block", "half"), 2, "last block 'half' is unknown; there are: prefix, full"),
        (("--method", "evo-vit", "--last-block", "prefix"), 2, "evo-vit computes all tokens there"),
        (("--method", "plain", "--rho", "0.5"), 2, "plain takes no keep rate: it computes every token of every layer"),
        (("--method", "plain", "--drop-layers", "3"), 2, "plain drops nothing, so it has no drop layers"),
    ],
)
def test_what_cannot_be_is_one_line(place, lifedeploy, words, code, said):
    ended = lifedeploy("export", "--backbone", TINY, "--weights", "random", "--img-size", "32", *words)
    lines = [line for line in ended.lines if not line.startswith("hint: ")]
    assert ended.code == code and len(lines) == 1 and said in lines[0]
    assert not place.root.exists() or not list(place.root.iterdir())


def test_a_head_that_pools_patches_needs_the_whole_block(place, lifedeploy, monkeypatch):
    make = backbones.create

    def pooling(*arguments: object, **options: object) -> object:
        vit = make(*arguments, **options)
        vit.global_pool = "avg"  # as of BEiT-3, which is large
        return vit

    monkeypatch.setattr(backbones, "create", pooling)
    words = ("export", "--backbone", TINY, "--weights", "random", "--img-size", "32")
    ended = lifedeploy(*words, "--last-block", "prefix")
    lines = [line for line in ended.lines if not line.startswith("hint: ")]
    assert ended.code == 2 and len(lines) == 1
    assert lines[0].endswith("cannot be of prefix tokens alone: its head reads patch tokens (pool 'avg')")
    assert "hint: --last-block full" in ended.lines
    assert not place.root.exists() or not list(place.root.iterdir())
    assert lifedeploy(*words).code == 0
    export = place.latest_export()
    assert {export.sibling(name).manifest.last_block for name in ("life", "dense", "first-k")} == {"full"}
    assert "full" not in export.folder.name  # it is what this backbone has


def test_a_foreign_file_has_no_last_block_to_speak_of(place, lifedeploy, exported):
    foreign = place.root.parent / "foreign.onnx"
    shutil.copy(Workspace(exported).latest_export().path, foreign)
    shown = lifedeploy("inspect", foreign)
    assert shown.code == 0 and "last block" not in shown.out
    built = lifedeploy("build-engine", foreign)
    lines = [line for line in built.lines if not line.startswith("hint: ")]
    assert built.code == 1 and len(lines) == 1 and "was not exported by lifedeploy" in lines[0]


def test_inspect_says_what_the_last_block_computes(exported, lifedeploy):
    shown = lifedeploy("inspect", Workspace(exported).latest_export().folder)
    assert shown.code == 0
    assert "of prefix tokens alone" in shown.out and "5 as keys" in shown.out and "over timm's own" in shown.out
