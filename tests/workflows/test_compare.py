"""Methods against each other: made where they are missing, in one contest, measured once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.measure import measure
from lifedeploy.bench.report import Subject
from lifedeploy.engines import fake, registry
from lifedeploy.engines.fake import Fake
from lifedeploy.errors import EngineError, ParityError, UsageError, WeightsError
from lifedeploy.files import sha256
from lifedeploy.model import checkpoint
from lifedeploy.model.weights import ModelRequest, load
from lifedeploy.targets import held as holding
from lifedeploy.targets.reuse import exported_as
from lifedeploy.viz.comparison import _name, plot_comparison
from lifedeploy.workflows import compare as workflow
from lifedeploy.workflows.bench import BenchRequest
from lifedeploy.workflows.compare import CompareRequest, checkpoints, compare, workshop
from tests.conftest import TINY, TINY_SIZE
from tests.once import made_once, shared_folder
from tests.workflows.test_build_and_bench import QUICK, Clock
from tests.workflows.test_evaluate import make_images

NAMES = ("dense", "first-k", "life", "evit", "random")


class Sorting(Fake):
    """Takes time for every TopK too, as whoever scores more than once does."""

    per_sort = 0.002  # seconds an image

    def _open(self):
        specs = super()._open()
        self.seconds_per_image += self.per_sort * (
            3 if self.path.name.startswith("model.") and "evit" in str(self.path) else 0
        )
        return specs


@pytest.fixture
def clock(monkeypatch):
    """Time passes only while the engine works."""
    clock = Clock()
    monkeypatch.setattr(fake, "time", clock)
    monkeypatch.setattr("lifedeploy.targets.contest.measure", partial(measure, clock=clock))
    return clock


@pytest.fixture
def weights(weights_file):
    return str(weights_file)


@pytest.fixture(scope="session")
def exports(tmp_path_factory, exported, weights_file, tracing_once):
    """The suite's export, and those that a comparison adds to it. Read only."""

    def make(folder: Path) -> None:
        shutil.copytree(exported, folder / "artifacts")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lifedeploy.exporters.onnx.trace", tracing_once)
            compare(request(str(weights_file)), Workspace(folder / "artifacts"))

    return made_once(shared_folder(tmp_path_factory) / "compared", make) / "artifacts"


@pytest.fixture
def workspace(exports, tmp_path, monkeypatch, traced_once):
    """A copy of it, in which nothing has been measured."""
    shutil.copytree(exports, tmp_path / "artifacts")
    shutil.rmtree(tmp_path / "artifacts" / workflow.FOLDER)
    monkeypatch.chdir(tmp_path)
    return Workspace(Path("artifacts"))


def request(weights: str, *names: str, at: str = "keep-rate", fresh: bool = False, **bench: object) -> CompareRequest:
    how = BenchRequest(engines=("fake",), batches=(2,), stop=QUICK, memory=False, threads=1)
    return CompareRequest(
        model=ModelRequest(backbone=TINY, keep_rate=0.7, weights=weights, image_size=TINY_SIZE),
        methods=names or NAMES,
        at=at,
        bench=replace(how, **bench),
        fresh=fresh,
    )


def folders(workspace: Workspace) -> set[str]:
    return {path.parent.name for path in workspace.root.glob("*/model.json")}


# --- what comes out ---------------------------------------------------------------------------------------------


def test_all_methods_in_one_contest(clock, workspace, weights):
    report = compare(request(weights), workspace)
    rows = {row.subject.method: row for row in report.rows}
    assert list(rows) == list(NAMES)
    assert (report.backbone, report.at, report.like) == (TINY, "keep-rate", "life")
    for name, row in rows.items():
        gmacs = {model.method: model.gmacs for model in report.models}[name]
        assert row.subject.gmacs == gmacs
        assert row.speedup == pytest.approx(rows["dense"].subject.gmacs / gmacs)  # the fake engine takes time by work
        assert row.efficiency == pytest.approx(1.0)
        assert row.base == "fake fp32 dense"
    assert rows["life"].over_like is None
    assert rows["evit"].over_like == pytest.approx(rows["life"].subject.gmacs / rows["evit"].subject.gmacs)
    assert rows["evit"].over_like_low <= rows["evit"].over_like <= rows["evit"].over_like_high
    assert rows["dense"].subject.tokens == (16,)
    assert rows["life"].subject.tokens == (16, 11, 8, 5)
    assert rows["evit"].subject.tokens == (16, 13, 11, 9)
    assert {rows[name].subject.keep_rate for name in ("life", "evit", "random")} == {0.7}


