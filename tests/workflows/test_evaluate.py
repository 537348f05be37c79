"""Evaluate on a tiny model: the same answers from every form of it, and no image counted that was not seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import (
    ArtifactError,
    DataError,
    EngineError,
    ImageError,
    LifedeployError,
    UsageError,
    WeightsError,
)
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model import checkpoint
from lifedeploy.model.weights import ModelRequest
from lifedeploy.progress import Step
from lifedeploy.schedule import Schedule
from lifedeploy.workflows.evaluate import EvaluateReport, EvaluateRequest, evaluate
from lifedeploy.workflows.export import ExportRequest, export
from tests.conftest import TINY, TINY_SIZE

pytestmark = pytest.mark.usefixtures("traced_once")

NAMES = ("cat", "cup", "rocket")


def make_images(root: Path, classes: tuple[str, ...] = NAMES, count: int = 5) -> Path:
    """Pictures of coarse noise, other ones in every class."""
    generator = np.random.default_rng(7)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            coarse.resize((90, 80)).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_images(tmp_path / "data")


def run(data: Path, *models: Path | str, **changes: object) -> EvaluateReport:
    request = EvaluateRequest(models=tuple(map(Path, models)), data=str(data), batch=4, threads=1, workers=2)
    return evaluate(replace(request, **changes), Workspace(Path("artifacts")))


def spoil(data: Path) -> None:
    (data / "cup" / "2.png").write_text("no image")


def test_checkpoint_export_and_engines_answer_alike(data, folder):
    forms = ("weights.safetensors", "model.onnx", "onnxruntime-fp32", "openvino-fp32")
    report = run(data, *(folder / form for form in forms))
    assert [row.engine for row in report.rows] == ["torch", "onnxruntime", "onnxruntime", "openvino"]
    torch, *others = (row.accuracy for row in report.rows)
    assert torch.images == 15
    assert torch.top5 is None
    for accuracy in others:
        assert (accuracy.top1, accuracy.confusion) == (torch.top1, torch.confusion)
        assert accuracy.loss == pytest.approx(torch.loss, rel=1e-4)
        assert accuracy.average_precision == pytest.approx(torch.average_precision)
    assert len(report.pairs) == 6
    assert {(pair.agreement, pair.overlap) for pair in report.pairs} == {(1.0, 1.0)}
    assert all(row.images_per_s > 0 and row.precision == "fp32" for row in report.rows)


def test_a_method_after_a_colon_takes_the_same_weights(data, folder):
    report = run(
        data,
        f"{folder}/weights.safetensors:dense",
        f"{folder}:dense",
        f"{folder}/openvino-fp32:first-k",
        f"{folder}/weights.safetensors:first-k",
    )
    assert [row.method for row in report.rows] == ["dense", "dense", "first-k", "first-k"]
    losses = [row.accuracy.loss for row in report.rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[2] == pytest.approx(losses[3], rel=1e-4)
    assert losses[0] != pytest.approx(losses[2], rel=1e-4)
    assert {pair.overlap for pair in report.pairs} == {None}  # no score chooses their tokens


def test_without_a_model_the_last_build_and_its_baseline(data, folder):
    newest = Workspace(Path("artifacts")).engines()[0]
    newest.manifest_path.touch()
    report = run(data)
    assert [(row.engine, row.method) for row in report.rows] == [("fake", "life"), ("fake", "dense")]


def test_an_engine_that_a_tap_changes_gives_its_own_logits(data, folder, monkeypatch):
    """The tapped session is asked for the kept tokens alone."""
    monkeypatch.setattr(OnnxRuntime, "taps_change_plan", True)
    plain = OnnxRuntime._run

    def spoilt(self, feeds):
        found = plain(self, feeds)
        return {name: found[name] + 1 if self.options.taps and name == "logits" else found[name] for name in found}

    monkeypatch.setattr(OnnxRuntime, "_run", spoilt)
    report = run(data, folder / "model.onnx", folder / "weights.safetensors")
    assert report.rows[0].accuracy.loss == pytest.approx(report.rows[1].accuracy.loss, rel=1e-4)
    assert report.pairs[0].overlap == 1.0


def test_kept_tokens_of_other_schedules_are_compared_by_the_smaller_set(data, folder, tmp_path):
    weights, fewer = folder / "weights.safetensors", tmp_path / "fewer.safetensors"
    model, spec = checkpoint.load(weights)
    tokens = tuple(max(count - 2, 1) if count < 16 else count for count in spec.schedule.tokens)
    checkpoint.save(fewer, model, replace(spec, schedule=Schedule(tokens, spec.schedule.drop_layers, None)))
    one, other = (run(data, *pair).pairs[0].overlap for pair in ((weights, fewer), (fewer, weights)))
    assert one == other
    assert 0.5 < one <= 1  # five of 16 against three of these


def test_a_broken_image_ends_the_evaluation_by_name(data, folder):
    spoil(data)
    with pytest.raises(ImageError, match=r"cup/2\.png is not an image") as caught:
        run(data, folder)
    assert "--on-error skip" in caught.value.hint


def test_a_broken_image_is_left_out_by_name(data, folder):
    whole = run(data, folder).rows[0].accuracy
    spoil(data)
    report = run(data, folder, on_error="skip")
    assert [broken.filename for broken in report.skipped] == ["cup/2.png"]
    accuracy = report.rows[0].accuracy
    assert accuracy.images == 14
    assert [entry.images for entry in accuracy.per_class if entry.images] == [5, 4, 5]
    assert sum(map(sum, whole.confusion)) - sum(map(sum, accuracy.confusion)) == 1


def test_matching_by_position_is_said_where_it_cannot_be_missed(tmp_path, folder, lifedeploy):
    images = make_images(tmp_path / "numbers", ("0", "1", "2"), count=1)
    ended = lifedeploy("evaluate", folder, "--data", images)
    assert ended.code == 0
    assert "BY POSITION" in ended.err and "'0' for 'cat'" in ended.err


def test_nothing_but_broken_images_is_an_error(tmp_path, folder):
    make_images(tmp_path / "bad", NAMES, count=1)
    for path in (tmp_path / "bad").glob("*/*.png"):
        path.write_text("no image")
    with pytest.raises(DataError, match=r"none of the 3 images of .*bad can be read"):
        run(tmp_path / "bad", folder, on_error="skip")


def test_classes_are_found_by_name(data, folder, tmp_path):
    """Folders in another order than the model's classes, and one class fewer."""
    rows = run(data, folder).rows[0].accuracy.confusion
    path = folder / "model.json"
    turned = json.loads(path.read_text())
    turned["spec"]["classes"] = ["rocket", "cat", "cup"]
    path.write_text(json.dumps(turned))
    report = run(data, folder)
    assert report.rows[0].classes_by == "name"
    assert report.rows[0].accuracy.confusion == (rows[2], rows[0], rows[1])
    fewer = make_images(tmp_path / "fewer", ("cat", "rocket"))
    assert [entry.images for entry in run(fewer, folder).rows[0].accuracy.per_class if entry.images] == [5, 5]


