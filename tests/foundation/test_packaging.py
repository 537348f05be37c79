"""What installing us brings in, and what it must not."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from lifedeploy import optional

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
RUNTIMES = {"cpu", "gpu", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "onnxruntime-rtx", "pycuda"}
OTHERS = {"export", "train", "plot", "datasets", "tensorboard", "full", "serve", "kserve", "score", "ray", "dev"}
ORT = {"onnxruntime", "onnxruntime-gpu"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", requirement)[0].lower() for requirement in requirements}


def brought(extra: str) -> set[str]:
    """What an extra brings beside what comes anyway, extras of ours in it followed."""
    inner = [name for line in EXTRAS[extra] if line.startswith("lifedeploy[") for name in line[11:-1].split(",")]
    return (names(EXTRAS[extra]) - {"lifedeploy"}).union(*map(brought, inner))


def test_the_extras_are_those_that_are_documented():
    assert set(EXTRAS) == RUNTIMES | OTHERS
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for extra in EXTRAS:
        assert f"[{extra}]" in readme


def test_without_extras_no_framework_and_no_runtime_comes():
    assert names(PROJECT["dependencies"]) == {"numpy", "pillow", "msgspec", "typer", "rich"}


@pytest.mark.parametrize("extra", sorted(RUNTIMES | {"plot", "datasets"}))
def test_a_runtime_brings_no_framework(extra):
    assert not brought(extra) & {"torch", "timm", "onnxscript", "onnx-ir", "accelerate"}


@pytest.mark.parametrize("extra", sorted(RUNTIMES))
def test_who_opens_onnx_files_brings_onnx(extra):
    """And who opens what was built of them alone does not."""
    assert ("onnx" in brought(extra)) == bool(brought(extra) & ORT)


@pytest.mark.parametrize("extra", sorted((RUNTIMES | OTHERS) - {"cpu", "onnxruntime", "onnxruntime-rtx"}))
def test_the_two_onnxruntimes_never_meet(extra):
    """They own the same import name: those that say so bring one, only [gpu] the other, and nothing else either."""
    assert brought(extra) & ORT == ({"onnxruntime-gpu"} if extra == "gpu" else set())


def test_full_is_all_but_runtimes_and_tools():
    assert brought("full") == set().union(
        *(brought(extra) for extra in OTHERS - {"serve", "kserve", "score", "ray", "dev"})
    )


@pytest.mark.parametrize("extra", optional.EXTRAS)
def test_the_pip_line_of_a_missing_module_brings_it(extra):
    modules = {name.replace("_", "-") for name in optional.EXTRAS[extra]}
    assert modules <= brought(extra)
    for module in optional.EXTRAS[extra]:
        lacking = optional.of_extra(ModuleNotFoundError(name=f"{module}.inner"))
        assert lacking is not None
        assert (lacking.message, lacking.hint) == (f"{module} is not installed", optional.pip_line(extra))


def test_a_module_that_no_extra_brings_is_nobodys_missing_extra():
    assert optional.of_extra(ModuleNotFoundError(name="lifedeploy.nothing")) is None
    assert optional.of_extra(ModuleNotFoundError("halted")) is None


def test_the_pinned_versions_satisfy_the_ranges_and_name_no_host():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    pinned = names([line for line in text.splitlines() if line and not line.startswith("#")])
    wanted = names(PROJECT["dependencies"]).union(*map(brought, ("full", "cpu", "dev")))
    assert {name.replace("_", "-") for name in wanted} <= {name.replace("_", "-") for name in pinned}


def test_photographs_travel_with_the_package():
    from lifedeploy.data.samples import PHOTOS, photo_folder

    assert all((photo_folder() / name).is_file() for name in PHOTOS)