def test_where_timm_s_own_model_takes_part_all_are_held_against_it_too(lifedeploy, clock, workspace, weights):
    line = ("--backbone", TINY, "--img-size", "64", "--weights", weights, "--engine", "fake", "--threads", "1")
    line += ("--methods", "dense,life,plain", "--batch", "2", "--budget", "1", "--mode", "latency")
    ended = lifedeploy("compare", *line, "--json", "t.json", "--markdown", "t.md")
    assert ended.code == 0, ended.err
    rows = {row["method"]: row for row in json.loads(Path("t.json").read_text())["rows"]}
    work = {name: row["gmacs"] for name, row in rows.items()}
    assert work["life"] < work["dense"] < work["plain"]
    for name, row in rows.items():
        assert row["base"] == "fake fp32 plain"
        assert row["over_base"] == pytest.approx(work["plain"] / work[name])  # the fake engine takes time by work
        assert row["speedup"] == pytest.approx(work["dense"] / work[name])
        assert row["over_plain"] == pytest.approx(work["plain"] / work[name])
    page = Path("t.md").read_text()
    (head,) = [text for text in page.splitlines() if text.startswith("| method |")]
    place = head.split(" | ").index("over plain")
    shown = {
        text.split(" | ")[0].strip("| "): text.split(" | ")[place] for text in page.splitlines() if text[:1] == "|"
    }
    assert shown["plain"] == "–" and shown["dense"].startswith(f"{work['plain'] / work['dense']:.2f} (")
    assert "dense computes prefix tokens alone in its last block" in " ".join(page.split())


@pytest.mark.parametrize("hint", [None, "--allow-unfused"])
@pytest.mark.parametrize("kind", [ParityError, EngineError])
@pytest.mark.parametrize("step", ["export", "build"])
def test_what_a_gate_or_an_engine_refuses_says_of_which_method_it_is(workspace, weights, monkeypatch, step, kind, hint):
    done = getattr(workshop, step)

    def refusing(request, *rest):
        if "evit" in str(request.model):
            raise kind("model on fake fp32 is not what it should be", hint=hint)
        return done(request, *rest)

    monkeypatch.setattr(workshop, step, refusing)
    if step == "export":
        shutil.rmtree(next(workspace.root.glob("*-evit-*")))
    with pytest.raises(kind) as told:
        compare(request(weights), workspace)
    assert told.value.message == "evit: model on fake fp32 is not what it should be"
    assert told.value.hint == (hint or "--methods without evit")


def test_what_a_gate_refuses_is_left_out_of_that_engine_alone_where_this_is_asked(
    clock, workspace, weights, monkeypatch
):
    monkeypatch.setitem(registry._ENGINES, "fake", "tests.workflows.test_choices:Precise")
    done = workshop.build

    def refusing(made, *rest):
        if made.precision == "bf16" and "-evit-" in str(made.model):
            raise ParityError("model on fake bf16 is not what it should be")
        return done(made, *rest)

    monkeypatch.setattr(workshop, "build", refusing)
    both = request(weights, engines=("fake:fp32", "fake:bf16"))
    with pytest.raises(ParityError, match=r"^evit: model on fake bf16 is not what it should be$"):
        compare(both, workspace)
    report = compare(replace(both, skip_refused=True), workspace)
    there = {
        precision: [row.subject.method for row in report.rows if row.subject.precision == precision]
        for precision in ("fp32", "bf16")
    }
    assert there == {"fp32": list(NAMES), "bf16": [name for name in NAMES if name != "evit"]}
    assert {model.method for model in report.models} == set(NAMES)
    assert report.bench.warnings == ("without evit: model on fake bf16 is not what it should be",)


def test_what_all_are_held_against_has_to_take_part(workspace, weights, monkeypatch):
    def refusing(made, *rest):
        raise ParityError("model on fake fp32 is not what it should be")

    monkeypatch.setattr(workshop, "build", refusing)
    with pytest.raises(ParityError, match=r"^life: model on fake"):
        compare(replace(request(weights), skip_refused=True), workspace)


def test_a_bound_is_one_only_of_what_drops_where_it_does(clock, workspace, weights):
    rows = {row.subject.method: row for row in compare(request(weights), workspace).rows}
    assert rows["life"].first_k_share == pytest.approx(rows["first-k"].subject.gmacs / rows["life"].subject.gmacs)
    assert rows["random"].first_k_share is not None
    assert rows["evit"].first_k_share is None  # it lets other numbers of tokens through


