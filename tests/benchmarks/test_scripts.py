"""Every script of the benchmarks and examples imports and explains itself; what they share does what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks import common
from lifedeploy.engines.lanes import Lane
from lifedeploy.machine import identity
from lifedeploy.optional import installed

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SCRIPTS if path.name != "__init__.py"]
# All in one process, since most of the time is importing torch.
EXPLAIN = """
import importlib, runpy, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    print("imported", name)
    if not hasattr(module, "__file__") or "__main__" not in open(module.__file__).read() or name.endswith("gpu.dry"):
        continue
    del sys.modules[name]
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        assert not error.code, (name, error)
        print("explained", name)
"""


def test_every_script_imports_and_explains_itself():
    modules = [name for name in MODULES if installed("tensorrt_rtx") or name != "benchmarks.tensorrt.kernels"]
    done = subprocess.run(
        [sys.executable, "-c", EXPLAIN, *modules], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["imported"]] == modules
    scripts = [name for name, path in zip(MODULES, SCRIPTS[1:], strict=True) if "parse_args" in path.read_text()]
    assert [line[1] for line in lines if line[:1] == ["explained"]] == [name for name in scripts if name in modules]
    assert len(scripts) >= 12 and done.stdout.count("usage:") == len(set(scripts) & set(modules))


def test_the_digits_are_split_evenly_and_written_once(tmp_path):
    from examples.digits import prepare

    out = tmp_path / "digits"
    assert prepare.main(["--out", str(out)]) == 0
    counts = {
        half: [len(list((out / half / str(digit)).iterdir())) for digit in range(10)] for half in ("train", "val")
    }
    assert sum(counts["train"]) + sum(counts["val"]) == 1797
    assert all(35 <= count <= 37 for count in counts["val"])
    before = (out / "val" / "0").stat().st_mtime_ns
    assert prepare.main(["--out", str(out)]) == 0
    assert (out / "val" / "0").stat().st_mtime_ns == before


def test_a_process_that_has_ended_has_no_memory(monkeypatch):
    assert common.memory_mib(os.getpid(), "VmHWM") > 5
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert common.memory_mib(ended.pid, "VmHWM") == 0

    def too_late(*given: object, **how: object) -> str:
        raise ProcessLookupError

    monkeypatch.setattr(Path, "read_text", too_late)  # it ends between opening and reading
    assert common.memory_mib(os.getpid(), "VmHWM") == 0


def test_a_command_that_fails_ends_the_script_and_one_that_reports_is_read(tmp_path, capfd):
    assert common.report_of("doctor", folder=tmp_path)["engines"]
    ballast = bytearray(b"1") * 2**29  # what this process has is none of that of the command
    usage = common.lifedeploy("--help", folder=tmp_path)
    assert usage.seconds > 0 and 5 < usage.peak_mib < len(ballast) / 2**20 / 2
    with pytest.raises(SystemExit, match="error: lifedeploy inspect nothing failed"):
        common.lifedeploy("inspect", "nothing", folder=tmp_path)
    assert "$ lifedeploy inspect nothing" in capfd.readouterr().out


class Nothing(Lane):
    def __init__(self) -> None:
        super().__init__({}, {})

    def infer(self) -> None:
        pass


def test_a_contest_is_over_the_first_lane():
    rows = common.contest({"first": Nothing(), "second": Nothing()}, 4, 0.05)
    assert rows["first"]["ratio"] == rows["first"]["ratio_low"] == 1
    second = rows["second"]
    assert second["ratio_low"] <= second["ratio"] <= second["ratio_high"]
    assert second["ms"] * second["images_per_s"] == pytest.approx(4000) and second["rounds"] >= 3


def test_results_are_kept_by_processor_and_part_whoever_else_writes(tmp_path):
    results = common.Results(tmp_path / "new/results.json")
    assert results.read() == {}
    threads = [
        threading.Thread(target=results.keep, args=("speed", index, "x"), kwargs={"part": f"seed {index}"})
        for index in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.keep("cost", [1], "python -m benchmarks.x")
    content = json.loads(results.path.read_text())
    assert content["speed"][identity()]["result"] == {f"seed {index}": index for index in range(8)}
    assert content["cost"][identity()]["result"] == [1]
    line = common.source(content["cost"][identity()], "numpy")
    assert line.startswith("Command: `python -m benchmarks.x`; ") and "; numpy " in line
    results.keep("cost", [2], "x")
    assert results.read()["cost"][identity()]["result"] == [2]


def test_what_was_not_measured_is_a_dash():
    assert common.table("a | b", [(1, "x"), (2, "y")]) == ["| a | b |", "|---|---|", "| 1 | x |", "| 2 | y |"]
    row = {"speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.62}
    assert common.interval(row, "speedup", 2) == "1.50 [1.40, 1.62]"
    assert common.interval(dict.fromkeys(row), "speedup") == common.number(None, ".1f") == "–"
    assert common.number(0.995, ".1%") == "99.5 %" and common.number(2.0, ".2f") == "2.00"


def test_paths_of_the_machine_are_not_in_commands(tmp_path):
    words = ["--out", str(tmp_path), "--batch", "8"]
    line = common.command_line("gpu.kernels", words, {"DIR": tmp_path})
    assert line == "python -m benchmarks.gpu.kernels --out DIR --batch 8"
    words = ["--work", str(tmp_path), "--out", f"{tmp_path}-out", "--model", f"{tmp_path}/model.onnx"]
    line = common.command_line("gpu.kernels", words, {"DIR": tmp_path, "OUT": f"{tmp_path}-out"})
    assert line == "python -m benchmarks.gpu.kernels --work DIR --out OUT --model DIR/model.onnx"


@pytest.mark.parametrize(
    ("module", "record", "target"),
    [
        ("benchmarks.quantization.report", None, "benchmarks/quantization/RESULTS.md"),
        ("benchmarks.real.report", "benchmarks/real/training.json", "benchmarks/real/TRAINING.md"),
    ],
)
def test_reports_are_what_their_results_give(module, record, target):
    report = __import__(module, fromlist=["report"])
    text = report.markdown(json.loads((ROOT / record).read_text())) if record else report.text()
    assert text == (ROOT / target).read_text()
