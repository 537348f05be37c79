"""``tune``: against engines whose staircase is known, and on real ones."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import pytest

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.measure import Samples, Turn
from lifedeploy.errors import ArtifactError, DataError, EngineUnavailableError, UsageError
from lifedeploy.exporters import inspect
from lifedeploy.exporters.reschedule import Reschedulable
from lifedeploy.schedule import Schedule
from lifedeploy.targets import probing, tunable
from lifedeploy.targets.workbench import Workbench
from lifedeploy.tuned import read_tuned
from lifedeploy.tuning.choosing import Goal
from lifedeploy.tuning.expected import ATTENTION, SINGLE_CUTS
from lifedeploy.viz.tuning import plot_tuning
from lifedeploy.workflows import tune as workflow
from lifedeploy.workflows.calibrate import CalibrateRequest, calibrate
from lifedeploy.workflows.tune import TuneRequest, tune
from tests.conftest import TINY
from tests.workflows.test_evaluate import make_images

DENSE_S = 0.1


class Known(Workbench):
    """An engine whose time is a function of tokens, in steps of eight with the prefix; ordering takes 1 %."""

    stair = 8
    measured: ClassVar[list[str]] = []  # what took turns, group after group

    def seconds(self, schedule: Schedule, ordering: float) -> float:
        def layer(tokens: int) -> float:
            return -(-(tokens + self.baseline.manifest.spec.prefix_tokens) // self.stair) * self.stair + 4

        macs = self.baseline.manifest.macs.per_layer
        whole = layer(schedule.patches)
        share = sum(work * layer(tokens) / whole for work, tokens in zip(macs, schedule.tokens, strict=True)) / sum(
            macs
        )
        return DENSE_S * (share + ordering)

    @contextmanager
    def opened(self, graph, write=None, *, batch=None):
        with super().opened(graph, write, batch=batch) as session:
            schedule = graph.manifest.spec.schedule
            if methods.role_of(graph.method) == methods.BASELINE:
                schedule = Schedule.dense(schedule.patches, schedule.depth)
            slimmed = methods.role_of(graph.method) == methods.SLIMMED
            session.known_s = self.seconds(schedule, 0.01 if slimmed else 0.0)
            yield session

    @contextmanager
    def shortened(self, tokens):
        with super().shortened(tokens) as session:
            spec = self.baseline.manifest.spec
            session.known_s = self.seconds(Schedule.dense(tokens, spec.schedule.depth), 0.0)
            whole = self.seconds(Schedule.dense(spec.schedule.patches, spec.schedule.depth), 0.0)
            layer = {n: -(-(n + 1) // self.stair) * self.stair + 4 for n in (tokens, spec.schedule.patches)}
            session.known_s = whole * layer[tokens] / layer[spec.schedule.patches]
            yield session

    def compare(self, sessions, stop, what, progress):
        Known.measured.append(",".join(sessions))
        turns = {name: [Turn(session.known_s, 1, (session.known_s,))] * 20 for name, session in sessions.items()}
        return Samples(turns)


@pytest.fixture
def known(monkeypatch):
    """Every engine is of this kind."""
    monkeypatch.setattr(workflow, "Workbench", Known)
    monkeypatch.setattr(Known, "measured", [])
    return Known


@pytest.fixture
def trained(folder):
    """The export, as if its predictor had been trained."""
    for path in folder.glob("*.json"):
        manifest = json.loads(path.read_text())
        manifest["spec"]["provenance"]["predictor"] = "trained"
        path.write_text(json.dumps(manifest))
    return folder


def images(tmp_path):
    folder = tmp_path / "data"
    return str(folder if folder.exists() else make_images(folder))


def request(**more):
    return TuneRequest(engine="openvino:fp32", **more)


def test_it_comes_to_the_edges_of_the_stairs(workspace, known):
    report = tune(request(), Workspace(workspace))
    assert set(report.edges) <= {16, 15, 7, 1}  # whole steps of eight, with CLS; all; and the least
    assert report.improves and report.chosen.over_before.median > 1
    assert report.chosen.loss <= report.before.loss + 1e-9
    for point in (report.before, *report.verified):
        assert point.off == pytest.approx(0, abs=1e-6)
    assert report.ordering == pytest.approx(0.01, abs=1e-6) and report.slicing == pytest.approx(0, abs=1e-6)
    assert report.tuned.counts == report.chosen.counts and report.tuned.speedup == report.chosen.measured.median
    assert not report.warnings and any("losses are a guess" in note for note in report.notes)
    times = [point.time for point in report.front]
    losses = [point.loss for point in report.front]
    assert times == sorted(times) and losses == sorted(losses, reverse=True)


def test_what_was_measured_is_not_measured_again(workspace, known):
    first = tune(request(), Workspace(workspace))
    groups = len(known.measured)
    again = tune(request(), Workspace(workspace))
    assert first.new_probes > 0 and again.new_probes == 0
    assert len(known.measured) - groups == 2  # what ordering takes, and the verification
    assert again.probes == first.probes and again.chosen.counts == first.chosen.counts
    assert tune(request(fresh=True), Workspace(workspace)).new_probes == first.new_probes
    for other in (request(batch=2), request(mode="throughput"), request(threads=1), TuneRequest(engine="onnxruntime")):
        assert tune(other, Workspace(workspace)).new_probes == first.new_probes


def test_it_goes_on_where_it_was_ended(workspace, known, monkeypatch):
    compare = Known.compare

    def interrupted(self, *arguments):
        if len(Known.measured) == 2:
            raise KeyboardInterrupt
        return compare(self, *arguments)

    monkeypatch.setattr(Known, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(request(), Workspace(workspace))
    monkeypatch.setattr(Known, "compare", compare)
    asked = ",".join(known.measured).split(",")
    report = tune(request(), Workspace(workspace))
    later = ",".join(known.measured).split(",")[len(asked) :]
    assert not (set(asked) - {""}) & set(later[: later.index(workflow._DENSE)])
    assert report.new_probes == len(report.probes) - len(set(asked) - {""}) - 1


def test_a_budget_that_is_over_too_soon_tells_nothing_and_keeps_what_there_is(workspace, known, monkeypatch):
    monkeypatch.setattr(probing.time, "monotonic", iter(range(0, 10_000, 40)).__next__)
    with pytest.raises(UsageError, match=r"a budget of 60 s was over after \d+ of \d+ token counts") as refused:
        tune(request(budget_s=60), Workspace(workspace))
    assert "it goes on from there" in refused.value.hint
    monkeypatch.undo()
    monkeypatch.setattr(workflow, "Workbench", Known)
    known_before = len(json.loads(next((workspace / workflow.FOLDER).glob("probes-*")).read_text())["entries"])
    report = tune(request(budget_s=60), Workspace(workspace))
    assert report.new_probes == len(report.probes) - known_before
    # What was measured in a hurry is measured again where there is more time; not the other way round.
    assert tune(request(), Workspace(workspace)).new_probes == len(report.probes) - 1
    assert tune(request(budget_s=60), Workspace(workspace)).new_probes == 0


def test_stairs_that_there_was_no_time_for_are_said(workspace, known, monkeypatch):
    """The clock moves with every group: the counts that are measured first take three of them."""
    monkeypatch.setattr(known, "stair", 4)
    monkeypatch.setattr(probing, "first_counts", lambda patches, prefix: (16, 11, 7, 3))
    monkeypatch.setattr(probing, "GROUP", 1)
    monkeypatch.setattr(probing.time, "monotonic", lambda: 100.0 * len(known.measured))
    report = tune(request(budget_s=599), Workspace(workspace))
    assert any("budget was over before all stairs" in note for note in report.notes)
    monkeypatch.setattr(probing.time, "monotonic", lambda: 0.0)
    complete = tune(request(budget_s=599), Workspace(workspace))
    assert complete.new_probes > 0 and not any("budget was over" in note for note in complete.notes)


@pytest.mark.parametrize(("goal", "most"), [(Goal(speedup=1.5), 1 / 1.5), (Goal(latency_ms=60), 0.6)])
def test_a_goal_of_time_is_kept_with_the_least_loss(workspace, known, goal, most):
    report = tune(request(goal=goal), Workspace(workspace))
    assert report.chosen.measured_time <= most
    better = [point for point in report.front if point.time <= most and point.loss < report.chosen.loss - 1e-9]
    assert not better


def test_goals_beyond_the_front_are_refused_with_its_end(workspace, known):
    for goal, said in ((Goal(speedup=50), "--speedup 50"), (Goal(latency_ms=0.1), "--latency-ms 0.1")):
        with pytest.raises(
            UsageError, match=rf"{said} is beyond what this engine has: the fastest schedule, 7 tokens "
        ):
            tune(request(goal=goal), Workspace(workspace))


def test_the_schedule_that_the_model_has_may_be_among_the_best(workspace, known, monkeypatch):
    """Whichever place it has there, it is what the others are held against."""
    first = tune(request(), Workspace(workspace))
    for place in (0, 1, 2):

        def among(front, goal, before, *more, place=place):
            others = list(front.fastest(before.loss, 2))
            return [*others[:place], replace(before, time=before.time * 1.0001), *others[place:]]

        monkeypatch.setattr(workflow, "candidates", among)
        report = tune(request(), Workspace(workspace))
        assert report.before.counts == first.before.counts and report.before.over_before.median == 1
        assert report.chosen.counts == first.chosen.counts and report.improves
        assert len(report.verified) == 2


def test_a_model_without_classes_has_no_divergence_to_limit(workspace, folder, known, tmp_path):
    manifest = json.loads((folder / "model.json").read_text())
    manifest["spec"] |= {"num_classes": 0, "classes": []}
    (folder / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="has no classes for --max-kl"):
        tune(request(goal=Goal(max_kl=0.1), data=images(tmp_path)), Workspace(workspace))


def test_goals_exclude_each_other():
    with pytest.raises(UsageError, match="exclude each other"):
        Goal(speedup=1.5, latency_ms=3)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="positive"):
            Goal(speedup=wrong)
    with pytest.raises(UsageError, match="--max-kl needs images"):
        TuneRequest(goal=Goal(max_kl=0.1))


def test_where_nothing_is_better_what_there_is_stays(workspace, known, monkeypatch):
    """As on an engine to which tokens make no difference."""
    monkeypatch.setattr(known, "stair", 10_000)
    report = tune(request(base_layer=2), Workspace(workspace))
    assert not report.improves and report.chosen is report.before
    assert report.tuned.counts == report.before.counts and report.tuned.over_before == 1
    assert any("it stays" in warning for warning in report.warnings)
    assert any("no stair was seen" in note for note in report.notes)


def test_a_model_that_is_off_is_said_so(workspace, known, monkeypatch):
    seconds = Known.seconds
    monkeypatch.setattr(
        Known,
        "seconds",
        lambda self, schedule, ordering: (
            seconds(self, schedule, ordering)
            * (1.1 if len(schedule.drop_layers) and schedule.counts != (11, 8, 5) and ordering else 1)
        ),
    )
    report = tune(request(), Workspace(workspace))
    assert any("10.0% longer than expected" in warning for warning in report.warnings)


def test_a_trained_predictor_ranks_where_it_was_trained(workspace, trained, known):
    layer = Artifact.read(trained / "model.json").manifest.spec.schedule.base_layer
    report = tune(request(), Workspace(workspace))
    assert {point.drop_layers[0] for point in report.front} == {layer}
    with pytest.raises(UsageError, match=f"trained to rank after layer {layer}, and --base-layer is 1"):
        tune(request(base_layer=1), Workspace(workspace))


def test_a_base_layer_can_be_chosen_for_a_model_still_to_be_trained(workspace, known):
    anywhere = tune(request(), Workspace(workspace))
    assert len({point.drop_layers[0] for point in anywhere.front}) > 1
    for goal in (Goal(), Goal(speedup=1.2)):
        report = tune(request(base_layer=3, goal=goal), Workspace(workspace))
        assert {point.drop_layers[0] for point in (*report.front, report.chosen)} == {3}
    with pytest.raises(UsageError, match="base layer 6 is out of range: 1 to 5 are allowed"):
        tune(request(base_layer=6), Workspace(workspace))


def test_with_images_the_true_divergence_decides(workspace, trained, known, tmp_path):
    report = tune(request(data=images(tmp_path)), Workspace(workspace))
    assert report.loss_is == SINGLE_CUTS and report.images == 15
    assert report.before.true is not None and all(point.true is not None for point in report.verified)
    assert all(point.true.kl <= report.before.true.kl for point in report.verified)
    assert set(report.correlations) <= {ATTENTION, SINGLE_CUTS} and report.asked
    assert report.tuned.loss == report.chosen.true.kl and "as deployed" in report.tuned.loss_is
    assert any("train --elastic" in note for note in report.notes)
    asked = len(report.asked)
    loose = tune(request(data=images(tmp_path), goal=Goal(max_kl=10.0)), Workspace(workspace))
    assert loose.chosen.measured_time <= report.chosen.measured_time and loose.chosen.true.kl <= 10
    with pytest.raises(UsageError, match="--max-kl 1e-12 is beyond what dropping tokens allows: the least"):
        tune(request(data=images(tmp_path), goal=Goal(max_kl=1e-12)), Workspace(workspace))
    fast = tune(request(data=images(tmp_path), goal=Goal(speedup=1.3)), Workspace(workspace))
    assert fast.chosen.measured.median >= 1.3 and asked


def test_divergences_are_asked_once(workspace, trained, known, tmp_path, monkeypatch):
    data = images(tmp_path)
    first = tune(request(data=data), Workspace(workspace))
    asked = []
    monkeypatch.setattr("lifedeploy.targets.divergence.Teacher._ask", lambda *arguments: asked.append(1))
    again = tune(request(data=data), Workspace(workspace))
    assert not asked and again.asked == first.asked


@pytest.mark.usefixtures("quick_tuning")
@pytest.mark.parametrize("engine", ["openvino:fp32", "onnxruntime", "fake-device:fp16"])
def test_real_engines_are_measured(workspace, engine, tmp_path):
    report = tune(TuneRequest(engine=engine, batch=2), Workspace(workspace))
    assert len(report.probes) >= 16 and all(
        0 < probe.low <= probe.time <= probe.high for probe in report.probes.values()
    )
    assert report.tuned.tuned_for.engine == engine.partition(":")[0]
    report.tuned.write(tmp_path / "tune.json")
    assert read_tuned(tmp_path / "tune.json") == report.tuned
    plot_tuning(report, tmp_path / "front.svg")
    assert "<svg" in (tmp_path / "front.svg").read_text()
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.usefixtures("quick_tuning")
def test_a_calibrated_model_is_tuned_as_it_was_calibrated(workspace, folder, tmp_path):
    data = images(tmp_path)
    calibrate(CalibrateRequest(data=data, images=8, check_images=4), Workspace(workspace))
    report = tune(TuneRequest(model=folder / "int8", engine="onnxruntime", data=data), Workspace(workspace))
    assert report.tuned.tuned_for.precision == "int8" and report.before.true is not None
    graph = Artifact.read(folder / "int8" / "model.json")
    quantised = Reschedulable(graph.path, graph.manifest.spec)
    quantised.rescheduled(graph.manifest.spec.schedule, tmp_path / "same.onnx")
    kinds = [inspect.facts(inspect.load(path)).operators for path in (graph.path, tmp_path / "same.onnx")]
    assert kinds[0] == kinds[1] and kinds[0]["QuantizeLinear"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "tome"}, "tome takes no token counts, so there is nothing to tune"),
        ({"method": "evit"}, "evit chooses anew at every drop"),
    ],
)
def test_methods_without_a_single_ranking_are_refused(workspace, folder, change, said):
    export = Artifact.read(folder / "model.json")
    spec = replace(export.manifest.spec, **change, options={})
    with pytest.raises(UsageError, match=said):
        tunable.require_tunable(replace(export, manifest=replace(export.manifest, spec=spec)), 1)


def test_graphs_of_another_form_are_refused(folder):
    export = Artifact.read(folder / "model.json")

    def but(**facts):
        return replace(export, manifest=replace(export.manifest, graph=export.manifest.graph.but(**facts)))

    tunable.require_tunable(export, 4)
    with pytest.raises(UsageError, match="in the form per-stage"):
        tunable.require_tunable(but(form="per-stage"), 1)
    with pytest.raises(UsageError, match="fixed to batch 8, and --batch is 1"):
        tunable.require_tunable(but(batch_size=8), 1)


def test_it_measures_where_an_engine_runs(workspace):
    for name in ("tensorrt-rtx", "onnxruntime-cuda", "tensorrt"):
        with pytest.raises(EngineUnavailableError, match="tune measures where an engine runs"):
            tune(TuneRequest(engine=name), Workspace(workspace))
    with pytest.raises(UsageError, match="runs checkpoints"):
        tune(TuneRequest(engine="torch"), Workspace(workspace))


def test_what_is_not_calibrated_or_damaged_is_refused(workspace, folder, tmp_path):
    with pytest.raises(ArtifactError, match="is not calibrated for INT8"):
        tune(TuneRequest(engine="openvino:int8"), Workspace(workspace))
    with pytest.raises(DataError):
        tune(request(data=str(tmp_path / "nothing")), Workspace(workspace))
    for name in ("dense.onnx", "model.onnx"):
        (folder / name).write_bytes(b"damaged")
        with pytest.raises(ArtifactError, match=f"{name} is not the file"):
            tune(request(), Workspace(workspace))
    with pytest.raises(UsageError, match="is the baseline of its export"):
        tune(request(model=folder / "dense.json"), Workspace(workspace))
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(manifest | {"siblings": {}}))
    with pytest.raises(ArtifactError, match="holds no dense to measure beside it"):
        tune(request(), Workspace(workspace))


def test_the_engine_of_an_engine_is_its_own(workspace, folder, known):
    report = tune(TuneRequest(model=folder / "onnxruntime-fp32"), Workspace(workspace))
    assert report.tuned.tuned_for.engine == "onnxruntime"


@pytest.mark.usefixtures("traced_once")
def test_the_schedule_is_exported_built_and_said_to_be_of_another_engine(lifedeploy, workspace, known, weights_file):
    common = ("-b", TINY, "--weights", weights_file, "--img-size", "64")
    ended = lifedeploy("tune", "-e", "openvino:fp32", "-o", "tune.json", "--json", "report.json", "--plot", "front.png")
    assert ended.code == 0, ended.err
    assert "--counts" in ended.out and "wrote tune.json" in ended.err
    tuned = read_tuned(workspace.parent / "tune.json")
    ended = lifedeploy("export", *common, "--schedule", "tune.json", "-o", "tuned", "--no-parity")
    assert ended.code == 0 and "may not be the fastest" not in ended.err
    manifest = Artifact.read(workspace.parent / "tuned" / "model.json").manifest
    assert manifest.spec.schedule == tuned.schedule and manifest.tuned == tuned.tuned_for
    ended = lifedeploy("export", *common, "--schedule", "tune.json", "-o", "tuned")
    assert ended.code == 0, ended.err
    assert "may not be the fastest" not in lifedeploy("build-engine", "tuned", "-e", "openvino", "--fp32").err
    said = " ".join(lifedeploy("build-engine", "tuned", "-e", "onnxruntime").err.replace("│", "").split())
    assert "this is onnxruntime, not openvino" in said and "may not be the fastest" in said
    facts = json.loads((workspace.parent / "tune.json").read_text())
    facts["tuned_for"]["processor"] = "another CPU"
    (workspace.parent / "other.json").write_text(json.dumps(facts))
    ended = lifedeploy("export", *common, "--schedule", "other.json", "-o", "elsewhere", "--no-parity")
    assert ended.code == 0 and "not another CPU" in " ".join(ended.err.replace("│", "").split())
    facts["tuned_for"]["engine"] = "later"
    (workspace.parent / "other.json").write_text(json.dumps(facts))
    ended = lifedeploy("export", *common, "--schedule", "other.json", "-o", "elsewhere", "--no-parity")
    assert ended.code == 0 and "an engine that is not known here" in " ".join(ended.err.replace("│", "").split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rho", "0.5"), "--schedule and --rho exclude each other"),
        (("--counts", "3,2,1"), "--schedule and --counts exclude each other"),
        (("--drop-layers", "1,2"), "--schedule and --drop-layers exclude each other"),
        (("--backbone", TINY, "--method", "random"), "tuned for life, and the method is random"),
        (("--backbone", "deit_s"), "tuned for test_vit, and the model is deit_small_patch16_224"),
        (("--backbone", TINY, "--img-size", "32"), "tuned for images of 64x64 px, and the model takes 32x32 px"),
    ],
)
def test_a_schedule_of_something_else_is_refused_before_anything_is_made(lifedeploy, workspace, known, words, said):
    lifedeploy("tune", "-e", "openvino:fp32", "-o", "tune.json")
    for command in ("export", "train"):
        more = ("--batch", "4", "--data", images(workspace.parent)) if command == "train" else ()
        ended = lifedeploy(command, "--weights", "random", *words, "--schedule", "tune.json", "-w", "new", *more)
        assert ended.code == 2 and said in ended.err, ended.err
        assert not list((workspace.parent / "new").rglob("*.safetensors"))


def test_it_is_trained_under(lifedeploy, workspace, known):
    lifedeploy("tune", "-e", "openvino:fp32", "-o", "tune.json")
    data = make_images(workspace.parent / "data")
    words = ("--weights", "random", "--backbone", TINY, "--img-size", "64", "--stage2-epochs", "0", "--workers", "0")
    ended = lifedeploy("train", "--data", data, "--schedule", "tune.json", "--batch", "4", "--name", "tuned", *words)
    assert ended.code == 0, ended.err
    report = json.loads((workspace / "checkpoints" / "tuned" / "report.json").read_text())
    tuned = read_tuned(workspace.parent / "tune.json")
    assert tuple(report["config"]["counts"]) == tuned.counts
    assert tuple(report["config"]["drop_layers"]) == tuned.drop_layers