def test_the_baseline_is_always_there_and_the_bound_where_it_is_named(clock, workspace, weights):
    report = compare(request(weights, "evit", "life"), workspace)
    assert [row.subject.method for row in report.rows] == ["dense", "evit", "life"]
    assert report.like == "evit"
    assert [model.export for model in report.models] == [
        f"artifacts/{TINY}-evit-r0.7-64x64px",
        f"artifacts/{TINY}-evit-r0.7-64x64px",
        f"artifacts/{TINY}-life-r0.7-64x64px",
    ]


def test_json_is_that_of_bench_and_more(clock, workspace, weights):
    report = compare(request(weights), workspace).to_dict()
    assert json.loads(json.dumps(report)) is not None
    assert {"schema", "rows", "machine", "choices", "at", "like", "models", "contests", "trials"} <= set(report)
    assert report["rows"][2]["method"] == "life"
    assert report["rows"][2]["tokens"] == (16, 11, 8, 5)
    assert "bench" not in report


def test_accuracy_beside_speed(clock, workspace, weights, tmp_path):
    data = make_images(tmp_path / "data")
    report = compare(request(weights, data=str(data)), workspace)
    assert {choice.row.subject.method for choice in report.bench.choices} == set(NAMES) - {"first-k"}
    assert all(0 <= choice.top1 <= 1 for choice in report.bench.choices)
    assert any(choice.pareto for choice in report.bench.choices)
    plot_comparison(report, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 20_000


# --- what is made, and what is not made again -------------------------------------------------------------------


def test_what_is_missing_is_exported_and_what_is_there_is_not(clock, workspace, weights, monkeypatch):
    made = []

    def exporting(wanted, *rest):
        made.append((wanted.model.method, wanted.model.keep_rate))
        return export(wanted, *rest)

    export = workshop.export
    monkeypatch.setattr(workshop, "export", exporting)
    compare(request(weights), workspace)
    assert made == []
    wanted = request(weights, "life", "random")
    compare(replace(wanted, model=replace(wanted.model, keep_rate=0.9)), workspace)
    assert made == [("life", 0.9), ("random", 0.9)]


def test_what_was_measured_is_not_measured_again(clock, workspace, weights, monkeypatch):
    first = compare(request(weights, batches=(2,)), workspace)
    assert [contest.kept for contest in first.contests] == [False]
    second = compare(request(weights, batches=(2, 4)), workspace)
    assert [(contest.batch, contest.kept) for contest in second.contests] == [(2, True), (4, False)]
    assert second.rows[: len(NAMES)] == first.rows
    monkeypatch.setattr(holding, "contest", None)  # nothing is measured from here on
    fewer = compare(request(weights, "life", "random", batches=(4,), stop=replace(QUICK, budget_s=1)), workspace)
    assert [row.subject.method for row in fewer.rows] == ["dense", "life", "random"]
    for changes in (
        {"fresh": True},
        {"streams": 2, "modes": ("throughput",)},
        {"stop": replace(QUICK, budget_s=QUICK.budget_s + 1)},
        {"threads": 2},
    ):
        with pytest.raises(TypeError):
            compare(request(weights, batches=(2,), **changes), workspace)


def test_what_was_measured_among_others_is_held_against_another_method(clock, workspace, weights):
    compare(request(weights), workspace)
    again = compare(request(weights, "evit", "life"), workspace)
    assert [contest.kept for contest in again.contests] == [False]  # ratios over evit were not taken
    assert {row.subject.method: row.over_like for row in again.rows}["life"] is not None


def test_a_comparison_that_was_ended_goes_on(clock, workspace, weights, monkeypatch):
    held = []

    def ending(chosen, mode, batch, *rest):
        held.append(batch)
        if held == [2, 4]:
            raise KeyboardInterrupt
        return contest(chosen, mode, batch, *rest)

    contest = holding.contest
    monkeypatch.setattr(holding, "contest", ending)
    with pytest.raises(KeyboardInterrupt):
        compare(request(weights, batches=(2, 4)), workspace)
    report = compare(request(weights, batches=(2, 4)), workspace)
    assert held == [2, 4, 4]
    assert [contest.kept for contest in report.contests] == [True, False]


def test_a_damaged_record_and_another_engine_are_measured_again(clock, workspace, weights):
    compare(request(weights), workspace)
    (record,) = (workspace.root / workflow.FOLDER).iterdir()
    text = record.read_text()
    for damaged in (text[:-40], text.replace('"batch": 2', '"batch": 0'), text.replace('"schema": 1', '"schema": 9')):
        record.write_text(damaged)
        assert [contest.kept for contest in compare(request(weights), workspace).contests] == [False]
        assert [contest.kept for contest in compare(request(weights), workspace).contests] == [True]
    digest = json.loads(text)["contestants"]["fake fp32 evit"]
    record.write_text(text.replace(digest, digest[::-1]))
    assert [contest.kept for contest in compare(request(weights), workspace).contests] == [False]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"keep_rate": 0.8}, False),
        ({"method": "topk"}, False),
        ({"options": {"fuse": False}, "method": "evit"}, False),
        ({"method": "evit"}, True),
        ({"image_size": (32, 64)}, False),
        ({"image_size": None}, True),  # the weights' own
        ({"num_classes": 4}, False),
        ({"weights": "random"}, False),
        ({"weights": "pretrained"}, False),
        ({"weights": "auto"}, False),  # it would find others: nothing was trained here
        ({"backbone": "deit_t"}, False),
        ({"drop_layers": (2, 4)}, False),
    ],
)
def test_an_export_is_taken_for_what_exporting_would_make(workspace, weights, changes, found):
    wanted = replace(request(weights).model, method="life")
    export = exported_as(replace(wanted, **changes), workspace)
    assert (export is not None) == found
    if export is not None:
        assert export.method == changes.get("method", "life")


