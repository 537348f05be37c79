"""Processes that are started: what lies in the current folder never runs in them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lifedeploy
from lifedeploy import children
from lifedeploy.bench import memory, trtexec
from lifedeploy.engines.base import EngineOptions
from lifedeploy.errors import EngineError
from lifedeploy.machine import gpu_state

TRAPS = ("numpy", "torch", "json", "onnx", "onnxruntime", "msgspec", "sitecustomize")


@pytest.fixture
def trapped(tmp_path, monkeypatch) -> Path:
    """A current folder with modules of the names that everybody imports: each leaves a file where it is run."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    trap = f"from pathlib import Path; Path({str(tmp_path / 'sprung')!r}).touch(); raise SystemExit(7)\n"
    for name in TRAPS:
        (folder / f"{name}.py").write_text(trap)
    (folder / "lifedeploy").mkdir()
    (folder / "lifedeploy" / "__init__.py").write_text(trap)
    monkeypatch.chdir(folder)
    return tmp_path / "sprung"


def of_processes(python_path: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": python_path}


@pytest.mark.parametrize("python_path", ["", f"{os.sep}nowhere::."])
def test_bench_runs_nothing_of_the_current_folder(trapped, workspace, python_path):
    """The whole command, with the child that measures memory; started as the installed command is."""
    start = "import sys; from lifedeploy.cli.app import main; sys.exit(main())"
    arguments = [
        "bench",
        "-w",
        str(workspace),
        "-e",
        "fake",
        "--batch",
        "1",
        "--budget",
        "0.1",
        "--json",
        "report.json",
    ]
    environment = of_processes("") | {"CHILD_PATH": python_path}
    # The parent is given its path safely, and hands the other one on: what a child makes of it is the question.
    code = f"import os; os.environ['PYTHONPATH'] = os.environ['CHILD_PATH']; {start}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert '"peak_memory_mib": ' in Path("report.json").read_text()
    assert not trapped.exists()


@pytest.mark.parametrize("python_path", ["", ".", ":", f"{os.sep}nowhere::.", "relative", "relative:"])
def test_a_child_finds_the_package_and_nothing_of_the_current_folder(trapped, monkeypatch, python_path):
    monkeypatch.setenv("PYTHONPATH", python_path)
    done = subprocess.run(
        children.command("lifedeploy", "--version"), env=children.environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip().split()[-1]) == (0, lifedeploy.__version__)
    assert not trapped.exists()


def test_a_checkout_that_is_not_installed_is_the_one_that_runs(trapped, tmp_path):
    """Not another one that is installed, and no folder of it comes onto the path."""
    shutil.copytree(Path(lifedeploy.__file__).parent, tmp_path / "src" / "lifedeploy")
    version = tmp_path / "src" / "lifedeploy" / "__init__.py"
    version.write_text(version.read_text().replace(lifedeploy.__version__, "9.9.9"))
    (tmp_path / "src" / "numpy.py").write_text("raise SystemExit('not this one')\n")
    code = (
        f"import subprocess, sys; sys.path.insert(0, {str(tmp_path / 'src')!r}); from lifedeploy import children; "
        "done = subprocess.run(children.command('lifedeploy', '--version'), env=children.environment()); "
        "sys.exit(done.returncode)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().split()[-1] == "9.9.9", done.stderr
    assert not trapped.exists()


def test_grandchildren_are_as_safe(trapped):
    code = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', 'import json, numpy']).returncode)"
    assert subprocess.run(children.python("-c", code), env=children.environment()).returncode == 0
    assert not trapped.exists()


@pytest.mark.parametrize("path", [".", "", ":{}", ".:{}", "tools:{}"])
def test_tools_of_the_current_folder_are_not_found(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tools").mkdir()
    for folder in (tmp_path, tmp_path / "tools"):
        for name in ("trtexec", "nvidia-smi"):
            (folder / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
            (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", path.format("/nowhere"))
    assert trtexec.find("tensorrt") is None
    assert gpu_state() == []
    assert not (tmp_path / "sprung").exists()


def test_a_tool_on_the_path_is_found(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'A \\033[31mGPU, 1, 2, 3, 4, 5\\nnonsense\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f".:{tmp_path}")
    assert [row["name"] for row in gpu_state()] == ["A \\x1b[31mGPU"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('first\\nlast \\x1b[2J')", r"^it failed: last \\x1b\[2J$"),
        ("import os, sys; os.write(2, b'caf\\xe9\\n'); sys.exit(1)", "^it failed: caf"),
        ("import os; os.kill(os.getpid(), 9)", "^it failed: signal 9 ended it"),
        ("import time; time.sleep(60)", "^it failed: it took over 1 s$"),
    ],
)
def test_what_fails_in_a_child_is_told_in_a_line(code, reason):
    with pytest.raises(EngineError, match=reason) as told:
        children.run(children.python("-c", code), "it", timeout_s=1 if "sleep" in code else 60)
    assert "\n" not in told.value.message and "\x1b" not in told.value.message


@pytest.mark.parametrize("said", ["", "{}", '"much"', "12 MiB", "[1]"])
def test_a_child_that_says_something_else_is_not_believed(monkeypatch, tmp_path, said):
    monkeypatch.setattr(children, "run", lambda *arguments, **options: said)
    with pytest.raises(EngineError, match=r"^the answer of the process that measures the memory of model\.onnx"):
        memory.peak_memory_mib("onnxruntime", tmp_path / "model.onnx", EngineOptions(), 1)


def test_a_worker_that_is_ended_cleans_up_behind_itself():
    child = os.fork()
    if child == 0:
        try:
            children.as_worker()
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit as ending:  # by which multiprocessing's finalisers run
            os._exit(7 if ending.code == 128 + signal.SIGTERM else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
