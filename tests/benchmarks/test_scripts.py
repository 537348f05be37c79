"""The benchmark scripts import and explain themselves; the digits come out right."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = (
    "cpu/targets.py",
    "digits/prepare.py",
    "digits/recipes.py",
    "gpu/bare.py",
    "gpu/measure.py",
    "gpu/questions.py",
    "gpu/variants.py",
    "precision/islands.py",
    "real/engines.py",
    "real/prepare.py",
    "real/run.py",
    "real/training.py",
    "tensorrt/kernels.py",
    "training/speed.py",
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_imports_and_explains_itself(script):
    done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_the_digits_are_split_evenly_and_written_once(tmp_path):
    spec = importlib.util.spec_from_file_location("digits_prepare", ROOT / "digits" / "prepare.py")
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
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
