"""The grid over all methods: what its cells are, which are done, what its page says; and what is carried to a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.common import Results
from benchmarks.real import front, grid, pack
from benchmarks.real.grid import Cell, dense, done
from benchmarks.real.grid_page import markdown
from benchmarks.real.prepare import WEIGHTS
from benchmarks.real.recipes import RECIPES, TRIED, UNSCALED
from benchmarks.real.training import BACKBONE, RATES, training_minutes
from lifedeploy import methods
from lifedeploy.errors import UsageError
from lifedeploy.model import backbones
from lifedeploy.model.raw import read_header, read_tensors, write_tensors
from lifedeploy.recipe import LIFEDEPLOY, PUBLISHED
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.log import LogRow
from lifedeploy.training.recipes import settled


def test_every_method_that_trains_has_its_cells_and_each_is_there_once():
    cells = grid.grid([0, 1, 2], "keep-rate")
    assert len({(cell.name, cell.seed) for cell in cells}) == len(cells)
    trained = {name for name in methods.names(methods.SLIMMED) if methods.get(name).stages}
    assert {cell.method for cell in cells} - {"dense"} == trained - {"random"}
    for name in grid.OFTEN:
        for seed in (0, 1, 2):
            for rate in RATES:
                assert Cell(method=name, seed=seed, rate=rate) in cells
                assert Cell(method=name, seed=seed, rate=rate, recipe=LIFEDEPLOY) in cells
        assert Cell(method="tome", seed=seed) in cells  # in a budget of its own, too
    # Each process of its own seed: together they do what one does.
    apart = [cell for seed in (0, 1, 2) for cell in grid.grid([seed], "keep-rate")]
    assert sorted(map(repr, apart)) == sorted(map(repr, cells))
    assert all(cells.index(dense(cell.seed)) <= index for index, cell in enumerate(cells))


def test_what_a_cell_asks_for_is_a_run_of_two_epochs():
    for cell in grid.grid([0], "keep-rate")[1:]:
        words = cell.options(224)
        recipe = words[words.index("--recipe") + 1]
        assert recipe == (PUBLISHED if cell.recipe in (PUBLISHED, UNSCALED) else LIFEDEPLOY)
        assert settled({"recipe": recipe, "method": cell.method}, None).total_epochs == 2
        assert ("--rho" in words) == (cell.rate is not None)
    assert "--epochs" in dense(0).options(224)


def test_tome_in_a_budget_of_its_own_merges_as_much_as_at_the_lower_keep_rate_and_earlier(tmp_path, monkeypatch):
    cell, even = Cell(method="tome", seed=0), Cell(method="tome", seed=0, rate=0.5)
    assert cell.name == "tome published" and cell.options(224)[-2:] == ["--r=18", "--inflect=-1.0"]
    monkeypatch.setattr(grid, "train", lambda *_: {})
    asked = []
    monkeypatch.setattr(grid, "score", lambda wanted, *_: asked.append(wanted) or scores(90.0))
    for each in (cell, even):
        assert list(grid.measure(each, 224, tmp_path)["scores"]) == ["tome" if each is cell else "tome 0.5"]
    sized = backbones.sized(BACKBONE, image_size=(224, 224), num_classes=2)
    tome = methods.get("tome")
    early, evenly = (sized.schedule(tome, each.keep_rate, each.options or {}).tokens for each in asked)
    assert early[-1] == pytest.approx(evenly[-1], abs=10) and early[6] < evenly[6]


def test_unscaled_is_a_published_rate_as_it_is_printed_whatever_the_batch():
    cells = [cell for cell in grid.grid([0], "keep-rate") if cell.recipe == UNSCALED]
    assert {cell.method for cell in cells} == {"evit", "topk"}
    for cell in cells:
        printed = methods.get(cell.method).recipe["backbone_lr"]
        words = ["--method", cell.method, "--recipe", "published", "--backbone-lr", "2e-5", "--rho", f"{cell.rate:g}"]
        assert cell.options(224) == words and float("2e-5") == printed
        assert settled({"method": cell.method, "batch": 32}, None).backbone_lr == printed / 16


def test_what_ours_was_chosen_among_is_run_as_other_cells_are():
    cells = grid.grid([0, 1], "keep-rate")
    for name in TRIED:
        assert [cell.seed for cell in cells if cell.recipe == name] == [0, 0, 1, 1]
    assert Cell(method="life", rate=0.5, seed=0, recipe="two-stages-3e-6").options(224) == [
        "--method", "life", "--recipe", "lifedeploy", "--no-single-stage", "--backbone-lr", "3e-6", "--rho", "0.5",
    ]  # fmt: skip
    assert len({recipe.title for recipe in RECIPES.values()}) == len(RECIPES)


def test_recipes_are_what_the_command_line_takes_and_change_what_they_are_called_by(lifedeploy, monkeypatch):
    changes = {
        "ramp": {"keep_ramp": (0.0333, 0.3667)},
        "1e-5": {"backbone_lr": 1e-5, "head_lr": 1e-5},
        "5e-6": {"backbone_lr": 5e-6, "head_lr": 5e-6},
        "two-stages": {"single_stage": False},
        "two-stages-3e-6": {"single_stage": False, "backbone_lr": 3e-6, "head_lr": 3e-6},
    }
    assert set(changes) == set(TRIED)
    asked: list[TrainConfig] = []

    def note(request, *_):
        asked.append(request.config)
        raise UsageError("enough")

    monkeypatch.setattr("lifedeploy.workflows.train.train", note)
    for name, changed in changes.items():
        ended = lifedeploy(
            "train", *Cell(method="life", rate=0.5, seed=0, recipe=name).options(224), "--data", "nowhere"
        )
        assert ended.code == 2 and ended.lines == ["error: enough"]
        ours = settled({"recipe": LIFEDEPLOY, "keep_rate": 0.5, "data": "nowhere"}, None)
        assert asked.pop() == ours.but(**changed)


def test_at_equal_work_keep_rates_differ_and_lives_do_not():
    rates = {name: Cell(method=name, seed=0, rate=0.7, at="macs").asked_rate(224) for name in grid.OFTEN}
    assert rates["life"] == 0.7 and 0.7 < rates["evit"] < 0.8 and rates["tome"] != 0.7
    assert Cell(method="evit", seed=0, rate=0.7, at="macs").name == "evit 0.7 published macs"


def scores(precision: float) -> dict[str, float]:
    return {"accuracy": 88.0, "average_precision": precision, "loss": 0.3, "gmacs": 4.0}


def run(precision: float, name: str) -> dict[str, Any]:
    return {"training_minutes": 5.0, "precision": "bf16", "peak_mib": 2000.4, "scores": {name: scores(precision)}}


def whole(precision: float) -> dict[str, Any]:
    free = {rate: {"evit": scores(precision - 1)} for rate in ("0.7", "0.5")}
    return {"training_minutes": 9.0, "precision": "bf16", "dense": scores(precision), "untrained": free}


def test_a_run_that_stood_still_took_no_longer():
    def line(kind: str, stage: str, step: int, speed: float) -> LogRow:
        return LogRow(kind=kind, stage=stage, epoch=1, step=step, lr=0.0, loss=0.0, accuracy=0.0, images_per_s=speed)

    rows = [line("train", "one", 10, 8.0), line("train", "one", 20, 0.1), line("train", "one", 30, 8.0)]
    rows += [line("val", "one", 30, 0.0), line("train", "two", 40, 4.0), line("val", "two", 40, 0.0)]
    assert training_minutes(rows) == pytest.approx((30 * 32 / 8 + 10 * 32 / 4) / 60)


MACHINE = {"cpu": "One", "features": [], "cores": 2, "gpu": [], "versions": {"torch": "2", "timm": "1"}}


def test_a_cell_is_held_against_the_dense_model_that_it_was_trained_on():
    results = {
        "224px": {
            "One": {"machine": MACHINE, "cells": {"dense / seed 0": whole(91.0), "dense / seed 1": whole(90.0)}},
            "Two": {
                "machine": MACHINE,
                "cells": {
                    "dense / seed 0": whole(89.0),
                    "evit 0.7 published / seed 0": run(88.5, "evit 0.7"),
                    "evit 0.7 published / seed 1": run(90.5, "evit 0.7"),
                    "avit published / seed 0": run(80.0, "avit") | {"scores": {"avit": scores(80.0)}},
                },
            },
        }
    }
    lines = markdown(results).splitlines()
    trained = next(line for line in lines if line.startswith("| EViT | published |"))
    # -0.5 against its own machine's 89, and +0.5 against the one dense model of seed 1 that there is.
    assert trained.split(" | ")[2:5] == ["2", "89.50 ± 1.41", "+0.00 [-0.50, +0.50]"]
    assert trained.endswith("| 4.00 | 5.0 | 2000 |")
    assert any(line.startswith("| A-ViT | published | 1 | 80.00 | -9.00") for line in lines)
    assert sum(line.startswith("| EViT | no training |") for line in lines) == 2
    assert done(results, "224px", Cell(method="evit", seed=1, rate=0.7)) and not done(results, "112px", dense(0))
    assert not done(results, "224px", Cell(method="evit", seed=1, rate=0.7, recipe=LIFEDEPLOY))
    assert Cell(method="evit", seed=1, rate=0.7).recipe == PUBLISHED


def test_rows_of_another_machine_come_beside_those_of_this_one(tmp_path):
    here, there = Results(tmp_path / "here" / "grid.json"), Results(tmp_path / "there" / "grid.json")
    for results, machine, cell in ((here, "One", "dense / seed 0"), (there, "Two", "dense / seed 1")):
        content = {"224px": {machine: {"machine": MACHINE, "cells": {cell: whole(90.0)}}}}
        results.update(lambda found, content=content: found.update(content))
    grid.main(["--out", str(tmp_path), "--results", str(here.path), "--add", str(there.path)])
    assert set(here.read()["224px"]) == {"One", "Two"} and done(here.read(), "224px", dense(1))
    assert "1 cells on Two" in (tmp_path / "here" / "GRID.md").read_text()


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "prepared"
    generator = np.random.default_rng(0)
    for half, name in (("train", "good"), ("val", "defective")):
        (folder / "images" / half / name).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (300, 300), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / half / name / f"{number}.png")
    write_tensors(folder / WEIGHTS, {"w": torch.randn(40, 3), "n": torch.tensor([3])}, {"image_size": "224"})
    return folder


def test_what_is_packed_is_half_as_large_and_reads_the_same(prepared, tmp_path):
    pack.main(["--out", str(prepared), "--packed", str(tmp_path / "packed")])
    packed = tmp_path / "packed"
    before, after = read_tensors(prepared / WEIGHTS), read_tensors(packed / WEIGHTS)
    assert after["w"].dtype == torch.float16 and torch.equal(after["n"], before["n"])
    torch.testing.assert_close(after["w"].float(), before["w"], rtol=1e-3, atol=1e-3)
    assert read_header(packed / WEIGHTS)["image_size"] == "224"
    names = sorted(path.relative_to(packed).as_posix() for path in (packed / "images").rglob("*.jpg"))
    assert names == [f"images/{half}/{n}.jpg" for half in ("train/good", "val/defective") for n in range(3)]
    with Image.open(packed / names[0]) as image:
        assert image.size == (224, 224)
    with pytest.raises(SystemExit):
        pack.main(["--out", str(prepared), "--packed", str(packed)])  # it is there already


def test_photographs_go_in_the_best_quality_that_fits(prepared):
    paths = sorted((prepared / "images").rglob("*.png"))
    best, images = pack.fitting(paths, 10**9)
    assert best == max(pack.QUALITIES)
    size = sum(map(len, images.values()))
    less, smaller = pack.fitting(paths, size // 2)
    assert less < best and sum(map(len, smaller.values())) <= size // 2
    with pytest.raises(SystemExit, match="6 photographs do not fit into"):
        pack.fitting(paths, 1000)


def test_weights_beyond_half_precision_are_refused(tmp_path):
    write_tensors(tmp_path / "w.safetensors", {"w": torch.tensor([1e6])}, {})
    with pytest.raises(SystemExit, match=r"w of .* does not fit half precision"):
        pack.packed_weights(tmp_path / "w.safetensors", tmp_path / "half.safetensors")


# --- accuracy against speed -------------------------------------------------------------------------------------


def test_the_better_recipe_is_taken_and_what_knows_no_keep_rate_is_asked_at_each():
    cells = {
        "evit 0.7 published / seed 0": run(88.0, "evit 0.7") | {"base": scores(90.0)},
        "evit 0.7 published / seed 1": run(92.0, "evit 0.7") | {"base": scores(93.0)},
        "evit 0.7 lifedeploy / seed 0": run(89.5, "evit 0.7") | {"base": scores(90.0)},
        "ia-red2 published / seed 0": run(85.0, "ia-red2 0.7") | {"base": scores(90.0)},
        "avit published / seed 0": run(80.0, "avit") | {"base": scores(90.0)},
    }
    cells["avit published / seed 0"]["scores"]["avit-ranked 0.5"] = scores(70.0)
    cells["dense / seed 0"] = whole(90.0) | {"base": scores(90.0)}  # whose file EViT reads as it is
    found = {point.name: point for point in front.points(cells)}
    assert found.pop("evit-0.5").run(0) == dense(0)
    assert set(found) == {"evit-0.7", "ia-red2-0.7", "avit", "avit-ranked-0.5"}
    evit = found["evit-0.7"]
    assert (evit.recipe, evit.mean, evit.run(2)) == (
        LIFEDEPLOY,
        -0.5,
        Cell(method="evit", seed=2, rate=0.7, recipe=LIFEDEPLOY),
    )
    assert found["avit-ranked-0.5"].run(1) == Cell(method="avit", seed=1) and found["avit-ranked-0.5"].mean == -20.0
    assert found["ia-red2-0.7"].run(0).name == "ia-red2 published"


def test_later_seeds_change_what_is_made_of_a_contest_and_not_its_speeds(tmp_path):
    machine = {
        "machine": MACHINE,
        "cells": {"dense / seed 0": whole(90.0), "life 0.7 published / seed 0": run(90.5, "life 0.7")},
    }
    (tmp_path / "grid.json").write_text(json.dumps({"224px": {"One": machine}}))
    speeds = {"openvino bf16": {"dense": 100.0, "life-0.7": 150.0, "evit-0.7": 140.0, "evit-0.5": 160.0}}
    row = {"engine": "openvino", "precision": "bf16", "name": "life-0.7", "method": "life", "images_per_s": 150.0}
    choice = row | {"top1": 0.9, "average_precision": 0.9, "pareto": True}
    precisions = {"openvino bf16": {"dense": 90.0, "life-0.7": 89.9, "evit-0.7": 89.0, "evit-0.5": 87.5}}
    kinds = {"dense": "dense", "life-0.7": "life", "evit-0.7": "evit", "evit-0.5": "evit"}
    old: dict[str, Any] = {"command": "", "date": "2026", "machine": MACHINE, "seed": 0, "batch": 8}
    old["recipes"] = {"life-0.7": "published", "evit-0.7": "no training"}
    old |= {"image_size": 224, "equal": {}, "warnings": ["without tome"]}
    old |= {"choices": [choice], "speeds": speeds, "precisions": precisions, "methods": kinds}
    (tmp_path / "front.json").write_text(json.dumps(old))
    words = ["--again", "--results", str(tmp_path / "grid.json"), "--page", str(tmp_path)]
    front.main(words)
    first = json.loads((tmp_path / "front.json").read_text())["equal"]["openvino bf16"]
    assert [(found["method"], found["seeds"]["life"], found["seeds"]["other"]) for found in first] == [
        ("evit", 0.5, pytest.approx(-1.0))
    ]
    machine["cells"] |= {"dense / seed 1": whole(92.0), "life 0.7 published / seed 1": run(91.5, "life 0.7")}
    (tmp_path / "grid.json").write_text(json.dumps({"224px": {"One": machine}}))
    front.main(words)
    again = json.loads((tmp_path / "front.json").read_text())
    assert "\n- without tome\n" in (tmp_path / "FRONT.md").read_text()
    assert again["equal"]["openvino bf16"][0]["seeds"]["life"] == 0.0 and again["speeds"] == speeds
    # In the engine: from 89.0 at 1/140 s to 87.5 at 1/160 s, at 1/150 s.
    line = "| openvino bf16 | 0.7 | evit | 150.0 | -0.10 | -1.80 | +1.70 | 2 | +0.00 | -1.00 | +1.00 |"
    assert line in (tmp_path / "FRONT.md").read_text()
    assert (tmp_path / "accuracy-against-speed.png").stat().st_size > 10_000
    with pytest.raises(SystemExit):
        front.main(["--page", str(tmp_path)])
    page = (tmp_path / "FRONT.md").read_text()
    machine["cells"]["life 0.7 lifedeploy / seed 0"] = run(91.0, "life 0.7")  # of which there is no engine
    (tmp_path / "grid.json").write_text(json.dumps({"224px": {"One": machine}}))
    with pytest.raises(SystemExit, match=r"engine of life-0\.7 is by recipe published, and lifedeploy is better now"):
        front.main(words)
    assert (tmp_path / "FRONT.md").read_text() == page


def test_between_two_keep_rates_a_method_is_on_a_straight_line_in_time():
    known = [(100.0, 0.0), (200.0, -1.0), (400.0, -3.0)]  # 10, 5 and 2.5 ms an image
    assert front.at_speed(known, 200.0) == pytest.approx(-1.0)
    assert front.at_speed(known, 1 / 0.0075) == pytest.approx(-0.5)
    assert front.at_speed(known, 1 / 0.00375) == pytest.approx(-2.0)
    assert front.at_speed(known, 500.0) is None and front.at_speed(known, 99.0) is None


def test_lives_are_held_against_each_other_method_at_their_own_speed():
    chosen = [
        front.Point("life", 0.7, LIFEDEPLOY, {0: -0.1}),
        front.Point("evit", 0.7, PUBLISHED, {0: -1.0}),
        front.Point("avit", None, PUBLISHED, {0: -9.0}),
    ]
    speeds = {"life-0.7": 1 / 0.0075, "evit-0.7": 200.0, "avit": 90.0, "dense": 100.0}
    avit, evit = front.equal(chosen, speeds, {"life-0.7": 90.2, "evit-0.7": 89.4, "avit": 80.0, "dense": 90.0})
    assert (avit["method"], evit["method"]) == ("avit", "evit")
    assert avit["seeds"] == {"life": pytest.approx(-0.1), "other": None, "ahead": None}
    assert evit["seeds"] == pytest.approx({"life": -0.1, "other": -0.5, "ahead": 0.4})
    assert evit["engine"] == pytest.approx({"life": 0.2, "other": -0.3, "ahead": 0.5})


def test_the_front_is_what_nothing_is_both_faster_and_better_than():
    speeds, precisions = [3, 1, 2, 2, 1], [1, 3, 2, 1, 3]
    named = [dict(zip("abcde", values, strict=True)) for values in (speeds, precisions)]
    assert front.front(*named) == ["a", "b", "c", "e"]


def test_means_are_of_the_seeds_that_both_have():
    life = front.Point("life", 0.7, LIFEDEPLOY, {0: -0.1, 1: 0.5})
    evit = front.Point("evit", 0.7, PUBLISHED, {0: -1.0, 2: -2.0})
    random = front.Point("random", 0.7, PUBLISHED, {2: -9.0})
    speeds = {"life-0.7": 150.0, "evit-0.7": 150.0, "random-0.7": 150.0, "dense": 100.0}
    found = front.equal([life, evit, random], speeds, dict.fromkeys(speeds, 90.0))
    assert found[0]["seeds"] == pytest.approx({"life": -0.1, "other": -1.0, "ahead": 0.9})
    assert (found[0]["over"], found[1]["over"]) == ([0], [])
    assert found[1]["seeds"] == {"life": None, "other": None, "ahead": None}
