"""A package with a method, installed for these tests and for nothing else; an export by it, and engines of that."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.cli.app import app
from lifedeploy.model import weights
from lifedeploy.workflows.build import BuildRequest, build
from tests.conftest import TINY
from tests.engines.tensorrt.conftest import rtx  # noqa: F401  a fixture
from tests.workflows.test_evaluate import make_images

PACKAGE = Path(__file__).parent / "lifedeploy-outside"
MODULE = "lifedeploy_outside"
EXPORT = (*("export", "--method", "outside"), *("--backbone", TINY, "--img-size", "64"))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The folders to search where the package is installed: its modules', and its metadata's, made of pyproject.toml.

    As pip would make it of a package in development, and without a network.
    """
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    folder = tmp_path_factory.mktemp("site")
    metadata = folder / f"{MODULE}-{project['version']}.dist-info"
    metadata.mkdir()
    facts = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(facts)
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    return PACKAGE / "src", folder


@contextmanager
def installed(site: tuple[Path, ...]) -> Iterator[None]:
    """Within, this process and its children have the package; before and after, nobody has."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            for folder in site:
                patch.syspath_prepend(folder)
            patch.setenv("PYTHONPATH", os.pathsep.join(map(str, site)), prepend=os.pathsep)
            _forget()
            yield
    finally:
        _forget()


def _forget() -> None:
    methods.plugins.cache_clear()
    methods._loaded.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == MODULE]:
        del sys.modules[name]


@pytest.fixture
def outside(site: tuple[Path, ...]) -> Iterator[None]:
    """The package is installed during the test."""
    with installed(site):
        yield


@pytest.fixture(scope="session")
def by_outside(site: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory, weights_file: Path) -> Path:
    """A workspace with an export, made on the command line and checked, and engines. Read only: take a copy."""
    root = tmp_path_factory.mktemp("outside") / "artifacts"
    with installed(site):
        arguments = [*EXPORT, "--rho", "0.7", "--weights", str(weights_file), "--workspace", str(root)]
        assert app(arguments, standalone_mode=False) is None
        for engine in ("fake", "openvino", "onnxruntime"):
            build(BuildRequest(engine=engine), Workspace(root))
    return root


@pytest.fixture
def folder(by_outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That export, in a copy of the workspace, which is ``artifacts/`` of the current folder."""
    monkeypatch.setattr(weights, "hub_obstacle", lambda name: "no hub in a test")
    shutil.copytree(by_outside, tmp_path / "artifacts")
    monkeypatch.chdir(tmp_path)
    return Path("artifacts") / next(by_outside.glob("*/model.json")).parent.name


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of each of the model's classes."""
    return make_images(tmp_path_factory.mktemp("labelled") / "data", count=8)
