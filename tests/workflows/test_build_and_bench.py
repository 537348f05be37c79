"""Build and bench on the fake engine, and what each refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.measure import Stop, measure
from lifedeploy.engines import fake
from lifedeploy.engines.fake import Fake
from lifedeploy.errors import ArtifactError, ParityError, UsageError
from lifedeploy.files import write_json
from lifedeploy.viz.plots import plot_bench
from lifedeploy.workflows.bench import BenchRequest, bench
from lifedeploy.workflows.build import BuildRequest, build

QUICK = Stop(budget_s=20, min_rounds=3, half_width=10)  # three rounds, however they differ


def quick(**changes: object) -> BenchRequest:
    return replace(BenchRequest(engines=("fake",), batches=(2,), stop=QUICK, memory=False), **changes)


def test_a_build_of_unchanged_inputs_is_reused_and_force_is_not(workspace):
    first = build(BuildRequest(engine="fake"), Workspace(workspace))
    assert first.reused
    assert not build(BuildRequest(engine="fake", force=True), Workspace(workspace)).reused


@pytest.mark.parametrize("change", ["request", "file", "source"])
def test_a_build_is_made_again_when_something_changed(workspace, change):
    first = build(BuildRequest(engine="fake"), Workspace(workspace))
    if change == "request":
        again = build(BuildRequest(engine="fake", precision="fp16"), Workspace(workspace))
        assert again.record.requested == "fp16"
        assert again.record.precision == "fp32"
        assert "FP32 only" in again.record.note
    elif change == "file":
        first.engine.path.write_text("{}")
        again = build(BuildRequest(engine="fake"), Workspace(workspace))
    else:
        source = Workspace(workspace).latest_export()
        replace(source.manifest, sha256="0" * 64).write(source.manifest_path)
        with pytest.raises(ArtifactError, match=r"model\.onnx is not the file that model\.json was written for"):
            build(BuildRequest(engine="fake"), Workspace(workspace))
        return
    assert not again.reused
    again.engine.check()


def test_an_engine_that_computes_something_else_is_not_kept(workspace, monkeypatch):
    run = Fake._run
    monkeypatch.setattr(Fake, "_run", lambda self, feeds: {k: v * 1.01 for k, v in run(self, feeds).items()})
    before = Artifact.read(next(workspace.glob("*/fake-fp32/model.json")))
    with pytest.raises(ParityError, match="model on fake fp32 does not compute what PyTorch does"):
        build(BuildRequest(engine="fake", force=True), Workspace(workspace))
    before.check()
    assert not list(workspace.glob("*/.*"))


class Clock:
    """Time passes only when somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_rows_say_what_an_engine_chose_by_itself(workspace, monkeypatch):
    monkeypatch.setattr(fake._FakeDeviceLane, "note", "attention by MATH")
    report = bench(quick(engines=("fake-device",), copies=(False,)), Workspace(workspace))
    assert {row.subject.note for row in report.rows} == {"attention by MATH"}


