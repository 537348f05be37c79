"""``visualize``: the same picture from every form of a model, and a line for what cannot be drawn."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.data.samples import PHOTOS, photo_folder
from lifedeploy.errors import ArtifactError, EngineError, ImageError, TrainingError, UsageError
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.kept import KeptTokens
from lifedeploy.model.weights import ModelRequest
from lifedeploy.schedule import Schedule
from lifedeploy.training.log import LogRow
from lifedeploy.viz.curves import _even
from lifedeploy.workflows import visualize as workflow
from lifedeploy.workflows.export import ExportRequest, export
from tests.conftest import TINY, TINY_SIZE

pytestmark = pytest.mark.usefixtures("traced_once")

CAT = photo_folder() / "chelsea.jpg"
ALL = [photo_folder() / name for name in PHOTOS]


def drawn_by(monkeypatch: pytest.MonkeyPatch, model: Path, output: Path) -> list:
    """What is handed to the painter."""
    from lifedeploy.viz import lives as painter

    caught = []
    draw = painter.draw_lives

    def catching(drawn, *rest, **more):
        caught.extend(drawn)
        draw(drawn, *rest, **more)

    monkeypatch.setattr(painter, "draw_lives", catching)
    workflow.visualize(model, ALL, output)
    monkeypatch.setattr(painter, "draw_lives", draw)
    return caught


def test_every_form_of_a_model_draws_the_same_lives(workspace, tmp_path, monkeypatch):
    folder = Workspace(workspace).latest_export().folder
    forms = [folder / "weights.safetensors", folder, folder / "onnxruntime-fp32", folder / "openvino-fp32"]
    pictures = [drawn_by(monkeypatch, form, tmp_path / "x.png") for form in forms]
    for picture in pictures:
        assert [one.name for one in picture] == list(PHOTOS)
        for one, other in zip(picture, pictures[0], strict=True):
            assert np.allclose(one.life, other.life, atol=1e-2)
            assert all(np.array_equal(one.alive[layer], other.alive[layer]) for layer in other.alive)
            assert [int(mask.sum()) for mask in one.alive.values()] == [11, 8, 5]
            assert one.guess.split()[0] in ("cat", "cup", "rocket")


def test_who_lives_longest_stays_longest(workspace, tmp_path, monkeypatch):
    for one in drawn_by(monkeypatch, Workspace(workspace).latest_export().folder, tmp_path / "x.png"):
        for mask in one.alive.values():
            assert one.life[mask].min() >= one.life[~mask].max()


def test_a_per_stage_graph_and_a_static_batch_draw_too(workspace, tmp_path, weights_file, monkeypatch):
    model = ModelRequest(backbone=TINY, keep_rate=0.7, weights=str(weights_file), image_size=TINY_SIZE)
    reference = drawn_by(monkeypatch, Workspace(workspace).latest_export().folder, tmp_path / "x.png")
    for options in (GraphOptions(ordering="per-stage"), GraphOptions(batch_size=3), GraphOptions(with_preprocess=True)):
        folder = export(ExportRequest(model, options), Workspace(workspace)).folder
        for one, other in zip(drawn_by(monkeypatch, folder, tmp_path / "x.png"), reference, strict=True):
            assert all(np.array_equal(one.alive[layer], other.alive[layer]) for layer in other.alive)


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_pictures_are_written_in_every_format(workspace, tmp_path, ending):
    report = workflow.visualize(Workspace(workspace).latest_export().folder, [CAT], tmp_path / f"lives{ending}")
    assert report.file.stat().st_size > 5000
    assert 2 <= report.mean_life <= 12  # t_base…T
    assert report.warning == ""
    if ending == ".png":
        pixels = np.asarray(Image.open(report.file).convert("RGB"))
        assert pixels.shape[1] > 1.5 * pixels.shape[0]  # one row of five panels
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_non_square_images_are_drawn(workspace, tmp_path):
    model = ModelRequest(backbone=TINY, keep_rate=0.7, weights="random", image_size=(64, 96))
    folder = export(ExportRequest(model, GraphOptions()), Workspace(workspace)).folder
    report = workflow.visualize(folder, [CAT, CAT], tmp_path / "wide.png")
    assert report.images == 2
    assert "Random weights" in report.warning


def test_a_histogram_over_a_data_set(workspace, tmp_path):
    for index, path in enumerate(ALL):
        target = tmp_path / "data" / f"class{index % 2}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    model = Workspace(workspace).latest_export().folder
    report = workflow.histogram(model, str(tmp_path / "data"), tmp_path / "h.png", split="", limit=3)
    assert report.images == 3
    assert 0 < report.std_life < report.granted_std * 1.2
    assert report.file.stat().st_size > 5000


def exported_by(method: str, workspace: Path, weights: Path, **options) -> Path:
    """The tiny model under a method with a budget of its own, exported."""
    model = ModelRequest(backbone=TINY, method=method, options=options, weights=str(weights), image_size=TINY_SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "variants", lambda method: (method,))  # what is beside it takes two traces more
        return export(ExportRequest(model, GraphOptions()), Workspace(workspace)).folder


def painted(monkeypatch: pytest.MonkeyPatch) -> list:
    """Figures, as they are written."""
    from lifedeploy.viz import lives as painter

    figures, save = [], painter.save
    monkeypatch.setattr(painter, "save", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


@pytest.mark.parametrize("form", ["", "weights.safetensors"])
def test_what_is_merged_is_drawn_in_groups(workspace, tmp_path, weights_file, monkeypatch, form):
    folder = exported_by("tome", workspace, weights_file, r="1")
    # A graph whose last block is of prefix tokens alone merges none there.
    left = [15, 14, 13, 12, 11, 10] if form else [15, 14, 13, 12, 11]
    shown = (2, 3, 5, 6) if form else (2, 3, 4, 5)
    figures = painted(monkeypatch)
    for picture in drawn_by(monkeypatch, folder / form, tmp_path / "x.png"):
        assert (picture.fate, picture.life) == ("merged", None)
        single = [int(mask.sum()) for mask in picture.alive.values()]
        several = list(picture.fused.values())
        assert [sum(both) for both in zip(single, several, strict=True)] == left
        assert several[0] == 1  # of one pair
        assert len(set(picture.groups)) == left[-1]
        alone = np.flatnonzero(picture.alive[len(left)])  # nobody was merged with them
        assert (picture.groups[alone] == alone).all()
    first = figures[0].axes[:6]
    assert [axis.get_title() for axis in first] == [
        "image",
        *(f"after layer {layer}" for layer in shown),
        "groups",
    ]
    assert [axis.get_xlabel() for axis in first[1:5]] == [f"{left[layer - 1]} tokens of 16 patches" for layer in shown]
    assert first[5].get_xlabel().startswith(f"{left[-1]} groups, the largest of ")
    caption = figures[0].get_supxlabel()
    assert caption.startswith(f"ToMe of {TINY}, ") and caption.endswith(" · in the colour of its group: merged")
    assert "13 of 196" not in caption  # one was asked for, so it is not its own budget
    report = workflow.visualize(folder / form, [CAT], tmp_path / "x.png")
    assert (report.kind, report.mean_life, report.granted_mean) == ("kept", None, None)


@pytest.mark.parametrize("form", ["", "weights.safetensors"])
def test_what_waits_is_drawn_after_every_choice(workspace, tmp_path, weights_file, monkeypatch, form):
    folder = exported_by("evo-vit", workspace, weights_file)
    figures = painted(monkeypatch)
    for picture in drawn_by(monkeypatch, folder / form, tmp_path / "x.png"):
        assert (picture.fate, picture.groups) == ("parked", None)
        assert {layer: int(mask.sum()) for layer, mask in picture.alive.items()} == {2: 8, 4: 8}
    titles = [axis.get_title() for axis in figures[0].axes[:3]]
    assert titles == ["image", "after layer 2", "after layer 4"]
    assert figures[0].axes[2].get_xlabel() == "8 of 16 patches, 8 wait"
    budget = "half of the patches, from a third of the layers on"
    caption = " ".join(figures[0].get_supxlabel().split())
    assert f" · {budget} · 16→8→8 · " in caption and caption.endswith(" · dim: waits, and comes back")


@pytest.mark.parametrize("form", ["", "weights.safetensors"])
def test_what_halts_by_itself_is_drawn_by_its_layer(workspace, tmp_path, weights_file, monkeypatch, form):
    folder = exported_by("avit", workspace, weights_file, gate_scale=0.5, gate_center=1.0)
    figures = painted(monkeypatch)
    pictures = drawn_by(monkeypatch, folder / form, tmp_path / "x.png")
    for picture in pictures:
        assert (picture.fate, picture.alive) == ("halted", {})
        assert np.array_equal(picture.life, picture.life.round())
    assert 1 < len(np.unique([picture.life for picture in pictures])) <= 6
    image, life = figures[0].axes[:2]
    assert (image.get_title(), life.get_title(), len(figures[0].axes)) == ("image", "life, in layers", 2 * 4 + 1)
    assert [text.get_text() for text in life.texts] == [f"{layers:.0f}" for layers in pictures[0].life]
    bar = figures[0].axes[-1]
    assert bar.get_ylim() == (1, 6)
    assert " it computes every token, and masks those that halted · 16 patches" in figures[0].get_supxlabel()
    report = workflow.visualize(folder / form, ALL, tmp_path / "x.png")
    assert (report.kind, report.granted_mean, report.granted_std) == ("lives", None, None)
    assert report.mean_life == pytest.approx(np.mean([picture.life for picture in pictures]), abs=0.1)


def test_a_histogram_of_counted_lives_has_nothing_that_was_granted(
    workspace, tmp_path, weights_file, monkeypatch, lifedeploy
):
    folder = exported_by("avit", workspace, weights_file, gate_scale=0.5, gate_center=1.0)
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / CAT.name).write_bytes(CAT.read_bytes())
    figures = painted(monkeypatch)
    ended = lifedeploy("visualize", folder, "--histogram", "--data", "data", "-o", "h.png", "--json", "h.json")
    assert ended.code == 0, ended.err
    assert "lives of 1 image: mean" in ended.out and "grants" not in ended.out
    assert '"granted_mean": null' in Path("h.json").read_text()
    (axis,) = figures[0].axes
    (label,) = [text.get_text() for text in axis.get_legend().get_texts()]
    assert label.startswith("counted: mean ")
    assert sum(bar.get_height() for bar in axis.patches) == pytest.approx(100)


def test_a_method_of_a_package_that_is_not_installed_is_drawn_as_one_that_drops(workspace, tmp_path, monkeypatch):
    artifact = Workspace(workspace).latest_export()
    spec = replace(artifact.manifest.spec, method="of-somebody")
    replace(artifact.manifest, spec=spec).write(artifact.manifest_path)
    for picture in drawn_by(monkeypatch, artifact.folder, tmp_path / "x.png"):
        assert (picture.fate, picture.groups) == ("dropped", None)
        assert [int(mask.sum()) for mask in picture.alive.values()] == [11, 8, 5]


def rows() -> list[LogRow]:
    train = [
        LogRow(
            kind="train", stage="predictor", epoch=1, step=step, lr=1e-3, loss=1 / step, accuracy=0.5, images_per_s=9.0
        )
        for step in (10, 20, 25)
    ]
    later = [
        LogRow(
            kind="train", stage="backbone", epoch=2, step=step, lr=1e-5, loss=1 / step, accuracy=0.6, images_per_s=9.0
        )
        for step in (30, 40, 50)
    ]
    val = [
        LogRow(kind="val", stage="predictor", epoch=1, step=25, lr=0, loss=0.4, accuracy=0.7, images_per_s=0),
        LogRow(kind="val", stage="backbone", epoch=2, step=50, lr=0, loss=0.3, accuracy=0.8, images_per_s=0),
    ]
    return [*train, val[0], *later, val[1]]


def test_curves_of_a_run(tmp_path):
    import csv
    from dataclasses import astuple, fields

    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(LogRow))
        writer.writerows(map(astuple, rows()))
        file.write("train,backbone,2,6")  # the line a killed process was writing
    report = workflow.curves(tmp_path, tmp_path / "c.svg")
    assert "predictor" in report.file.read_text()
    assert workflow.curves(tmp_path / "log.csv", tmp_path / "c.png").file.stat().st_size > 5000


def test_short_rows_join_the_next_and_stages_do_not_mix():
    train = [row for row in rows() if row.kind == "train"]
    cut = [
        *train[:3],
        LogRow(kind="train", stage="backbone", epoch=2, step=27, lr=1e-5, loss=1.0, accuracy=0.0, images_per_s=9.0),
        *train[3:],
    ]
    even = _even(cut)
    # 25 ends its stage; 27 is short and joins 30, and 30 is still short and joins 40.
    assert [(row.stage, row.step) for row in even] == [
        *(("predictor", step) for step in (10, 20, 25)),
        *(("backbone", step) for step in (40, 50)),
    ]
    assert even[3].accuracy == pytest.approx((2 * 0.0 + 3 * 0.6 + 10 * 0.6) / 15)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"log\.csv does not exist"),
        ("", "has no rows yet"),
        ("kind\n", "is no log of a training run: its columns"),
        ("a\n1,2,x,4,5,6,7,8\n", "is no log"),
    ],
)
def test_a_log_that_is_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "log.csv").write_text(content)
    with pytest.raises((ArtifactError, TrainingError), match=message):
        workflow.curves(tmp_path, tmp_path / "c.png")


def test_a_model_that_predicts_no_lives_is_drawn_without(workspace, tmp_path, monkeypatch):
    artifact = Workspace(workspace).latest_export()
    replace(artifact.manifest, graph=artifact.manifest.graph.but(scores=False)).write(artifact.manifest_path)
    for one in drawn_by(monkeypatch, artifact.folder, tmp_path / "x.png"):
        assert one.life is None
        assert [int(mask.sum()) for mask in one.alive.values()] == [11, 8, 5]
        assert set(one.fused.values()) == {0}
    report = workflow.visualize(artifact.folder, [CAT], tmp_path / "x.png")
    assert (report.kind, report.images, report.mean_life, report.std_life) == ("kept", 1, None, None)
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / CAT.name).write_bytes(CAT.read_bytes())
    with pytest.raises(UsageError, match="is a model of life, which predicts no lives to count"):
        workflow.histogram(artifact.folder, str(tmp_path / "data"), tmp_path / "x.png", split="", limit=3)


def test_what_chooses_no_tokens_is_refused(workspace, tmp_path):
    folder = Workspace(workspace).latest_export().folder
    for model in (folder / "dense.onnx", folder / "first-k.json"):
        with pytest.raises(UsageError, match=r"is a (dense|first-k) model and chooses no tokens"):
            workflow.visualize(model, [CAT], tmp_path / "x.png")
    (tmp_path / "foreign.onnx").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(UsageError, match="was not exported by lifedeploy: which tokens it keeps is unknown"):
        workflow.visualize(tmp_path / "foreign.onnx", [CAT], tmp_path / "x.png")
    with pytest.raises(UsageError, match="is no plot file"):
        workflow.visualize(folder, [CAT], tmp_path / "x.gif")
    with pytest.raises(ImageError, match="does not exist"):
        workflow.visualize(folder, [tmp_path / "none.jpg"], tmp_path / "x.png")
    assert not list(tmp_path.glob("x.*"))


def test_answers_that_are_of_other_patches_are_refused():
    spec = SimpleNamespace(schedule=Schedule.from_counts(16, 4, (11, 6), (2, 3)), image_size=(30, 32))
    target = SimpleNamespace(
        path=Path("m"), kept=KeptTokens.of(spec.schedule, (2, 3)), predicts_lives=True, tells_groups=True
    )
    fitting = {"life_scores": np.zeros((2, 16)), "kept_2": np.full((2, 11), 15), "kept_3": np.full((2, 6), -1)}
    fitting["groups"] = np.zeros((2, 16), dtype=np.int64)
    workflow._require_fitting(fitting, target, spec)
    for name, value, message in (
        ("life_scores", np.zeros((2, 15)), r"m gives life_scores of shape \(2, 15\); expected 16"),
        ("life_scores", np.zeros(2), r"m gives life_scores of shape \(2,\)"),
        ("kept_2", np.zeros((2, 10), dtype=np.int64), r"m gives kept_2 of shape \(2, 10\); expected 11"),
        ("kept_3", np.zeros((2, 5), dtype=np.int64), r"m gives kept_3 of shape \(2, 5\); expected 6"),
        ("kept_2", np.full((2, 11), 16), "m keeps a patch 16; there are 0 to 15"),
        ("kept_3", np.full((2, 6), -2), "m keeps a patch -2; there are 0 to 15"),
        ("groups", np.zeros((2, 15), dtype=np.int64), r"m gives groups of shape \(2, 15\); expected 16"),
        ("groups", np.full((2, 16), 16), "m merges patches into what is none; there are 0 to 15"),
        ("groups", np.full((2, 16), -1), "m merges patches into what is none; there are 0 to 15"),
    ):
        with pytest.raises(EngineError, match=message):
            workflow._require_fitting(fitting | {name: value}, target, spec)
    with pytest.raises(ArtifactError, match="16 square patches do not tile 30 x 32 pixels"):
        workflow._grid(spec)


def test_numbers_that_cannot_be_meant(workspace, tmp_path):
    folder = Workspace(workspace).latest_export().folder
    with pytest.raises(UsageError, match="101 images cannot be drawn in one picture; expected 1 to 100"):
        workflow.visualize(folder, [CAT] * 101, tmp_path / "x.png")
    with pytest.raises(UsageError, match="0 images cannot be drawn"):
        workflow.visualize(folder, [], tmp_path / "x.png")
    for limit in (0, -1, 10**26, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="images are not allowed"):
            workflow.histogram(folder, "data", tmp_path / "x.png", split="", limit=limit)


def test_odd_names_are_drawn_and_pipes_are_refused(workspace, tmp_path, lifedeploy):
    folder = Workspace(workspace).latest_export().folder
    odd = tmp_path / os.fsdecode(b"caf\xe9") / "$a_b$ \x1b[31m.jpg"
    odd.parent.mkdir()
    odd.write_bytes(CAT.read_bytes())
    ended = lifedeploy("visualize", folder, odd, "-o", odd.with_name("x.svg"))
    assert ended.code == 0, ended.err
    assert odd.with_name("x.svg").stat().st_size > 5000
    assert "\x1b[31m" not in ended.out + ended.err
    os.mkfifo(tmp_path / "pipe.jpg")
    ended = lifedeploy("visualize", folder, tmp_path / "pipe.jpg")
    assert (ended.code, len(ended.lines)) == (1, 1)
    assert "pipe.jpg is a pipe; expected a regular file" in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no images to draw"),
        ((CAT, "--histogram"), "--histogram draws no single images"),
        (("--histogram",), "--histogram and --data go together"),
        ((CAT, "--data", "x"), "--histogram and --data go together"),
        (("--histogram", "--curves"), "exclude each other"),
        ((CAT, "-o", "nowhere/x.png"), "nowhere/ is no folder"),
    ],
)
def test_the_command_line_refuses_what_cannot_be_meant(workspace, lifedeploy, arguments, message):
    ended = lifedeploy("visualize", Workspace(workspace).latest_export().folder, *arguments)
    assert ended.code == 2
    assert message in ended.lines[0]


def test_the_command_line_draws(workspace, lifedeploy, tmp_path):
    ended = lifedeploy("visualize", Workspace(workspace).latest_export().folder, CAT, "-o", "cat.png", "--json", "-")
    assert ended.code == 0, ended.err
    assert (tmp_path / "cat.png").is_file()
    assert '"kind": "lives"' in ended.out
