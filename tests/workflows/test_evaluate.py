"""``evaluate``: every form of a model counts the same, and nothing is counted that was not seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from lifedeploy.artifact import Workspace
from lifedeploy.engines.fake import Fake
from lifedeploy.errors import ArtifactError, DataError, EngineError, ImageError, UsageError
from lifedeploy.model.weights import ModelRequest
from lifedeploy.workflows.evaluate import EvaluateRequest, evaluate
from lifedeploy.workflows.export import ExportRequest, GraphOptions, export
from tests.conftest import TINY, TINY_SIZE

NAMES = ("cat", "cup", "rocket")  # of the exported model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 images; the folders are the model's classes."""
    root = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(4)
    for index in range(10):
        folder = root / NAMES[index % 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root


def folder_of(workspace: Path) -> Path:
    return Workspace(workspace).latest_export().folder


def test_every_form_of_a_model_gives_the_same_answers(workspace, data):
    folder = folder_of(workspace)
    models = (
        str(folder / "weights.safetensors"),
        str(folder / "model.onnx"),
        str(folder / "onnxruntime-fp32"),
        str(folder / "openvino-fp32"),
    )
    report = evaluate(EvaluateRequest(models, str(data), batch=4), Workspace(workspace))
    assert [model.engine for model in report.models] == ["torch", "onnxruntime", "onnxruntime", "openvino"]
    assert len({model.accuracy.top1 for model in report.models}) == 1
    for model in report.models:
        assert model.accuracy.images == 10
        assert model.accuracy.loss == pytest.approx(report.models[0].accuracy.loss, rel=1e-4)
        assert [one.name for one in model.accuracy.classes] == list(NAMES)
        assert model.images_per_s > 0
    assert len(report.pairs) == 6
    assert all(pair["agreement"] == 1.0 and pair["overlap"] == 1.0 and pair["images"] == 10 for pair in report.pairs)


def test_the_numbers_are_those_of_the_model(workspace, data):
    """Against a plain loop over the checkpoint."""
    import torch

    from lifedeploy.data.preprocess import normalise, read_image, to_pixels
    from lifedeploy.model import checkpoint

    folder = folder_of(workspace)
    model, spec = checkpoint.load(folder / "weights.safetensors")
    right = 0
    for path in sorted(data.glob("*/*.png")):
        images = normalise(to_pixels(read_image(path), spec.preprocess)[None], spec.preprocess)
        right += NAMES[int(model(torch.from_numpy(images)).logits.argmax())] == path.parent.name
    report = evaluate(EvaluateRequest((str(folder),), str(data)), Workspace(workspace))
    assert report.models[0].accuracy.top1 == right / 10


def test_without_a_model_the_last_engine_and_its_dense_baseline_are_asked(workspace, data):
    report = evaluate(EvaluateRequest((), str(data)), Workspace(workspace))
    newest = Workspace(workspace).engines()[0].manifest.engine.name
    assert [(model.method, model.engine) for model in report.models] == [("dense", newest), ("life", newest)]
    assert report.pairs[0]["overlap"] is None


def test_the_same_weights_under_other_methods(workspace, data):
    folder = folder_of(workspace)
    models = (f"{folder}:dense", f"{folder / 'weights.safetensors'}:dense", f"{folder / 'weights.safetensors'}:first-k")
    report = evaluate(EvaluateRequest(models, str(data)), Workspace(workspace))
    assert [model.method for model in report.models] == ["dense", "dense", "first-k"]
    assert report.pairs[0]["agreement"] == 1.0
    assert report.models[0].accuracy.loss == pytest.approx(report.models[1].accuracy.loss, rel=1e-4)
    assert report.models[2].accuracy.loss != pytest.approx(report.models[1].accuracy.loss, rel=1e-4)


def test_classes_are_matched_by_name_whatever_their_order(workspace, data, tmp_path):
    """The data know two of the model's three classes, so their numbers differ."""
    part = tmp_path / "part"
    for name in ("rocket", "cup"):
        (part / name).mkdir(parents=True)
        for path in (data / name).iterdir():
            (part / name / path.name).write_bytes(path.read_bytes())
    model = (str(folder_of(workspace)),)
    whole = evaluate(EvaluateRequest(model, str(data)), Workspace(workspace)).models[0].accuracy
    found = evaluate(EvaluateRequest(model, str(part)), Workspace(workspace)).models[0].accuracy
    assert found.images == 6
    assert found.confusion[0] == (0, 0, 0)
    assert found.confusion[1:] == whole.confusion[1:]
    assert found.classes[0].recall is None


def test_classes_that_fit_neither_by_name_nor_by_number_are_refused(workspace, data, tmp_path):
    (tmp_path / "other" / "cat").mkdir(parents=True)
    (tmp_path / "other" / "dog").mkdir()
    for name in ("cat", "dog"):
        Image.new("RGB", (20, 20)).save(tmp_path / "other" / name / "a.png")
    with pytest.raises(DataError, match=r"2 classes \(cat, dog …\), and .* knows 3, cat, cup, rocket"):
        evaluate(EvaluateRequest((), str(tmp_path / "other")), Workspace(workspace))


def broken_copy(data: Path, target: Path) -> Path:
    for path in data.glob("*/*.png"):
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        (target / path.parent.name / path.name).write_bytes(path.read_bytes())
    (target / "cat" / "3.png").write_bytes(b"no image")
    return target


def test_a_broken_image_is_fatal_or_skipped_by_name(workspace, data, tmp_path):
    broken = broken_copy(data, tmp_path / "broken")
    with pytest.raises(ImageError, match=r"cat/3\.png is not an image") as ended:
        evaluate(EvaluateRequest((), str(broken)), Workspace(workspace))
    assert "--on-error skip" in (ended.value.hint or "")
    report = evaluate(EvaluateRequest((), str(broken), on_error="skip", batch=2), Workspace(workspace))
    assert [one.filename for one in report.skipped] == ["cat/3.png"]
    assert {model.accuracy.images for model in report.models} == {9}
    assert report.data["evaluated"] == 9
    assert json.loads(json.dumps(report.to_dict()))["skipped"][0]["filename"] == "cat/3.png"


def test_if_every_image_is_broken_there_is_no_result(workspace, tmp_path):
    (tmp_path / "all" / "cat").mkdir(parents=True)
    (tmp_path / "all" / "cat" / "a.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"none of the 1 images of .* can be decoded"):
        evaluate(EvaluateRequest((), str(tmp_path / "all"), on_error="skip"), Workspace(workspace))


def test_a_static_batch_is_filled_up_and_the_filling_not_counted(workspace, data, weights_file):
    model = ModelRequest(TINY, keep_rate=0.7, weights=str(weights_file), image_size=TINY_SIZE)
    static = export(ExportRequest(model, GraphOptions(batch_size=3)), Workspace(workspace)).folder
    dynamic = Workspace(workspace).root / "vit_tiny_patch16_224-life-r0.7-64x64px"
    dynamic = (
        dynamic if dynamic.exists() else next(path for path in workspace.iterdir() if not path.name.endswith("b3"))
    )
    report = evaluate(EvaluateRequest((str(static), str(dynamic)), str(data)), Workspace(workspace))
    first, second = (one.accuracy for one in report.models)
    assert first.images == second.images == 10
    assert first.confusion == second.confusion
    assert first.loss == pytest.approx(second.loss, rel=1e-4)


def test_limits_are_spread_over_all_classes(workspace, data):
    report = evaluate(EvaluateRequest((), str(data), limit=5), Workspace(workspace))
    assert report.models[0].accuracy.images == 5
    assert sum(one.images > 0 for one in report.models[0].accuracy.classes) == 3


def test_a_foreign_graph_needs_a_model_of_ours_beside_it(workspace, data, tmp_path):
    folder = folder_of(workspace)
    foreign = tmp_path / "foreign.onnx"
    graph = onnx.load(folder / "dense.onnx")
    onnx.save(graph, foreign)
    with pytest.raises(UsageError, match="how images are prepared for it is unknown"):
        evaluate(EvaluateRequest((str(foreign),), str(data)), Workspace(workspace))
    report = evaluate(EvaluateRequest((f"{folder}:dense", str(foreign)), str(data)), Workspace(workspace))
    assert report.pairs[0]["agreement"] == 1.0
    assert report.models[1].method == "unknown"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"on_error": "ignore"}, UsageError, "--on-error is 'ignore', expected fail or skip"),
        ({"batch": 0}, UsageError, "--batch and --limit must be at least 1"),
        ({"data": "nowhere"}, DataError, "nowhere is no folder"),
        ({"models": ("none.onnx",)}, ArtifactError, "none.onnx does not exist"),
        ({"split": "test2"}, DataError, "has no split 'test2'"),
    ],
)
def test_bad_requests_are_refused(workspace, data, changes, error, message):
    with pytest.raises(error, match=message):
        evaluate(EvaluateRequest(**({"models": (), "data": str(data)} | changes)), Workspace(workspace))


