"""The command line in an environment that has what one extra brings, and nothing else: ``make runtime-env``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-runtime"
PYTHON = ENVIRONMENT / "bin" / "python"

# The full environment, as one that lacks some modules: None is how Python is told that there is no such module.
_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))
from lifedeploy.cli.app import main
main()
"""


def ended(*arguments: object) -> Ended:
    """How a program ends that has the code under test before whatever is installed."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False, env=variables)
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def python() -> Path:
    """That environment's Python."""
    if not PYTHON.exists() and not os.environ.get("CI"):
        pytest.skip("there is no environment without torch: make runtime-env")
    return PYTHON


@pytest.fixture
def bare(python: Path) -> Callable[..., Ended]:
    """``lifedeploy`` in that environment."""
    return lambda *arguments: ended(python, "-P", "-m", "lifedeploy", *arguments)


@pytest.fixture
def without() -> Callable[..., Ended]:
    """``lifedeploy`` in this environment, where some modules are not to be imported."""
    return lambda modules, *arguments: ended(sys.executable, "-P", "-c", _WITHOUT, ",".join(modules), *arguments)
