"""What installing us brings in, and what it must not."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", requirement)[0].lower() for requirement in requirements}


def test_the_extras_are_those_that_are_documented():
    extras = set(PROJECT["optional-dependencies"])
    runtimes = {"cpu", "gpu", "openvino", "tensorrt", "tensorrt-rtx", "onnxruntime-rtx", "pycuda"}
    assert extras == runtimes | {"datasets", "tensorboard", "kserve", "dev"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for extra in extras:
        assert f"[{extra}]" in readme


@pytest.mark.parametrize("extra", ["gpu", "openvino", "tensorrt", "tensorrt-rtx", "pycuda", "dev"])
def test_the_two_onnxruntimes_never_meet(extra):
    """They own the same import name: only [cpu] brings one, only [gpu] the other, and nothing else brings either."""
    base = names(PROJECT["dependencies"])
    brought = names(PROJECT["optional-dependencies"][extra])
    assert "onnxruntime" not in base | brought
    if extra != "gpu":
        assert "onnxruntime-gpu" not in base | brought


def test_the_pinned_versions_satisfy_the_ranges_and_name_no_host():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    pinned = names([line for line in text.splitlines() if line and not line.startswith("#")])
    wanted = names(PROJECT["dependencies"]) | names(PROJECT["optional-dependencies"]["cpu"])
    assert {name.replace("_", "-") for name in wanted} <= {name.replace("_", "-") for name in pinned}


def test_photographs_travel_with_the_package():
    from lifedeploy.data.samples import PHOTOS, photo_folder

    assert all((photo_folder() / name).is_file() for name in PHOTOS)
