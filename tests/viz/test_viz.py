"""Pictures: names are drawn as they are, equal numbers give equal files, and a file is whole or not there."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import textwrap
import time
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lifedeploy.errors import LifedeployError, UsageError
from lifedeploy.evaluation.lives import PatchLives
from lifedeploy.schedule import Schedule
from lifedeploy.training.log import LogRow
from lifedeploy.viz.curves import draw_curves
from lifedeploy.viz.labels import Named, place
from lifedeploy.viz.lives import draw_histogram, draw_lives, spaced
from lifedeploy.viz.panels import borders, draw_groups, kept
from lifedeploy.viz.style import as_text, check_format, colour, in_lines, save

SCHEDULE = Schedule.from_counts(16, 4, (11, 6), (2, 3))
ODD = "$a_b$ \\frac \x1b[31m\x07\ufffe\udce9 猫 & <b>\n%s" + "x" * 400


def figure(text: str) -> Figure:
    made = Figure(figsize=(3, 2))
    FigureCanvasAgg(made)
    axis = made.subplots()
    axis.set_title(text)
    axis.set_yscale("log")
    axis.plot([1, 2], [1, 1000], label=text)
    axis.annotate(text, (1, 1))
    axis.legend()
    made.suptitle(text)
    return made


def image(name: str, guess: str = "", *, lived: bool = True, fused: int = 0) -> PatchLives:
    """One that lost patches after layers 2 and 3; the last of those that go on are ``fused``."""
    generator = np.random.default_rng(0)
    alive = {layer: generator.permutation(16) < SCHEDULE.after(layer) - fused for layer in (2, 3)}
    pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    life = np.linspace(2, 4, 16) if lived else None
    return PatchLives(
        name=name, pixels=pixels, grid=(4, 4), life=life, alive=alive, fused={2: fused, 3: fused}, guess=guess
    )


def drawings(path: Path, text: str) -> None:
    """Each kind of picture, with ``text`` for every name in it."""
    rows = [
        LogRow(
            kind="train", stage=text, epoch=1, step=step, lr=10.0**-step, loss=1 / step, accuracy=0.5, images_per_s=9.0
        )
        for step in (1, 2, 3)
    ]
    draw_lives([image(text, text)], SCHEDULE, path.with_stem("lives"), note=text)
    draw_lives([image(text, text, lived=False, fused=1)], SCHEDULE, path.with_stem("kept"), note=text)
    draw_histogram(np.random.default_rng(0).normal(3, 1, (3, 16)), SCHEDULE, path.with_stem("histogram"), note=text)
    draw_curves(rows, path.with_stem("curves"), title=text)


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_names_are_drawn_whatever_is_in_them_and_nothing_is_said(tmp_path, ending, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawings(tmp_path / f"x{ending}", ODD)
    assert capfd.readouterr() == ("", "")
    made = sorted(tmp_path.iterdir())
    assert [path.stem for path in made] == ["curves", "histogram", "kept", "lives"]
    for path in made:
        if ending == ".svg":
            ElementTree.parse(path)
            assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", path.read_text(encoding="utf-8"))
        elif ending == ".png":
            with Image.open(path) as picture:
                assert max(picture.size) < 4000


@pytest.mark.parametrize(
    ("lived", "fused", "titles", "left", "dark"),
    [
        (True, 0, ["life, in layers"], ["11 of 16 patches", "6 of 16 patches"], "dropped"),
        (False, 0, [], ["11 of 16 patches", "6 of 16 patches"], "dropped"),
        (
            False,
            1,
            [],
            ["10 of 16 patches + 1 fused token", "5 of 16 patches + 1 fused token"],
            "dropped, or in a fused token",
        ),
        (
            False,
            2,
            [],
            ["9 of 16 patches + 2 fused tokens", "4 of 16 patches + 2 fused tokens"],
            "dropped, or in a fused token",
        ),
    ],
)
def test_lives_are_drawn_where_there_are_any_and_fused_tokens_are_counted(
    tmp_path, monkeypatch, lived, fused, titles, left, dark
):
    drawn = []
    monkeypatch.setattr("lifedeploy.viz.lives.save", lambda made, path: drawn.append(made))
    draw_lives([image("x", lived=lived, fused=fused)] * 2, SCHEDULE, tmp_path / "x.png", note="A model")
    assert drawn[0].get_supxlabel() == f"A model · dark: {dark}"
    panels = drawn[0].axes[: 2 * (3 + lived)]
    first, second = panels[: len(panels) // 2], panels[len(panels) // 2 :]
    assert [axis.get_title() for axis in first] == ["image", *titles, "after layer 2", "after layer 3"]
    assert [[axis.get_xlabel() for axis in row[-2:]] for row in (first, second)] == [left] * 2
    bars = [axis.get_ylabel() for axis in drawn[0].axes[len(panels) :]]
    assert bars == ["last layer that a patch takes part in"] * lived


def merging() -> PatchLives:
    """Of 2x2 patches in four colours, the first went into the last one, and the others are as they were."""
    colours = np.array([[0, 10, 20], [40, 30, 20], [100, 100, 100], [200, 0, 6]], dtype=np.uint8)
    pixels = colours.reshape(2, 2, 3).repeat(8, axis=0).repeat(8, axis=1)
    alive = {1: np.array([False, True, True, True])}
    groups = np.array([3, 1, 2, 3])
    return PatchLives(
        name="x", pixels=pixels, grid=(2, 2), life=None, alive=alive, fused={1: 0}, fate="merged", groups=groups
    )


def corners(pixels: np.ndarray) -> list[list[int]]:
    """The colours of 2x2 patches, each of which has but one."""
    patches = [pixels[y : y + 8, x : x + 8].reshape(-1, 3) for y in (0, 8) for x in (0, 8)]
    assert all((patch == patch[0]).all() for patch in patches)
    return [patch[0].tolist() for patch in patches]


def test_a_merged_patch_has_the_colour_of_its_group_and_the_others_stay_as_they_are(tmp_path, monkeypatch):
    assert corners(kept(merging(), 1)) == [[100, 5, 13], [40, 30, 20], [100, 100, 100], [200, 0, 6]]
    drawn = []
    monkeypatch.setattr("lifedeploy.viz.lives.save", lambda made, path: drawn.append(made))
    draw_lives([merging()], Schedule.from_counts(4, 2, (3,), (1,)), tmp_path / "x.png")
    assert drawn[0].get_supxlabel() == "in the colour of its group: merged"
    _, left, groups = drawn[0].axes
    assert (left.get_title(), left.get_xlabel()) == ("after layer 1", "3 tokens of 4 patches")
    assert (groups.get_title(), groups.get_xlabel()) == ("groups", "3 groups, the largest of 2 patches")
    shown = corners(groups.images[0].get_array())
    assert shown == [[100, 5, 13], [40, 30, 20], [100, 100, 100], [100, 5, 13]]


def test_groups_have_borders_where_they_meet():
    everywhere = borders(merging(), np.ones(4, dtype=bool))
    assert sorted(everywhere) == [
        ((-0.5, 7.5), (7.5, 7.5)),
        ((7.5, -0.5), (7.5, 7.5)),
        ((7.5, 7.5), (7.5, 15.5)),
        ((7.5, 7.5), (15.5, 7.5)),
    ]
    # Among patches that are as they were, there is nothing to see.
    assert sorted(borders(merging(), ~merging().alive[1])) == sorted(everywhere)[:2]
    together = PatchLives(**{**vars(merging()), "groups": np.zeros(4, dtype=np.int64)})
    assert borders(together, np.ones(4, dtype=bool)) == []


def test_borders_are_seen_in_the_picture():
    made = Figure(figsize=(2, 2), dpi=160)
    FigureCanvasAgg(made)
    axis = made.add_axes((0, 0, 1, 1))
    axis.axis("off")
    draw_groups(axis, merging())
    made.canvas.draw()
    pixels = np.asarray(made.canvas.buffer_rgba())[..., :3]
    assert pixels[160, 40:120].min() > 120  # nearly white, between the first patch and the one below
    assert pixels[80, 80].tolist() == [100, 5, 13]


def test_a_patch_that_waits_is_dim_and_not_as_dark_as_a_dropped_one(tmp_path, monkeypatch):
    dropped = image("x", lived=False)
    parked = PatchLives(**{**vars(dropped), "fate": "parked"})
    away = np.kron(~dropped.alive[2].reshape(4, 4), np.ones((8, 8), dtype=bool))
    dark, dim = (kept(one, 2)[away].mean() / one.pixels[away].mean() for one in (dropped, parked))
    assert dark < 0.16 and 0.4 < dim < 0.6
    assert np.array_equal(kept(parked, 2)[~away], parked.pixels[~away])
    drawn = []
    monkeypatch.setattr("lifedeploy.viz.lives.save", lambda made, path: drawn.append(made))
    draw_lives([parked], SCHEDULE, tmp_path / "x.png")
    assert drawn[0].get_supxlabel() == "dim: waits, and comes back"
    assert [axis.get_xlabel() for axis in drawn[0].axes[1:]] == ["11 of 16 patches, 5 wait", "6 of 16 patches, 10 wait"]


@pytest.mark.parametrize(
    ("layers", "drawn"),
    [
        ([], []),
        ([4], [4]),
        ([2, 5, 7, 9], [2, 5, 7, 9]),
        ([2, 3, 4, 5, 6], [3, 4, 5, 6]),
        (list(range(1, 13)), [3, 6, 9, 12]),
        (list(range(1, 25)), [6, 12, 18, 24]),
    ],
)
def test_of_many_layers_four_are_drawn_and_the_last_one_is_among_them(layers, drawn):
    assert spaced(layers) == drawn


def test_a_long_caption_goes_on_in_the_next_line(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("lifedeploy.viz.lives.save", lambda made, path: drawn.append(made))
    halted = PatchLives(**{**vars(image("x")), "fate": "halted", "alive": {}, "fused": {}})
    draw_lives([halted], Schedule.dense(16, 4), tmp_path / "x.png", note="a word " * 20)
    made = drawn[0]
    lines = made.get_supxlabel().split("\n")
    assert len(lines) > 1 and lines[-1].endswith("its last layer, then it halts and is masked")
    made.draw_without_rendering()
    assert made._supxlabel.get_window_extent().x1 < made.bbox.x1


def test_every_method_has_a_colour_of_its_own_and_the_built_in_ones_keep_theirs():
    assert [colour(name) for name in ("dense", "first-k", "life")] == ["#8c8c8c", "#6baed6", "#1b6ca8"]
    others = {colour(name) for name in ("evit", "tome", "dynamicvit", "outside")}
    assert len(others) > 1 and not others & {"#8c8c8c", "#6baed6", "#1b6ca8"}
    assert colour("evit") == colour("evit")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("", [""]),
        ("life", ["life"]),
        ("life-r0.7-64x64px-single-hard-distill", ["life-r0.7-64x64px-", "single-hard-distill"]),
        ("x" * 60, ["x" * 24, "x" * 24, "x" * 12]),
        (
            "aaaaaaaaaaaaa bbbbbbbbbbbbb ccccccccccccc ddddddddddddd",
            ["aaaaaaaaaaaaa bbbbbbbbbb", "bbb ccccccccccccc dddddd", "ddddddd"],
        ),
    ],
)
def test_a_name_is_in_short_lines(name, lines):
    assert in_lines(name).split("\n") == lines


def test_of_a_name_too_long_beginning_and_end_are_in_three_lines():
    lines = in_lines(f"first-{'long-' * 100}last").split("\n")
    assert len(lines) == 3 and max(map(len, lines)) <= 24
    assert lines[0].startswith("first-") and lines[-1].endswith("last")


def test_a_name_keeps_off_lines():
    """A line passes where a name would be, to the right of its point: it is to the left then, which is as near."""
    boxes = []
    for lines in ([], [[(5.2, 5.4), (9, 5.4)]]):
        made = Figure(figsize=(6, 4))
        FigureCanvasAgg(made)
        axis = made.add_subplot(xlim=(0, 10), ylim=(0, 10))
        place(axis, [Named(x=5, y=5, low=5, high=5, text="a name", colour="black")], lines)
        boxes.append(axis.texts[0].get_window_extent())
    point, passing = axis.transData.transform([(5, 5), (5.2, 5.4)])
    assert boxes[0].x0 > point[0] and boxes[0].y0 < passing[1] < boxes[0].y1
    assert boxes[1].x1 < point[0]


def test_equal_numbers_give_equal_files(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for ending in (".png", ".svg", ".pdf"):
            save(figure("name"), tmp_path / folder / f"x{ending}")
        draw_lives([image("name")], SCHEDULE, tmp_path / folder / "lives.svg")
        time.sleep(1.1 if folder == "one" else 0)  # the next second
    for one in sorted((tmp_path / "one").iterdir()):
        assert one.read_bytes() == (tmp_path / "two" / one.name).read_bytes(), one.name
        assert not re.search(rb"<dc:date>|/CreationDate", one.read_bytes())


def test_dollars_are_text_and_powers_of_ten_are_mathematics():
    made = figure("cost $5 or $10^2$")
    with as_text(made):
        made.draw_without_rendering()
    title = made.axes[0].title
    assert (title.get_text(), title.get_parse_math()) == ("cost $5 or $10^2$", False)
    labels = made.axes[0].yaxis.get_ticklabels()
    assert all(label.get_parse_math() for label in labels)
    assert any("10^{" in label.get_text() for label in labels)


@settings(max_examples=25)
@given(st.text(max_size=300))
def test_no_text_ends_a_drawing(text):
    made = Figure(figsize=(1, 1))
    FigureCanvasAgg(made)
    made.subplots().set_title(text)
    with as_text(made):
        made.draw_without_rendering()
    for line in made.axes[0].title.get_text().split("\n"):
        assert line.isprintable() and len(line) <= 240


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"what was there")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere.tmp")

    made = figure("x")
    monkeypatch.setattr(made, "savefig", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
        save(made, path)
    monkeypatch.setattr(made, "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(OSError, match=rf"division by zero: '{re.escape(str(path))}'"):
        save(made, path)
    assert [found.read_bytes() for found in tmp_path.iterdir()] == [b"what was there"]


@pytest.mark.parametrize("name", ["x", "x.gif", "x.eps", "x.\x1b[31m"])
def test_other_formats_are_refused(name):
    with pytest.raises(UsageError, match="is no plot file: its ending must be one of") as refused:
        check_format(Path(name))
    assert isinstance(refused.value, LifedeployError) and refused.value.message.isprintable()


def test_the_settings_of_the_current_folder_are_not_obeyed(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: True\nsavefig.pad_inches: 3\n")
    code = """
        import os
        from lifedeploy.viz import style
        style.load_matplotlib()
        import matplotlib
        assert not matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["savefig.pad_inches"] < 1
        print(os.getcwd())
        """
    command = [sys.executable, "-P", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "odd"})
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path)), done.stderr
