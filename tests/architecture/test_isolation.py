"""What is loaded, and when."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lifedeploy import optional

HEAVY = ("torch", "timm", "onnx", "onnx_ir", "onnxruntime", "openvino", "matplotlib", "numpy", "PIL", "safetensors")
HEAVY += ("onnxscript", "ml_dtypes", "accelerate", "tomli_w", "datasets")
HEAVY += ("pyarrow", "fsspec", "ray")
HEAVY += ("tensorrt", "tensorrt_rtx", "cuda", "pycuda")
SCRIPT = """
import sys
{code}
print("loaded:" + ",".join(name for name in {heavy!r} if name in sys.modules))
"""


def loaded_after(code: str) -> set[str]:
    script = SCRIPT.format(code=code, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(filter(None, done.stdout.splitlines()[-1].removeprefix("loaded:").split(",")))


@pytest.mark.parametrize(
    "code",
    [
        "import lifedeploy",
        "import lifedeploy.cli.app",
        "import lifedeploy.schedule, lifedeploy.spec, lifedeploy.artifact, lifedeploy.machine",
    ],
)
def test_importing_loads_nothing_heavy(code):
    assert loaded_after(code) == set()


@pytest.mark.parametrize(
    "command",
    [
        "",
        "export",
        "build-engine",
        "bench",
        "inspect",
        "verify",
        "predict",
        "score",
        "doctor",
        "train",
        "evaluate",
        "visualize",
        "calibrate",
    ],
)
def test_help_loads_nothing_heavy(command):
    arguments = [argument for argument in ("lifedeploy", command, "--help") if argument]
    code = f"""
from lifedeploy.cli.app import main
sys.argv = {arguments!r}
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
"""
    assert loaded_after(code) == set()


def test_naming_engines_loads_no_runtime():
    code = "from lifedeploy.engines import registry; [registry.get(name) for name in registry.names(hidden=True)]"
    runtimes = {"torch", "timm", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "pycuda"}
    assert not loaded_after(code) & runtimes


def test_what_asks_engines_imports_no_framework():
    """What is not there where only a runtime is installed; tests/runtime has such an environment."""
    code = """
from lifedeploy.workflows import bench, build, doctor, evaluate, inspect, predict, score, verify, visualize
from lifedeploy.engines import registry
registry.resolve("auto")
"""
    loaded = loaded_after(code)
    assert not loaded & {module for extra in optional.EXTRAS.values() for module in extra}


def test_images_are_found_and_decoded_without_torch(tmp_path):
    code = f"""
from pathlib import Path
from PIL import Image
from lifedeploy.data.images import read_images
folder = Path({str(tmp_path)!r}, "cat")
folder.mkdir()
Image.new("RGB", (8, 8)).save(folder / "1.webp")
images = read_images({str(tmp_path)!r})
assert images.image(0).size == (8, 8)
"""
    assert not loaded_after(code) & {"torch", "timm"}