def test_classes_without_known_names_are_found_by_position(tmp_path, folder):
    images = make_images(tmp_path / "numbers", ("n0", "n1", "n2"), count=1)
    report = run(images, folder, f"{folder}:dense")
    row, _ = report.rows
    assert row.classes_by == "position"
    (warning,) = report.warnings  # once, for both models
    assert warning.startswith("classes are matched BY POSITION")
    assert "'n0' for 'cat', 'n1' for 'cup', 'n2' for 'rocket' are taken" in warning
    assert {entry.name for entry in row.accuracy.per_class} == {"n0", "n1", "n2"}
    with pytest.raises(DataError, match=r"two has 2 classes, and .*model\.onnx has 3"):
        run(make_images(tmp_path / "two", ("n0", "n1"), count=1), folder)


def test_random_weights_are_said_to_be_random(data, folder):
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"weights": "file"', '"weights": "random"'))
    report = run(data, folder, f"{folder}:dense")
    (warning,) = report.warnings
    assert warning.endswith("model.onnx has random weights: its accuracy means nothing")
    assert [row.weights for row in report.rows] == ["random", "file"]


def test_a_fixed_batch_is_filled_up_and_pixels_are_given_where_they_are_taken(data, tmp_path, folder, weights_file):
    fixed = ExportRequest(
        ModelRequest(backbone=TINY, keep_rate=0.7, weights=str(weights_file), image_size=TINY_SIZE),
        GraphOptions(batch_size=6, with_preprocess=True),
        output=tmp_path / "fixed",
        check_parity=False,
    )
    export(fixed, Workspace(tmp_path))
    for runtime in ("onnxruntime", "openvino"):
        report = run(data, tmp_path / "fixed", folder, engine=runtime)
        static, dynamic = (row.accuracy for row in report.rows)
        assert (static.images, static.confusion) == (15, dynamic.confusion)
        assert static.loss == pytest.approx(dynamic.loss, rel=1e-4)
        assert (report.pairs[0].agreement, report.pairs[0].overlap) == (1.0, 1.0)


def test_a_foreign_graph_needs_a_model_of_ours_beside_it(data, tmp_path, folder):
    foreign = tmp_path / "copy.onnx"
    foreign.write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(UsageError, match=r"copy\.onnx has no manifest, so how images are prepared for images: float32"):
        run(data, foreign)
    report = run(data, foreign, folder)
    copy, own = report.rows
    assert copy.accuracy == own.accuracy
    assert (copy.method, copy.precision, copy.weights) == ("unknown", "fp32", "unknown")
    assert (report.pairs[0].agreement, report.pairs[0].overlap) == (1.0, None)
    assert "was given the preprocessing and classes of" in report.warnings[0]