def test_a_method_that_was_not_exported_is_refused(workspace, data):
    folder = folder_of(workspace)
    manifest = json.loads((folder / "model.json").read_text())
    del manifest["siblings"]["first-k"]
    (folder / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="was not exported as first-k; it has: life, dense"):
        evaluate(EvaluateRequest((f"{folder}:first-k",), str(data)), Workspace(workspace))


def test_answers_that_are_no_numbers_stop_it_and_name_the_image(workspace, data, monkeypatch):
    run = Fake._run

    def poisoned(self, feeds):
        answers = run(self, feeds)
        answers[self.outputs[0].name] = answers[self.outputs[0].name] * np.nan
        return answers

    monkeypatch.setattr(Fake, "_run", poisoned)
    fake = folder_of(workspace) / "fake-fp32"
    with pytest.raises(EngineError, match=r"gives no finite numbers for cat/0\.png"):
        evaluate(EvaluateRequest((str(fake),), str(data)), Workspace(workspace))


def test_random_weights_are_warned_about(workspace, data):
    model = ModelRequest(TINY, keep_rate=0.7, weights="random", image_size=TINY_SIZE, num_classes=3)
    folder = export(ExportRequest(model, GraphOptions(), Path(workspace) / "random"), Workspace(workspace)).folder
    report = evaluate(EvaluateRequest((str(folder),), str(data)), Workspace(workspace))
    assert "Random weights, so its accuracy means nothing" in report.warning


def test_two_processes_count_as_one(workspace, data, tmp_path):
    """One broken image too, in whichever process it falls."""
    broken = broken_copy(data, tmp_path / "broken")
    folder = folder_of(workspace)
    models = [str(folder / "model.onnx"), str(folder / "weights.safetensors")]
    alone = evaluate(EvaluateRequest(tuple(models), str(broken), on_error="skip"), Workspace(workspace))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29632"]
    command += ["-m", "lifedeploy", "evaluate", *models, "--data", str(broken), "--on-error", "skip"]
    command += ["--json", str(tmp_path / "two.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    together = json.loads((tmp_path / "two.json").read_text())
    assert together["processes"] == 2
    assert [one["filename"] for one in together["skipped"]] == ["cat/3.png"]
    for one, other in zip(together["models"], alone.models, strict=True):
        assert one["accuracy"]["confusion"] == [list(row) for row in other.accuracy.confusion]
        assert one["accuracy"]["loss"] == pytest.approx(other.accuracy.loss)
        assert one["accuracy"]["average_precision"] == pytest.approx(other.accuracy.average_precision)
    assert together["pairs"][0]["overlap"] == 1.0 and together["pairs"][0]["images"] == 9
