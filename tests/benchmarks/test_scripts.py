"""The benchmark scripts import and explain themselves; the digits come out right."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = (
    "cpu/attention.py",
    "cpu/targets.py",
    "digits/prepare.py",
    "digits/recipes.py",
    "gpu/attentions.py",
    "gpu/bare.py",
    "gpu/kernels.py",
    "gpu/measure.py",
    "gpu/questions.py",
    "gpu/variants.py",
    "precision/islands.py",
    "real/engines.py",
    "real/prepare.py",
    "real/run.py",
    "real/training.py",
    "sizes/verify.py",
    "tensorrt/kernels.py",
    "training/speed.py",
)


# All in one process, since most of the time is importing torch; as scripts, with their own folder to import from.
EXPLAIN = """
import runpy, sys
sys.path.insert(0, "")
root, scripts = sys.argv[1], sys.argv[2:]
for script in scripts:
    path = f"{root}/{script}"
    sys.path[0], sys.argv = path.rpartition("/")[0], [path, "--help"]
    for name in [name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(root)]:
        del sys.modules[name]  # siblings of another script
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as error:
        assert not error.code, (script, error)
        print("explained", script)
"""


def test_every_script_imports_and_explains_itself():
    assert all((ROOT / script).is_file() for script in SCRIPTS)
    done = subprocess.run(
        [sys.executable, "-c", EXPLAIN, str(ROOT), *SCRIPTS], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == len(SCRIPTS)
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("explained")] == list(SCRIPTS)


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