def test_numbers_that_are_not_finite_name_the_image(data, folder, monkeypatch):
    plain = OnnxRuntime._run
    calls: list[int] = []

    def spoilt(self, feeds):
        found = plain(self, feeds)
        calls.append(1)
        if len(calls) == 2:
            found["logits"][1, 0] = np.nan
        return found

    monkeypatch.setattr(OnnxRuntime, "_run", spoilt)
    with pytest.raises(EngineError, match=r"model\.onnx on onnxruntime fp32 gives NaN or infinity for cup/0\.png"):
        run(data, folder)


def test_a_limit_takes_images_evenly(data, folder):
    report = run(data, folder, limit=3)
    assert report.data["images"] == 3
    assert list(report.data["classes"].values()) == [1, 1, 1]
    assert run(data, folder, limit=99).data["images"] == 15


def test_progress_counts_every_image(data, folder):
    spoil(data)
    seen: list[Step] = []
    request = EvaluateRequest(models=(folder,), data=str(data), batch=4, on_error="skip")
    evaluate(request, Workspace(Path("artifacts")), progress=seen.append)
    assert seen == [Step("evaluating", done / 15, f"{done} of 15 images") for done in (4, 8, 12, 15)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 0}, "0 images per batch are not allowed: at least 1 is needed"),
        ({"limit": 0}, "0 images are not allowed"),
        ({"threads": 0}, "0 threads are not allowed"),
        ({"workers": 0}, "0 decoding threads are not allowed"),
        ({"batch": 1e26}, r"1e\+26 images per batch are not allowed; expected a whole number up to 65,536"),
        ({"threads": float("inf")}, "inf threads are not allowed; expected a whole number up to 4,096"),
        ({"limit": float("nan")}, "nan images are not allowed; expected a whole number"),
        ({"limit": 1.5}, "1.5 images are not allowed; expected a whole number"),
        ({"on_error": "ignore"}, "--on-error 'ignore' is unknown; there are: skip, fail"),
    ],
)
def test_requests_that_cannot_be_meant(changes, said):
    with pytest.raises(UsageError, match=said):
        replace(EvaluateRequest(models=(), data="data"), **changes)


@pytest.mark.parametrize(
    ("model", "changes", "kind", "said"),
    [
        ("{folder}:sparse", {}, UsageError, r"method 'sparse' is unknown; there are: life, .*, dense, first-k"),
        ("{folder}/nothing:dense", {}, ArtifactError, "nothing:dense does not exist"),
        ("{folder}", {"engine": "torch"}, UsageError, "engine torch opens no ONNX file as it is; those that do"),
        ("{folder}", {"engine": "abacus"}, UsageError, "engine 'abacus' is unknown"),
        ("{folder}", {"split": "train-2"}, DataError, "has no split 'train-2'"),
        ("{folder}/reference.npz", {}, ArtifactError, "is neither an export, an engine, an ONNX file nor a checkpoint"),
    ],
)
def test_what_cannot_be_had(data, folder, model, changes, kind, said):
    with pytest.raises(kind, match=said):
        run(data, model.format(folder=folder), **changes)


def test_a_sibling_that_was_not_exported(data, folder):
    artifact = Artifact.read(folder / "model.json")
    replace(artifact.manifest, siblings={"dense": "dense.json"}).write(artifact.manifest_path)
    with pytest.raises(ArtifactError, match="was not exported under first-k; there are: dense, life"):
        run(data, f"{folder}:first-k")


def test_an_empty_folder_is_one_line(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty/ holds no images"):
        run(tmp_path / "empty", folder)


def test_a_model_without_classes(data, folder):
    artifact = Artifact.read(folder / "model.json")
    headless = replace(artifact.manifest.spec, num_classes=0, classes=())
    replace(artifact.manifest, spec=headless).write(artifact.manifest_path)
    with pytest.raises(WeightsError, match=r"model\.onnx has no classification head: .* gives features"):
        run(data, folder)


def test_several_processes_find_what_one_finds(data, folder, tmp_path):
    spoil(data)
    common = ["evaluate", folder, folder / "weights.safetensors", "--data", data, "--on-error", "skip", "--batch", "4"]
    alone = run(data, folder, folder / "weights.safetensors", on_error="skip").to_dict()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "lifedeploy", *common, "--threads", "1", "--json", tmp_path / "two.json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Agreement") == 1  # one process reports
    together = json.loads((tmp_path / "two.json").read_text())
    assert together["processes"] == 2
    assert [broken["filename"] for broken in together["skipped"]] == ["cup/2.png"]
    assert together["pairs"] == json.loads(json.dumps(alone["pairs"]))
    for one, two in zip(json.loads(json.dumps(alone["rows"])), together["rows"], strict=True):
        loss, both = one["accuracy"].pop("loss"), two["accuracy"].pop("loss")
        assert loss == pytest.approx(both, rel=1e-5)  # a kernel may add up another batch in another order
        assert one["accuracy"] == two["accuracy"]


def test_errors_are_of_the_package(data):
    with pytest.raises(LifedeployError, match="no exported model in"):
        evaluate(EvaluateRequest(models=(), data=str(data)), Workspace(data / "nowhere"))