def test_an_export_of_other_weights_a_damaged_one_and_one_of_another_version_are_not_taken(
    workspace, weights, tmp_path, monkeypatch
):
    wanted = replace(request(weights).model, method="life")
    other = tmp_path / "other.safetensors"
    other.write_bytes(Path(weights).read_bytes() + b"\0")
    assert exported_as(replace(wanted, weights=str(other)), workspace) is None
    monkeypatch.setattr("lifedeploy.targets.reuse.versions", lambda: {"lifedeploy": "0.0.1"})
    assert exported_as(wanted, workspace) is None
    monkeypatch.undo()
    graph = tmp_path / "artifacts" / f"{TINY}-life-r0.7-64x64px" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\1")
    assert exported_as(wanted, Workspace(tmp_path / "artifacts")) is None


def test_auto_takes_the_export_of_what_it_would_find(workspace, weights, monkeypatch):
    wanted = replace(request(weights).model, method="life", weights="auto", drop_layers=None)
    known = exported_as(replace(wanted, weights=weights), workspace)
    assert known is not None
    run = workspace.root / "checkpoints" / "run" / "best.safetensors"
    run.parent.mkdir(parents=True)
    shutil.copy(known.folder / "weights.safetensors", run)
    assert exported_as(wanted, workspace) is None  # the export is of another file
    made = workshop.export(workshop.ExportRequest(model=wanted), workspace)
    found = exported_as(wanted, workspace)
    assert found is not None and found.folder == made.folder


def test_an_export_of_other_weights_stays_where_it_is(clock, workspace, weights):
    folder = workspace.root / f"{TINY}-life-r0.7-64x64px"
    before = (folder / "model.onnx").read_bytes()
    random = replace(request(weights, "life"), model=replace(request(weights).model, weights="random"))
    report = compare(random, workspace)
    assert (folder / "model.onnx").read_bytes() == before
    assert {model.export for model in report.models} == {f"{folder}-random"}
    assert {model.weights for model in report.models} == {"random"}
    assert compare(random, workspace).models == report.models


def test_an_export_of_a_method_that_is_gone_is_passed_over(clock, workspace, weights):
    manifest = workspace.root / f"{TINY}-random-r0.7-64x64px" / "model.json"
    manifest.write_text(manifest.read_text().replace('"method": "random"', '"method": "gone"'))
    assert [row.subject.method for row in compare(request(weights, "life"), workspace).rows] == ["dense", "life"]


# --- equals -----------------------------------------------------------------------------------------------------


class Later(Fake):
    """What is opened second is faster than what was opened first, as where memory is fragmented."""

    opened = 0

    def _open(self):
        specs = super()._open()
        if self.path.name.startswith("dense."):
            type(self).opened += 1
            self.seconds_per_image /= 1.25 if type(self).opened > 1 else 1
        return specs