def test_bench_reports_what_the_engine_takes(workspace, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(fake, "time", clock)
    monkeypatch.setattr("lifedeploy.targets.contest.measure", partial(measure, clock=clock))
    report = bench(quick(), Workspace(workspace))
    rows = {row.subject.method: row for row in report.rows}
    assert list(rows) == ["dense", "first-k", "life"]
    life, dense = rows["life"], rows["dense"]
    # The fake engine sleeps in proportion to MACs, so the speed-up is the MAC bound.
    assert life.speedup == pytest.approx(life.subject.mac_ratio)
    assert life.speedup > 1.2
    assert life.speedup_low == pytest.approx(life.speedup) == life.speedup_high
    assert life.efficiency == pytest.approx(1)
    assert life.first_k_share == pytest.approx(rows["life"].speedup / rows["first-k"].speedup)
    assert dense.speedup == 1.0
    assert dense.subject.mac_ratio == 1.0
    assert life.images_per_s > dense.images_per_s
    assert life.latency_ms["p50"] <= life.latency_ms["p90"] <= life.latency_ms["p99"]
    assert (
        life.subject.engine,
        life.subject.precision,
        life.setting.mode,
        life.setting.batch,
        life.subject.weights,
    ) == ("fake", "fp32", "latency", 2, "file")


def test_json_keeps_its_names(workspace, tmp_path):
    report = bench(quick(), Workspace(workspace))
    write_json(tmp_path / "b.json", report.to_dict())
    data = json.loads((tmp_path / "b.json").read_text())
    assert data["schema"] == 1
    assert {"cpu", "gpu", "versions", "threads"} <= set(data["machine"])
    promised = {
        *("model", "method", "engine", "precision", "mode", "batch", "images_per_s", "latency_ms", "speedup"),
        *("speedup_low", "speedup_high", "mac_ratio", "efficiency", "first_k_share", "peak_memory_mib"),
    }
    for row in data["rows"]:
        assert promised <= set(row)
        assert set(row["latency_ms"]) == {"p50", "p90", "p99"}


def test_modes_and_batches_are_rows_of_their_own(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(fake, "SECONDS_PER_GMAC", 1.0)  # sleeps that are long beside the lanes' own work
    monkeypatch.setattr("lifedeploy.bench.measure.MIN_ROUND_S", 0.1)
    report = bench(quick(batches=(1, 3), modes=("latency", "throughput")), Workspace(workspace))
    assert [(row.setting.mode, row.setting.batch) for row in report.rows[::3]] == [
        ("latency", 1),
        ("latency", 3),
        ("throughput", 1),
        ("throughput", 3),
    ]
    assert {row.setting.streams for row in report.rows if row.setting.mode == "throughput"} == {2}
    latency, throughput = report.rows[0], report.rows[6]
    assert throughput.images_per_s > 1.5 * latency.images_per_s  # two sleepers at a time
    report.write_csv(tmp_path / "b.csv")
    with (tmp_path / "b.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert float(rows[0]["latency_ms_p50"]) == pytest.approx(latency.latency_ms["p50"])
    plot_bench(report, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"


def test_no_speed_for_an_engine_whose_parity_failed(workspace):
    path = next(workspace.glob("*/fake-fp32/model.json"))
    artifact = Artifact.read(path)
    failed = artifact.manifest.parity.but(passed=False, failures=("noise, batch 3: top-1 of 2 images changed",))
    replace(artifact.manifest, parity=failed).write(path)
    with pytest.raises(ParityError, match=r"no speed for .*did not pass its parity gate \(noise, batch 3"):
        bench(quick(), Workspace(workspace))
    replace(artifact.manifest, parity=None).write(path)
    with pytest.raises(ParityError, match="it was never checked"):
        bench(quick(), Workspace(workspace))


def test_an_engine_that_is_not_built_is_built_first(workspace):
    import shutil

    shutil.rmtree(next(workspace.glob("*/fake-fp32")))
    said: list[str] = []
    report = bench(quick(), Workspace(workspace), said.append)
    assert "building fake, which is not built yet" in said
    assert report.rows


def test_without_an_engine_the_last_build_is_measured(workspace):
    build(BuildRequest(engine="fake", force=True), Workspace(workspace))
    report = bench(quick(engines=()), Workspace(workspace))
    assert {row.subject.engine for row in report.rows} == {"fake"}


def test_a_foreign_onnx_file_is_measured_as_it_is(workspace, tmp_path):
    source = Workspace(workspace).latest_export()
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(source.path.read_bytes())
    report = bench(quick(model=foreign, engines=("onnxruntime",)), Workspace(workspace))
    (row,) = report.rows
    assert (row.subject.model, row.subject.method, row.speedup, row.subject.mac_ratio, row.subject.parity) == (
        "foreign.onnx",
        "unknown",
        None,
        None,
        None,
    )
    assert row.images_per_s > 0


def test_peak_memory_is_that_of_a_process_of_its_own(workspace):
    report = bench(quick(memory=True), Workspace(workspace))
    for row in report.rows:
        assert 10 < row.peak_memory_mib < 1000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batches": (0,)}, r"batch sizes \[0\] are not allowed: each must be at least 1"),
        ({"batches": ()}, "batch sizes .* are not allowed"),
        ({"modes": ("speed",)}, "mode 'speed' is unknown; there are: latency, throughput"),
        ({"streams": 0}, "0 streams are not allowed"),
        ({"threads": 0}, "0 threads are not allowed"),
        ({"stop": Stop(budget_s=0)}, "a budget of 0 s is not allowed"),
    ],
)
def test_requests_that_cannot_be_meant(changes, said):
    with pytest.raises(UsageError, match=said):
        quick(**changes)


def test_an_unknown_precision_in_an_engine_name(workspace):
    with pytest.raises(UsageError, match="precision 'fp4' in 'fake:fp4' is unknown"):
        bench(quick(engines=("fake:fp4",)), Workspace(workspace))


def test_an_empty_workspace_says_what_to_do(tmp_path: Path):
    with pytest.raises(ArtifactError) as caught:
        bench(quick(engines=()), Workspace(tmp_path))
    assert "no exported model in" in caught.value.message
    assert "lifedeploy export" in caught.value.hint
