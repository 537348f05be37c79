"""The script for a GPU, as far as a CPU can tell: its clock, its lists of what failed and was skipped, its tables.

And all of it from start to end, dry.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import kernels, measure
from lifedeploy.artifact import Workspace
from lifedeploy.bench.measure import Stop
from lifedeploy.optional import installed
from lifedeploy.workflows.bench import BenchRequest, bench

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
OPINION = {"share": 0.995, "images_per_s": 1000.0, "gpu_ms": 1.5}
LABELS = {"backbone": "tiny", "schedule": "ρ 0.7", "fusion": {"attention": 6, "topk": 1}}


def test_the_clock_ends_it_and_failures_are_written_down(tmp_path):
    run = measure.Run(tmp_path, tmp_path, minutes=1, command="measure")
    assert run.command("-c", "pass", what="nothing", limit_s=30)
    assert not run.command("-c", "import sys; sys.exit('some\\nerror: no such engine')", what="a build", limit_s=30)
    text = (tmp_path / "RESULTS.md").read_text()  # after every step
    assert "- a build: error: no such engine" in text and "| nothing |" in text
    assert run.record["failed"] == [{"what": "a build", "reason": "error: no such engine"}]
    assert not run.command("-c", "pass", what="too late", limit_s=30, least_s=100)
    run.ends -= 59
    assert not run.command("-c", "import time; time.sleep(30)", what="too long", limit_s=30, least_s=0)
    assert run.record["skipped"] == ["too late", "too long (cut off)"]
    assert "- too late" in (tmp_path / "RESULTS.md").read_text()


def test_a_step_that_hangs_ends_at_its_limit_with_all_that_it_began(tmp_path):
    """A grandchild that holds on to the output must not hold up the others."""
    child = f"import time; open({str(tmp_path / 'alive')!r}, 'w').close(); time.sleep(30)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    run = measure.Run(tmp_path, tmp_path, minutes=1, command="measure")
    began = time.monotonic()
    assert not run.command("-c", code, what="hangs", limit_s=2)
    assert (tmp_path / "alive").exists() and time.monotonic() - began < 15
    assert run.record["failed"] == [{"what": "hangs", "reason": "took over 2 s, and was ended"}]
    assert run.command("-c", "pass", what="the next", limit_s=30)


def test_what_matters_most_comes_first(tmp_path, monkeypatch):
    """And what fails takes nothing else with it."""
    done = []

    def command(run, *words, what, **limits):
        done.append(what)
        return "torch-compiled" not in what and "export of deit_b, ρ" not in what

    monkeypatch.setattr(measure.Run, "command", command)
    monkeypatch.setattr(measure.Run, "fusion", lambda *_: {})
    monkeypatch.setattr(
        measure.Run, "bench", lambda run, export, engine, batch, labels, *_: done.append((engine, batch))
    )
    monkeypatch.setattr(measure.Run, "bare", lambda run, export, engine, batch: done.append("bare"))
    run = measure.Run(tmp_path, tmp_path, minutes=1, command="measure")
    measure.measure(run, ("onnxruntime-cuda", "torch-compiled", "tensorrt", "torch-cuda"))
    assert done[:10] == [
        *("export of deit_s, ρ 0.7", "build of deit_s, ρ 0.7, onnxruntime-cuda", ("onnxruntime-cuda", 128)),
        *("build of deit_s, ρ 0.7, torch-compiled", "build of deit_s, ρ 0.7, tensorrt", ("tensorrt", 128), "bare"),
        *("forms of attention on ONNX Runtime", "kernels of onnxruntime-cuda", "build of deit_s, ρ 0.7, torch-cuda"),
    ]
    ported = [what for what in done if isinstance(what, str) and what.startswith("export")]
    assert ported == [f"export of {one}, {other}" for one in ("deit_s", "deit_b") for other in ("ρ 0.7", "127, 95, 63")]
    assert done.index(("onnxruntime-cuda", 8)) < done.index("export of deit_s, 127, 95, 63")
    assert done[-1] == ("torch-cuda", 256)


def test_rows_become_lines(workspace, tmp_path):
    quick = Stop(budget_s=0.01, min_rounds=3)
    request = BenchRequest(engines=("onnxruntime",), batches=(2,), stop=quick, memory=False)
    on_cpu = json.loads(json.dumps(bench(request, Workspace(workspace)).to_dict()))["rows"]
    device = {"p50": 1.25, "p90": 2.0, "p99": 3.0}
    on_gpu = [row | {"copies": False, "device_ms": device, "trtexec": OPINION} for row in on_cpu]
    run = measure.Run(tmp_path, tmp_path, minutes=1, command="measure")
    run.record["rows"] = [row | LABELS for row in (*on_cpu, *on_gpu)]
    run.record["bare"] = [{"engine": "tensorrt", "batch": 128, "share": 0.998, "low": 0.99, "high": 1.0, "rounds": 9}]
    run.record["kernels"] = {"tiny, ρ 0.7, onnxruntime-cuda": "6 × FLASH_ATTENTION"}
    eight = {"precision": "fp8", "over_base": 1.9, "over_base_low": 1.8, "over_base_high": 2.0}
    run.record["rows"][-1] |= eight
    run.write()
    lines = (tmp_path / "RESULTS.md").read_text().splitlines()
    assert "- onnxruntime fp8, batch 2, life: 1.90 [1.80, 2.00]" in lines
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| tiny")]
    head = next(line for line in lines if line.startswith("| backbone")).split("|")[1:-1]
    assert [len(row) for row in cells] == [len(head)] * 6
    assert [row[5] for row in cells] == ["–"] * 3 + ["without"] * 3
    assert [row[9] for row in cells][3:] == ["1.25"] * 3
    life = next(row for row in cells if row[6] == "life")
    assert life[13] == "6, 1"
    assert "- tensorrt, batch 128: 0.998 [0.990, 1.000], 9 rounds" in lines
    assert "- tiny, ρ 0.7, onnxruntime-cuda: 6 × FLASH_ATTENTION" in lines
    assert "- onnxruntime fp32, batch 2, dense: 0.995 of its 1000 img/s (1.500 ms on the GPU)" in lines
    run.record["rows"][2]["fusion"] = {"attention": None, "topk": 1}
    run.write()
    assert "| ?, 1 |" in (tmp_path / "RESULTS.md").read_text()


def test_where_nothing_runs_or_something_is_missing_it_says_what(monkeypatch, tmp_path):
    from lifedeploy.engines import registry
    from lifedeploy.engines.base import Availability

    monkeypatch.setattr(registry, "examine", lambda engine: Availability(False, "no GPU"))
    with pytest.raises(
        SystemExit, match="no engine runs on a GPU here: onnxruntime-cuda: no GPU; torch-compiled: no GPU; tens"
    ):
        measure.main(["--out", str(tmp_path)])
    monkeypatch.setattr(measure, "NEEDED", ("a_module_that_nobody_has",))
    with pytest.raises(SystemExit, match="not installed: a_module_that_nobody_has"):
        measure.main(["--out", str(tmp_path)])


@pytest.mark.parametrize("words", [["--dry"], ["--dry", "--out", str(GPU)]])
def test_a_dry_run_never_writes_where_results_are(words):
    with pytest.raises(SystemExit, match=r"a dry run needs --out FOLDER, and not .*benchmarks/gpu, where results are"):
        measure.main(words)


@pytest.mark.skipif(
    not installed("tensorrt_rtx") and not os.environ.get("CI"), reason="TensorRT for RTX is not installed"
)
def test_everything_runs_dry_from_start_to_end(tmp_path):
    """Every step and every table, without a GPU: no device time is lost to a typing error."""
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(GPU / "run.sh"), "--dry", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=570)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["failed"] == found["skipped"] == [] and found["dry"]
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.splitlines()[2].startswith("**Dry run:") and text.splitlines()[2].endswith("mean nothing.**")
    seen = {(row["engine"], row["precision"], row["batch"], row["streams"], row["copies"]) for row in found["rows"]}
    for engine in ("onnxruntime-cuda", "torch-compiled", "tensorrt"):
        assert {(engine, "fp16", 4, 1, True), (engine, "fp16", 4, 1, False)} <= seen
    assert {("tensorrt", "fp8", 4, 1, False), ("tensorrt", "int8", 4, 1, False)} <= seen
    assert {("onnxruntime-cuda", "fp16", 8, streams, copies) for streams in (1, 2) for copies in (True, False)} <= seen
    assert len({row["schedule"] for row in found["rows"]}) == 2
    head, *lines = [line for line in text.splitlines() if line.startswith(("| backbone |", "| test_vit |"))]
    assert len(lines) == len(found["rows"]) and {line.count("|") for line in lines} == {head.count("|")}
    for section in ("a bare loop", "8 bits", "trtexec", "Attention kernels", "Steps"):
        body = text.partition(section)[2]
        assert body.partition("\n## ")[0].strip().count("\n") >= 1, section
    assert found["bare"][0]["engine"] == "tensorrt"
    forms = json.loads((tmp_path / "attentions.json").read_text())
    assert [row["variant"] for row in forms["rows"]] == ["products", "operator", "contrib", "contrib, biases apart"]
    assert all(row["times"][0]["ms"] > 0 and row["times"][0]["kept"] == 1 for row in forms["rows"])
    variants = json.loads((tmp_path / "variants.json").read_text())
    assert len(variants["rows"]) == 5 and variants["not_timed"] == {}
    assert all(row["times"][0]["ms"] > 0 for row in variants["rows"])
    assert json.loads((tmp_path / "kernels.json").read_text())["rows"] and (tmp_path / "KERNELS.md").exists()
    for name in ("ATTENTIONS", "VARIANTS"):
        text = (tmp_path / f"{name}.md").read_text()
        assert "**Run on a CPU: this says that" in text or "**Dry run: times are of emulated" in text


def test_what_has_to_be_installed_is_all_that_the_package_imports_anywhere():
    """A machine that lacks one of them is told so at once, and not by a traceback when minutes on a GPU have passed."""
    imported = set()
    package = GPU.parents[1] / "lifedeploy"
    served = {*package.glob("serving/kserve_*.py")}  # what runs inside KServe's server, and nowhere else
    for path in {*package.rglob("*.py")} - served:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.partition(".")[0] for name in names}
    assert imported - set(sys.stdlib_module_names) - {"lifedeploy"} <= {*measure.NEEDED, "resource"}


def test_kernels_are_summed_by_what_they_do():
    assert kernels.kind_of("void onnxruntime::cuda::BroadcastBiasKernel<__half, int, false>") == "copying biases"
    assert kernels.kind_of("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16") == "attention"
    assert kernels.kind_of("sm80_xmma_fprop_implicit_gemm_indexed_wo_smem_f16f16") == "patch embedding"
    assert kernels.kind_of("nvjet_sm90_hsh_192x192_64x3_2x1_v_badd_coopB_NNN") == "matrix products"
    assert kernels.kind_of("void onnxruntime::cuda::_UnaryElementWise<OP_Gelu<__half>, 256, 4>") == "GELU"
    assert kernels.kind_of("void op_generic_tensor_kernel") == kernels.ELSE
