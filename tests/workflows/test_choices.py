"""Engines beside each other: one contest for all, one base, and accuracy beside speed."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.measure import Stop, measure
from lifedeploy.engines import fake, registry
from lifedeploy.engines.base import PrecisionPlan
from lifedeploy.engines.fake import Fake
from lifedeploy.errors import DataError, ImageError, UsageError
from lifedeploy.files import write_json
from lifedeploy.viz.plots import plot_bench
from lifedeploy.workflows import bench as bench_workflow
from lifedeploy.workflows.bench import BenchReport, BenchRequest, bench
from lifedeploy.workflows.evaluate import EvaluateRequest, evaluate
from tests.workflows.test_build_and_bench import QUICK, Clock
from tests.workflows.test_evaluate import make_images, spoil


class Precise(Fake):
    """In BF16 it takes half the time."""

    @classmethod
    def plan(cls, requested):
        return PrecisionPlan(requested)

    def _open(self):
        specs = super()._open()
        self.seconds_per_image /= {"fp32": 1, "bf16": 2}[self.options.precision]
        return specs


@pytest.fixture
def precise(monkeypatch):
    """The fake engine knows BF16, and time passes only while it works."""
    clock = Clock()
    monkeypatch.setattr(fake, "time", clock)
    monkeypatch.setitem(registry._ENGINES, "fake", f"{__name__}:Precise")
    monkeypatch.setattr("lifedeploy.targets.contest.measure", partial(measure, clock=clock))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_images(tmp_path / "data")


def run(*engines: str, say=lambda text: None, **changes: object) -> BenchReport:
    request = BenchRequest(engines=engines, batches=(2,), stop=QUICK, memory=False, threads=1)
    return bench(replace(request, **changes), Workspace(Path("artifacts")), say)


def test_ratios_over_the_base_go_across_engines(precise, workspace):
    report = run("fake:fp32", "fake:bf16")
    rows = {(row.subject.precision, row.subject.method): row for row in report.rows}
    assert [row.subject.precision for row in report.rows] == ["fp32"] * 3 + ["bf16"] * 3
    assert {row.base for row in report.rows} == {"fake fp32 dense"}
    life, bound = rows["bf16", "life"], rows["bf16", "life"].subject.mac_ratio
    assert life.speedup == pytest.approx(bound)  # over dense in BF16
    assert life.over_base == pytest.approx(2 * bound)
    assert life.over_base_low == pytest.approx(life.over_base) == life.over_base_high
    assert rows["bf16", "dense"].over_base == pytest.approx(2)
    assert rows["fp32", "dense"].over_base == 1
    assert rows["fp32", "life"].over_base == rows["fp32", "life"].speedup
    assert {row.base for row in run("fake:bf16", "fake:fp32").rows} == {"fake bf16 dense"}


def test_all_take_turns_under_names_of_their_own_with_a_budget_for_each_engine(precise, workspace, monkeypatch):
    contests = []

    def watched(contenders, stop, **more):
        contests.append(([contender.name for contender in contenders], stop.budget_s))
        return measure(contenders, stop, **more)

    monkeypatch.setattr("lifedeploy.targets.contest.measure", watched)
    run("fake:fp32", "fake:bf16", batches=(1, 2), stop=Stop(budget_s=0.01, min_rounds=3))
    methods = ("dense", "first-k", "life")
    names = [f"fake {precision} {method}" for precision in ("fp32", "bf16") for method in methods]
    assert contests == [(names, 0.02)] * 2


def test_rows_of_an_engine_stay_together(precise, workspace):
    report = run("fake:fp32", "fake:bf16", batches=(1, 2), modes=("latency", "throughput"))
    order = [(row.subject.precision, row.setting.mode, row.setting.batch) for row in report.rows[::3]]
    settings = [("latency", 1), ("latency", 2), ("throughput", 1), ("throughput", 2)]
    assert order == [(precision, *setting) for precision in ("fp32", "bf16") for setting in settings]


def test_what_comes_to_the_same_is_measured_once_and_built_once(workspace):
    said: list[str] = []
    report = run("fake", "fake:bf16", "fake:fp16", say=said.append)
    assert [row.subject.method for row in report.rows] == ["dense", "first-k", "life"]
    assert report.warnings == (
        "fake and fake:bf16 both are fake fp32 here: measured once (the fake engine knows FP32 only: not BF16)",
        "fake and fake:fp16 both are fake fp32 here: measured once (the fake engine knows FP32 only: not FP16)",
    )
    assert set(report.warnings) <= set(said)
    assert report.to_dict()["warnings"] == list(report.warnings)
    assert Artifact.read(next(workspace.glob("*/fake-fp32/model.json"))).manifest.engine.requested == "fp32"


def test_a_graph_of_another_tool_is_measured_once_in_its_own_precision(workspace, tmp_path):
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(next(workspace.glob("*/model.onnx")).read_bytes())
    report = run("onnxruntime", "onnxruntime:fp16", "openvino", model=foreign)
    assert [(row.subject.engine, row.subject.precision) for row in report.rows] == [
        ("onnxruntime", "fp32"),
        ("openvino", "fp32"),
    ]
    assert len(report.warnings) == 1
    assert {(row.base, row.over_base, row.speedup) for row in report.rows} == {(None, None, None)}


def test_choices_are_as_right_as_evaluate_says(workspace, data):
    engines = ("onnxruntime", "openvino", "fake")
    report = run(*engines, data=str(data), limit=12, batches=(2, 3))
    folders = {engine: next(workspace.glob(f"*/{engine}-fp32")) for engine in engines}
    keys = [(engine, method) for engine in engines for method in ("dense", "life")]
    models = tuple(folders[engine] / f"{'model' if method == 'life' else method}.json" for engine, method in keys)
    alone = evaluate(
        EvaluateRequest(models=models, data=str(data), limit=12, batch=3, threads=1), Workspace(Path("artifacts"))
    )
    assert len(report.choices) == 12  # first-k is no choice
    rows = {(row.subject.engine, row.subject.method, row.setting.batch): row for row in report.rows}
    shared = {(pair.first, pair.second): pair for pair in alone.pairs}
    for choice in report.choices:
        number = keys.index((choice.row.subject.engine, choice.row.subject.method))
        accuracy, row = (
            alone.rows[number].accuracy,
            rows[choice.row.subject.engine, choice.row.subject.method, choice.row.setting.batch],
        )
        assert choice.row.subject.precision == alone.rows[number].precision == "fp32"
        assert (choice.images, choice.top1, choice.standard_error, choice.average_precision) == (
            accuracy.images,
            accuracy.top1,
            accuracy.standard_error,
            accuracy.average_precision,
        )
        assert choice.same_top1 == (shared[1, number + 1].agreement if number else None)
        others_life = choice.row.subject.method == "life" and number > 1
        assert choice.kept_overlap == (shared[2, number + 1].overlap if others_life else None)
        assert (choice.row.images_per_s, choice.row.base, choice.row.over_base) == (
            row.images_per_s,
            row.base,
            row.over_base,
        )
        assert (choice.row.over_base_low, choice.row.over_base_high) == (row.over_base_low, row.over_base_high)
    assert {choice.kept_overlap for choice in report.choices if choice.row.subject.engine == "openvino"} == {None, 1.0}
    assert report.images == alone.data | {"split": ""}
    for batch in (2, 3):
        fastest = max(
            (choice for choice in report.choices if choice.row.setting.batch == batch),
            key=lambda choice: choice.row.images_per_s,
        )
        assert fastest.pareto


def test_json_keeps_its_names(precise, workspace, data, tmp_path):
    write_json(tmp_path / "b.json", run("fake:fp32", "fake:bf16", data=str(data)).to_dict())
    report = json.loads((tmp_path / "b.json").read_text())
    over_base = {"base", "over_base", "over_base_low", "over_base_high"}
    assert over_base <= set(report["rows"][0])
    promised = {"model", "method", "name", "engine", "precision", "mode", "streams", "batch", "copies", "images_per_s"}
    promised |= {"images", "top1", "standard_error", "average_precision", "same_top1", "kept_overlap", "pareto"}
    assert {frozenset(choice) for choice in report["choices"]} == {frozenset(promised | over_base)}
    assert [(one["precision"], one["method"]) for one in report["choices"]] == [
        ("bf16", "life"),
        ("bf16", "dense"),
        ("fp32", "life"),
        ("fp32", "dense"),
    ]
    assert report["images"] == {
        "source": str(data),
        "images": 15,
        "classes": {"cat": 5, "cup": 5, "rocket": 5},
        "left_out": [],
        "split": "",
    }


def test_without_labelled_images_there_is_no_choice(workspace):
    report = run("fake")
    assert (report.choices, report.images) == ((), None)


def test_the_plot_has_a_panel_for_every_setting(precise, workspace, data, tmp_path):
    report = run("fake:fp32", "fake:bf16", data=str(data), batches=(1, 2))
    plot_bench(report, tmp_path / "b.svg")
    drawn = (tmp_path / "b.svg").read_text()
    for said in ("batch 1 -->", "batch 2 -->", "top-1, % -->", "fake bf16 life -->", "one standard error of 15 images"):
        assert said in drawn
    plot_bench(replace(report, choices=()), tmp_path / "without.svg")
    assert "top-1" not in (tmp_path / "without.svg").read_text()


def missing(data):
    return {"data": str(data / "nowhere")}


def unknown_classes(data):
    (data / "cup").rename(data / "mug")
    return {"data": str(data)}


def broken_image(data):
    spoil(data)
    return {"data": str(data)}


def no_such_split(data):
    return {"data": str(data), "split": "train.csv"}


def foreign_graph(data):
    (data.parent / "foreign.onnx").write_bytes(next(Path("artifacts").glob("*/model.onnx")).read_bytes())
    return {"data": str(data), "model": data.parent / "foreign.onnx", "engines": ("onnxruntime",)}


@pytest.mark.parametrize(
    ("spoilt", "kind", "said", "hint"),
    [
        (missing, DataError, "nowhere is no folder", "--data takes a folder"),
        (unknown_classes, DataError, "has 3 classes, and 1 of them are none of the 3 of .*: mug", "cat, cup, rocket"),
        (broken_image, ImageError, r"cup/2\.png is not an image", "lifedeploy evaluate --on-error skip"),
        (no_such_split, DataError, r"train\.csv is no split file", ""),
        (
            foreign_graph,
            UsageError,
            r"foreign\.onnx has no manifest, so how images are prepared",
            "lifedeploy evaluate",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_images_that_cannot_be_used_end_it_before_anything_is_measured(
    workspace, data, monkeypatch, spoilt, kind, said, hint
):
    def measured(*contenders, **options):
        pytest.fail("measured")

    monkeypatch.setattr("lifedeploy.targets.contest.measure", measured)
    changes = spoilt(data)
    with pytest.raises(kind, match=said) as caught:
        run("fake", **changes)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "val"}, "--split and --limit choose among labelled images, and there are none without --data"),
        ({"limit": 5}, "--split and --limit choose among labelled images"),
        ({"data": "data", "limit": 0}, "0 images are not allowed: at least 1 is needed"),
    ],
)
def test_requests_that_cannot_be_meant(changes, said):
    with pytest.raises(UsageError, match=said):
        BenchRequest(**changes)


def test_speed_is_not_bounded_by_what_an_evaluation_takes(workspace):
    report = run("fake", threads=2_000)
    assert {row.setting.threads for row in report.rows} == {2_000}
    assert bench_workflow.evaluation_of(BenchRequest(data="images", batches=(20_000,))).batch == 1_024