def test_an_engine_that_is_not_as_fast_as_itself_is_told_of(clock, workspace, weights, monkeypatch):
    equal = compare(request(weights, "life"), workspace)
    assert [row.twin for row in equal.rows] == pytest.approx([1.0, 1.0])
    assert not [warning for warning in equal.bench.warnings if "opened a second time" in warning]
    monkeypatch.setitem(registry._ENGINES, "fake", f"{__name__}:Later")
    monkeypatch.setattr(Later, "opened", 0)
    unequal = compare(request(weights, "life", fresh=True), workspace)
    assert [row.twin for row in unequal.rows] == pytest.approx([1.25, 1.25])
    (said,) = [warning for warning in unequal.bench.warnings if "opened a second time" in warning]
    assert said.startswith(
        "latency, batch 2: fake fp32 dense, opened a second time, has 1.25 (1.25 to 1.25) of its own"
    )
    assert "compact_memory" in said


# --- the same work, the same speed ------------------------------------------------------------------------------


def test_at_the_same_work(clock, workspace, weights):
    report = compare(request(weights, "life", "evit", at="macs"), workspace)
    life, evit = report.rows[1:]
    assert life.subject.keep_rate == 0.7
    assert evit.subject.keep_rate != 0.7
    assert evit.subject.gmacs == pytest.approx(life.subject.gmacs, rel=0.05)  # sixteen patches come in large steps
    said = [warning for warning in report.bench.warnings if "comes no nearer" in warning]
    off = abs(evit.subject.gmacs / life.subject.gmacs - 1) > 0.02
    assert bool(said) == off


