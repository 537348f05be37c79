"""The README's own commands and code, run in an empty folder as a new user would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )


def test_commands(folder):
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert [command.split()[1] for command in commands[:3]] == ["export", "build-engine", "bench"]
    for command in commands:
        command = re.sub(r"--budget \d+", "--budget 1", command)  # speeds are not what this looks at
        done = run(shlex.split(command), folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (folder / "bench.png").stat().st_size > 10_000
    assert (folder / "bench.json").is_file()


def test_python(folder):
    done = run([sys.executable, "-c", "\n".join(blocks("python"))], folder)
    assert done.returncode == 0, done.stderr
    assert "artifacts/deit_t-life-r0.5" in done.stdout


def test_every_command_is_described():
    from typer.main import get_command

    from lifedeploy.cli.app import app

    for name in get_command(app).commands:
        assert f"`{name}" in README, name
