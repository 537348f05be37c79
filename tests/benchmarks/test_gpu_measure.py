"""The script for a GPU, as far as a CPU can tell: its clock, its lists of what failed and was skipped, its tables."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lifedeploy.artifact import Workspace
from lifedeploy.bench.measure import Stop
from lifedeploy.workflows.bench import BenchRequest, bench

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
LABELS = {"backbone": "tiny", "schedule": "ρ 0.7", "fusion": {"attention": 6, "topk": 1}}


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(GPU)
    import measure

    return measure


def test_the_clock_ends_it_and_failures_are_written_down(measure, tmp_path):
    run = measure.Run(tmp_path, tmp_path, minutes=1, command="measure")
    assert run.command("-c", "pass", what="nothing")
    assert not run.command("-c", "import sys; sys.exit('some\\nerror: no such engine')", what="a build")
    assert run.found["failed"] == [{"what": "a build", "reason": "error: no such engine"}]
    assert not run.command("-c", "pass", what="too late", least_s=100)
    run.ends -= 59
    assert not run.command("-c", "import time; time.sleep(30)", what="too long", least_s=0)
    assert run.found["skipped"] == ["too late", "too long (cut off)"]
    run.write()
    text = (tmp_path / "RESULTS.md").read_text()
    assert "- a build: error: no such engine" in text
    assert "- too late" in text


def test_rows_become_lines(measure, workspace, tmp_path):
    quick = Stop(budget_s=0.01, min_rounds=3)
    request = BenchRequest(engines=("onnxruntime",), batches=(2,), stop=quick, memory=False)
    on_cpu = bench(request, Workspace(workspace)).rows
    device = {"p50": 1.25, "p90": 2.0, "p99": 3.0}
    on_gpu = [replace(row, copies=False, device_ms=device, trtexec={"share": 0.995}) for row in on_cpu]
    run = measure.Run(tmp_path, tmp_path, minutes=1, command="measure")
    run.found["rows"] = [json.loads(json.dumps(asdict(row))) | LABELS for row in (*on_cpu, *on_gpu)]
    run.found["bare"] = [{"engine": "tensorrt", "batch": 128, "share": 0.998, "low": 0.99, "high": 1.0, "rounds": 9}]
    eight = {"precision": "fp8", "over_base": 1.9, "over_base_low": 1.8, "over_base_high": 2.0}
    run.found["rows"][-1] |= eight
    run.write()
    lines = (tmp_path / "RESULTS.md").read_text().splitlines()
    assert "- onnxruntime fp8, batch 2, life: 1.90 [1.80, 2.00]" in lines
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| tiny")]
    head = next(line for line in lines if line.startswith("| backbone")).split("|")[1:-1]
    assert [len(row) for row in cells] == [len(head)] * 6
    assert [row[5] for row in cells] == ["–"] * 3 + ["without"] * 3
    assert [row[9] for row in cells][3:] == ["1.25"] * 3
    life = next(row for row in cells if row[6] == "life")
    assert life[13] == "6, 1"
    assert "- tensorrt, batch 128: 0.998 [0.990, 1.000], 9 rounds" in lines


def test_where_nothing_runs_it_says_why_and_where_only_torch_is_it_asks_torch(measure, monkeypatch, tmp_path):
    from lifedeploy.engines import registry
    from lifedeploy.engines.base import Availability

    monkeypatch.setattr(registry, "examine", lambda engine: Availability(False, "no GPU"))
    with pytest.raises(SystemExit, match="no engine runs on a GPU here: tensorrt: no GPU; tensorrt-rtx: no GPU"):
        measure.main(["--out", str(tmp_path)])
    asked = []
    monkeypatch.setattr(measure, "NEEDED", ("a_module_that_nobody_has",))
    monkeypatch.setattr(measure.Run, "questions", lambda run: asked.append(run))
    monkeypatch.setattr(sys, "argv", ["measure.py"])
    measure.main(["--out", str(tmp_path)])
    assert len(asked) == 1
    assert "all engines: not installed are a_module_that_nobody_has" in (tmp_path / "RESULTS.md").read_text()