def test_at_the_same_speed(clock, workspace, weights, monkeypatch):
    monkeypatch.setitem(registry._ENGINES, "fake", f"{__name__}:Sorting")
    monkeypatch.setattr(Sorting, "per_sort", 1.5e-4)  # a tenth of what it takes
    report = compare(request(weights, "life", "evit", at="speed"), workspace)
    rows = {row.subject.method: row for row in report.rows}
    tried = [trial.speed for trial in report.trials]
    assert {trial.method for trial in report.trials} == {"evit"}
    assert 2 <= len(report.trials) <= 4
    assert rows["evit"].subject.gmacs < rows["life"].subject.gmacs  # it pays for sorting three times
    assert abs(rows["evit"].over_like - 1) == pytest.approx(min(abs(speed - 1) for speed in tried))
    assert abs(rows["evit"].over_like - 1) < abs(tried[0] - 1)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (("--methods", "life,evitt"), "method 'evitt' is unknown; there are: life, evit, ", "did you mean evit"),
        (("--methods", "life,life"), "method 'life' is named twice: it would take turns with itself", ""),
        (("--methods", "dense,first-k"), "no method of dense, first-k drops tokens by a choice", ""),
        (("--methods", ""), "method '' is unknown", ""),
        (("--methods", ",".join(["life"] * 65)), "--methods has 65 names; at most 64 are allowed", ""),
        (("--at", "flops"), "--at 'flops' is unknown; there are: keep-rate, macs, speed", ""),
        (("--rho", "1.5"), "keep rate 1.5 is out of range: it must be in (0, 1]", ""),
        (("--engine", "nvidia"), "engine 'nvidia' is unknown", ""),
        (("--split", "val"), "--split and --limit choose among labelled images", ""),
        (
            ("--engine", "fake:int8", "--methods", "life"),
            "life-r0.7-64x64px is not calibrated for INT8",
            "--calibration-data DIR",
        ),
        (("--methods", "life,dynamicvit", "--rho", "0.35"), "keep rate 0.35 leaves 0 of 16 patch tokens", ""),
        (("--methods", "life,evit", "--rho", "0.05"), "life", ""),
        (
            ("--calibration-data", "nowhere"),
            "--calibration-data is for INT8 and FP8, and no engine of fake",
            "NAME:int8",
        ),
        (("--engine", "fake:int8", "--rho", "0.6"), "life is not exported and calibrated for INT8", "--calibration-d"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(lifedeploy, workspace, weights, arguments, said, hint):
    before = folders(workspace), sorted(Path().iterdir())
    line = ("--backbone", TINY, "--img-size", "64", "--weights", weights, "--engine", "fake", "--json", "table.json")
    if "--engine" in arguments:
        line = tuple(word for word in line if word not in ("--engine", "fake"))
    ended = lifedeploy("compare", *line, *arguments)
    assert ended.code == 2
    (error,) = [text for text in ended.lines if text.startswith("error:")]
    assert said in error
    assert hint in ended.err
    assert (folders(workspace), sorted(Path().iterdir())) == before


def test_images_that_are_not_there_are_missed_before_anything_is_made(lifedeploy, workspace, weights):
    before = folders(workspace)
    line = ("--backbone", TINY, "--img-size", "64", "--weights", weights, "--methods", "life,topk", "--rho", "0.6")
    ended = lifedeploy("compare", *line, "--engine", "fake:int8", "--calibration-data", "nowhere")
    assert (ended.code, folders(workspace)) == (1, before)
    assert "error: nowhere is no folder" in ended.err


def test_methods_as_a_request_are_refused_too():
    with pytest.raises(UsageError, match="at the same 'flops'"):
        CompareRequest(methods=("life",), at="flops")
    assert [method.name for method in CompareRequest().slimmed] == list(methods.names(methods.SLIMMED))


# --- checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def trained(tmp_path_factory, weights_file):
    """Checkpoints as ``train`` writes them: lives at two keep rates, EViT, and the dense model. Read only."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for name, method, rate in (("a", "life", 0.7), ("b", "life", 0.5), ("c", "evit", 0.7), ("d", "dense", 0.7)):
            wanted = ModelRequest(
                backbone=TINY, weights=str(weights_file), image_size=TINY_SIZE, method=method, keep_rate=rate
            )
            loaded = load(wanted, Workspace(folder))
            provenance = replace(loaded.spec.provenance, weights="trained", source=name)
            with torch.no_grad():
                loaded.model.backbone.head.bias.add_(0.01 * rate)  # other weights, so another file
            spec = replace(loaded.spec, provenance=provenance)
            checkpoint.save(folder / f"{name}.safetensors", loaded.model, spec)

    return made_once(shared_folder(tmp_path_factory) / "trained", make)


def of(paths: list[Path], **bench: object) -> CompareRequest:
    how = BenchRequest(engines=("fake",), batches=(2,), stop=QUICK, memory=False, threads=1)
    return CompareRequest(bench=replace(how, **bench), checkpoints=tuple(paths))


def test_checkpoints_are_compared_as_they_were_trained(clock, workspace, trained, traced_once):
    report = compare(of(sorted(trained.glob("*.safetensors"))), workspace)
    rows = {row.subject.shown: row for row in report.rows}
    assert list(rows) == ["dense", "a", "b", "evit"]  # a method that is there once goes by its name
    assert [row.subject.method for row in report.rows] == ["dense", "life", "life", "evit"]
    assert [row.subject.keep_rate for row in report.rows] == [None, 0.7, 0.5, 0.7]
    assert (report.at, report.like, report.backbone) == ("as-trained", "a", TINY)
    assert [model.name for model in report.models] == list(rows)
    for row in rows.values():
        assert row.speedup == pytest.approx(rows["dense"].subject.gmacs / row.subject.gmacs)
    assert rows["b"].over_like == pytest.approx(rows["a"].subject.gmacs / rows["b"].subject.gmacs)
    # The baseline is the dense checkpoint itself, and not the first one without its drops.
    exports = {model.name: Path(model.export) for model in report.models}
    assert len(set(exports.values())) == 4
    digests = {
        name: Artifact.read(path / "model.json").manifest.spec.provenance.sha256 for name, path in exports.items()
    }
    assert digests["dense"] == sha256(trained / "d.safetensors") and digests["b"] == sha256(trained / "b.safetensors")
    assert report.bench.warnings == ()
    again = compare(of(sorted(trained.glob("*.safetensors"))), workspace)
    assert [contest.kept for contest in again.contests] == [True]
    assert [row.subject.shown for row in again.rows] == list(rows)


@pytest.mark.parametrize("step", ["export", "build"])
def test_what_is_refused_of_a_checkpoint_says_which_it_is_and_how_to_go_on(
    clock, workspace, trained, traced_once, monkeypatch, step
):
    def refusing(request, *rest):
        raise EngineError("it is not what it should be")

    monkeypatch.setattr(workshop, step, refusing)
    with pytest.raises(EngineError) as told:
        compare(of([trained / "a.safetensors", trained / "b.safetensors"]), workspace)
    assert (told.value.message, told.value.hint) == ("a: it is not what it should be", "--checkpoints without a")


def test_a_title_that_says_what_a_name_does_not_stays_beside_it():
    subject = Subject(
        model="m", method="avit-ranked", engine="fake", precision="fp32", mac_ratio=None, weights="trained", parity=None
    )
    title = "A-ViT scores,\nfixed budget"
    assert _name(subject) == title
    assert _name(replace(subject, name="mine-0.7")) == f"mine-0.7\n{title}"
    assert _name(replace(subject, method="life", name="mine-0.7")) == "mine-0.7"


def test_without_a_dense_checkpoint_that_is_said(clock, workspace, trained, traced_once):
    report = compare(of([trained / "a.safetensors", trained / "c.safetensors"]), workspace)
    assert [row.subject.shown for row in report.rows] == ["dense", "life", "evit"]
    (warning,) = report.bench.warnings
    assert warning.startswith("no dense checkpoint is among them, so dense is life without its drops")


def test_accuracy_is_of_each_checkpoint(clock, workspace, trained, traced_once, tmp_path):
    data = make_images(tmp_path)
    report = compare(of(sorted(trained.glob("*.safetensors")), data=str(data)), workspace)
    assert {choice.row.subject.shown for choice in report.bench.choices} == {"dense", "a", "b", "evit"}
    assert any(choice.pareto for choice in report.bench.choices)
    plot_comparison(report, tmp_path / "trained.png")
    assert (tmp_path / "trained.png").stat().st_size > 10_000


def test_long_names_of_runs_stay_in_their_panel(clock, workspace, trained, traced_once, tmp_path, monkeypatch):
    """A run is called by its settings: in the picture that is beside its bar, not over the panel before it."""
    files = [tmp_path / f"run-{name}-r0.7-64x64px-single-hard-distill-seed0.safetensors" for name in "abc"]
    for file in files:
        shutil.copy(trained / f"{file.name[4]}.safetensors", file)
    report = compare(of(files, data=str(make_images(tmp_path)), batches=(1, 2, 4)), workspace)
    made = []
    monkeypatch.setattr("lifedeploy.viz.comparison.save", lambda figure, path: made.append(figure))
    plot_comparison(report, tmp_path / "trained.png")
    (figure,) = made
    panels = [axis.get_tightbbox() for axis in figure.axes[:3]]  # with names and figures
    for left, right in pairwise(panels):
        assert left.x1 <= right.x0
    assert panels[0].x0 >= 0 and panels[-1].x1 <= figure.bbox.x1
    for axis in figure.axes[:3]:
        names = sorted((label.get_window_extent() for label in axis.get_yticklabels()), key=lambda box: box.y0)
        assert len(names) == 4
        assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(names))
        assert axis.bbox.width > figure.bbox.width / 8


def test_files_of_training_runs_are_called_as_their_runs(trained, tmp_path):
    paths = []
    for run in ("one", "two", "dense", "life"):
        (tmp_path / run).mkdir()
        paths.append(tmp_path / run / "last.safetensors")
        shutil.copy(trained / "a.safetensors", paths[-1])
    names = list(checkpoints.trained(paths).slimmed)
    # No slimmed model is called as the baseline is, or another method; its own it may be called as.
    assert names == ["one", "two", "life dense", "life"]
    assert list(checkpoints.trained(paths[:1]).slimmed) == ["life"]
    shutil.copy(paths[0], tmp_path / "one" / "best.safetensors")
    (tmp_path / f"{TINY}-life-r0.7").mkdir()
    usual = tmp_path / f"{TINY}-life-r0.7" / "last.safetensors"
    shutil.copy(paths[0], usual)
    assert list(checkpoints.trained([usual, paths[0]]).slimmed) == ["life-r0.7", "one"]
    # The same run in two workspaces, or the same file by two names.
    other = tmp_path / "seed1" / "one"
    other.mkdir(parents=True)
    shutil.copy(paths[0], other / "last.safetensors")
    alike = checkpoints.trained([paths[0], other / "last.safetensors"])
    assert list(alike.slimmed) == [f"{tmp_path.name}/one/last", "seed1/one/last"]
    (tmp_path / "link.safetensors").symlink_to(paths[0])
    with pytest.raises(UsageError, match=r"link\.safetensors is named twice"):
        checkpoints.trained([paths[0], tmp_path / "link.safetensors"])
    both = checkpoints.trained([paths[0], tmp_path / "one" / "best.safetensors", paths[1]])
    assert list(both.slimmed) == ["one/last", "one/best", "two"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "a"], "a.safetensors is named twice: it would take turns with itself"),
        (["d"], "d.safetensors is of the dense model, and there is none to hold against it"),
        (["d", "e", "a"], "d.safetensors and .*e.safetensors both are of the dense model"),
        (["a", "other"], "other.safetensors is of .* at 32x32 pixels with 3 classes, and .*a.safetensors of "),
        (["a", "plain"], "plain.safetensors carries no description of its model"),
        (["a", "nothing"], "nothing.safetensors does not exist"),
        (["a", "renamed"], "renamed.safetensors tells one, two, three apart, and .*a.safetensors cat, cup, rocket"),
    ],
)
def test_checkpoints_that_cannot_be_compared_are_refused(trained, tmp_path, names, said):
    for path in trained.iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(tmp_path / "d.safetensors", tmp_path / "e.safetensors")
    model, spec = checkpoint.load(tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    checkpoint.save(tmp_path / "renamed.safetensors", model, replace(spec, classes=("one", "two", "three")))
    spec = replace(spec, preprocess=replace(spec.preprocess, image_size=(32, 32)))
    checkpoint.save(tmp_path / "other.safetensors", model, spec)
    with pytest.raises((UsageError, WeightsError), match=said):
        checkpoints.trained([tmp_path / f"{name}.safetensors" for name in names])


def test_checkpoints_on_the_command_line(lifedeploy, clock, workspace, trained, traced_once):
    line = ("--engine", "fake", "--threads", "1", "--batch", "2", "--budget", "1", "--mode", "latency")
    files = [str(trained / f"{name}.safetensors") for name in "abcd"]
    ended = lifedeploy("compare", *line, "--json", "t.json", "--checkpoints", *files)  # as a shell has it of a pattern
    assert ended.code == 0, ended.err
    rows = json.loads(Path("t.json").read_text())["rows"]
    assert [(row["method"], row["name"]) for row in rows] == [("dense", ""), ("life", "a"), ("life", "b"), ("evit", "")]
    odd = Path("x[red]y.safetensors")  # markup, in a terminal's language
    shutil.copy(trained / "b.safetensors", odd)
    named = lifedeploy("compare", *line, "--checkpoints", files[0], str(odd), "--data", str(make_images(Path("data"))))
    assert named.code == 0 and "x[red]y" in named.out
    long = [Path(f"{letter}-run-of-somebody-with-a-long-name.safetensors") for letter in "xy"]
    for path, letter in zip(long, "ab", strict=True):
        shutil.copy(trained / f"{letter}.safetensors", path)
    wide = lifedeploy("compare", *line, "--checkpoints", *map(str, long))
    assert wide.code == 0 and "…" not in wide.out and max(map(len, wide.out.splitlines())) <= 80
    assert "of the first: speed over that of x-run-of-somebody-with-a-long-name" in " ".join(wide.out.split())
    none = lifedeploy("compare", *line, "--checkpoints", "a**/x.safetensors")
    assert (none.code, "a**/x.safetensors does not exist" in none.err) == (1, True)
    again = lifedeploy("compare", *line, "--checkpoints", str(trained / "*.safetensors"))
    assert again.code == 0 and "Each as its checkpoint was trained" in again.out
    for more, said in (
        (("--rho", "0.5"), "--checkpoints and --rho exclude each other"),
        (("--methods", "life"), "--checkpoints and --methods exclude each other"),
    ):
        refused = lifedeploy("compare", *line, "--checkpoints", files[0], *more)
        assert (refused.code, said in refused.err) == (2, True)
    refused = lifedeploy("compare", files[0])
    assert (refused.code, "is no option of compare" in refused.err) == (2, True)


# --- on the command line ----------------------------------------------------------------------------------------


def test_the_command_writes_tables_a_page_and_a_picture(lifedeploy, clock, workspace, weights, monkeypatch):
    line = ("--backbone", TINY, "--img-size", "64", "--weights", weights, "--engine", "fake", "--threads", "1")
    line += ("--methods", ",".join(NAMES), "--batch", "2,4", "--budget", "1", "--mode", "latency")
    ended = lifedeploy("compare", *line, "--json", "t.json", "--markdown", "t.md", "--plot", "t.png")
    assert ended.code == 0, ended.err
    assert f"{TINY} · fake fp32 · latency · batch 4" in ended.out
    rows = json.loads(Path("t.json").read_text())["rows"]
    assert [(row["batch"], row["method"]) for row in rows] == [(batch, name) for batch in (2, 4) for name in NAMES]
    page = Path("t.md").read_text().splitlines()
    assert page[0] == f"# {TINY}: methods compared"
    assert f"## {TINY} · fake fp32 · latency · batch 2" in page
    (life,) = {text for text in page if text.startswith("| life |") and "11→8→5" in text}
    assert life.count("|") == next(text for text in page if text.startswith("| method |")).count("|")
    assert any(text.startswith("Each at its own keep rate") for text in page)
    again = lifedeploy("compare", *line, "--markdown", "t.md")
    assert again.code == 0
    assert "Measured before, on this machine in these versions, and not again" in again.out
