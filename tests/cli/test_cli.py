"""The command line: chains, reports, and one clear line with the right exit code for every bad input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from lifedeploy import methods, optional
from lifedeploy.artifact import Workspace
from lifedeploy.cli.commands.inspect import _identity
from lifedeploy.data.samples import photo_folder
from lifedeploy.model.weights import ModelRequest
from lifedeploy.workflows import export as exporting
from lifedeploy.workflows.export import ExportRequest, export
from lifedeploy.workflows.inspect import InspectReport
from tests.conftest import TINY, TINY_SIZE

pytestmark = pytest.mark.usefixtures("traced_once")

CAT = photo_folder() / "chelsea.jpg"


def test_version_and_module_entry():
    done = subprocess.run([sys.executable, "-m", "lifedeploy", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lifedeploy 0.")


def test_build_engine_reuses_and_says_what_it_does_instead(workspace, lifedeploy):
    ended = lifedeploy("build-engine", "--fp16", "--engine", "onnxruntime")
    assert ended.code == 0
    assert "asked for fp16, runs fp32" in ended.err
    assert "building FP32 instead" in ended.err
    again = lifedeploy("build-engine", "--fp16", "--engine", "onnxruntime")
    assert "reused: nothing changed" in again.out
    manifest = json.loads(next(workspace.glob("*/onnxruntime-fp32/model.json")).read_text())
    assert manifest["engine"]["requested"] == "fp16"
    assert manifest["engine"]["precision"] == "fp32"
    assert "FP32 instead" in manifest["engine"]["note"]


def test_bench_shows_a_table_and_writes_its_files(workspace, lifedeploy, tmp_path):
    ended = lifedeploy(
        *("bench", "--engine", "fake", "--batch", "1,2", "--budget", "0.1", "--no-memory"),
        *("--json", tmp_path / "b.json", "--csv", tmp_path / "b.csv", "--plot", tmp_path / "b.svg"),
    )
    assert ended.code == 0, ended.err
    assert "speed-up" in ended.out
    assert "first-k" in ended.out
    report = json.loads((tmp_path / "b.json").read_text())
    assert [row["batch"] for row in report["rows"]] == [1, 1, 1, 2, 2, 2]
    assert report["command"].startswith("lifedeploy bench --engine fake")
    assert (tmp_path / "b.csv").read_text().startswith("model,method,engine")
    assert "<svg" in (tmp_path / "b.svg").read_text()


def test_inspect_shows_the_schedule_and_the_graph(workspace, lifedeploy):
    ended = lifedeploy("inspect")
    assert ended.code == 0
    assert "16→11→8→5" in ended.out
    assert "1 TopK (k = 11), 1 Gather fed by it" in ended.out
    engine = lifedeploy("inspect", next(workspace.glob("*/onnxruntime-fp32")), "--json", "-")
    assert json.loads(engine.out)["manifest"]["engine"]["name"] == "onnxruntime"


@pytest.mark.parametrize(
    ("method", "fate", "words"),
    [
        (
            "tome",
            "merged",
            (
                "tome: ToMe (",
                "are merged into others",
                "its own: it merges as many tokens in every layer as 13 of 196 in 12",
            ),
        ),
        ("evo-vit", "parked", ("wait, and come back", "its own: half of the patches, from a third of the layers on")),
        ("avit", "halted", ("are masked, and none is dropped", "1 to 12 layers, as the image has it")),
        ("avit-ranked", "dropped", ("A-ViT scores, fixed budget", "tokens that do not go on are dropped")),
    ],
)
def test_inspect_says_what_becomes_of_tokens_and_by_whose_budget(workspace, method, fate, words):
    row = methods.get(method)
    artifact = Workspace(workspace).latest_export()
    schedule = row.make_schedule(196, 12, keep_rate=None if row.own_budget else 0.7)
    spec = replace(artifact.manifest.spec, method=method, schedule=schedule, options=row.plain_options({}))
    report = InspectReport(path="x", manifest=replace(artifact.manifest, spec=spec), spec=spec)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(_identity(report.spec, report.manifest))
    shown = console.export_text()
    for word in words:
        assert word in shown
    assert report.to_dict()["method"] == {"title": row.title, "fate": fate, "own_budget": row.own_budget}
    if row.takes_keep_rate and row.own_budget:
        rated = replace(spec, schedule=row.make_schedule(196, 12, keep_rate=0.7))
        assert InspectReport(path="x", spec=rated).method["own_budget"] == ""


def test_inspect_takes_a_foreign_onnx_file(workspace, lifedeploy, tmp_path):
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(next(workspace.glob("*/model.onnx")).read_bytes())
    ended = lifedeploy("inspect", foreign)
    assert ended.code == 0
    assert "Not exported by lifedeploy" in ended.out
    assert "1 TopK (k = 11)" in ended.out


@pytest.mark.parametrize("second", ["model.onnx", "openvino-fp32", "onnxruntime-fp32/model.json"])
def test_verify_takes_checkpoint_onnx_and_engine(workspace, lifedeploy, second):
    folder = next(workspace.glob("*/model.json")).parent
    ended = lifedeploy("verify", folder / "weights.safetensors", folder / second)
    assert ended.code == 0, ended.err
    assert ended.out.rstrip().endswith("same")
    assert "100.0%" in ended.out


def test_verify_tells_a_difference_and_fails(workspace, lifedeploy, tmp_path):
    folder = next(workspace.glob("*/model.json")).parent
    state = load_file(folder / "weights.safetensors")
    from safetensors import safe_open

    with safe_open(folder / "weights.safetensors", "pt") as file:
        metadata = file.metadata()
    state["backbone.blocks.2.mlp.fc1.weight"] = state["backbone.blocks.2.mlp.fc1.weight"] * 1.5
    save_file(state, tmp_path / "other.safetensors", metadata=metadata)
    ended = lifedeploy("verify", tmp_path / "other.safetensors", folder / "model.onnx")
    assert ended.code == 1
    assert "not the same" in ended.out
    assert "model.onnx does not compute what" in ended.lines[0]
    assert "other.safetensors does" in ended.lines[0]


def test_verify_runs_a_checkpoint_under_the_method_of_the_other_side(workspace, lifedeploy):
    folder = next(workspace.glob("*/model.json")).parent
    for name in ("dense.onnx", "first-k.onnx"):
        ended = lifedeploy("verify", folder / "weights.safetensors", folder / name)
        assert ended.code == 0, ended.err


def test_verify_gives_a_foreign_graph_what_ours_gets(workspace, lifedeploy, tmp_path):
    """vit_tiny normalises by 0.5, not by ImageNet's mean: a copy without manifest has to see the same pixels."""
    folder = next(workspace.glob("*/model.json")).parent
    (tmp_path / "copy.onnx").write_bytes((folder / "model.onnx").read_bytes())
    ended = lifedeploy("verify", folder / "model.onnx", tmp_path / "copy.onnx")
    assert ended.code == 0, ended.err


def test_only_onnx_files_run_without_a_manifest(workspace, lifedeploy, tmp_path):
    engine = next(workspace.glob("*/openvino-fp32/model.xml"))
    (tmp_path / "bare.xml").write_bytes(engine.read_bytes())
    ended = lifedeploy("bench", tmp_path / "bare.xml", "--engine", "openvino")
    assert ended.code == 1
    assert "has no manifest beside it, and only ONNX files are measured without one" in ended.lines[0]


@pytest.mark.parametrize(
    "options",
    [["--batch-size", "2"], ["--batch-size", "1"], ["--graph", "per-stage"], ["--with-life"], ["--with-preprocess"]],
    ids=" ".join,
)
def test_every_kind_of_export_goes_all_the_way(options, lifedeploy, tmp_path, weights_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["-b", TINY, "--weights", weights_file, "--img-size", "64"]
    assert lifedeploy("export", *common, *options).code == 0
    assert lifedeploy("build-engine", "--engine", "openvino").code == 0
    batch = options[1] if options[0] == "--batch-size" else "3"
    measured = lifedeploy(
        *("bench", "--batch", batch, "--engine", "openvino", "--engine", "onnxruntime"),
        *("--budget", "0.1", "--no-memory", "--json", "-"),
    )
    assert measured.code == 0, measured.err
    assert len(json.loads(measured.out)["rows"]) == 6
    assert lifedeploy("predict", CAT).code == 0
    if options[0] == "--batch-size":
        other = lifedeploy("bench", "--batch", "5", "--engine", "openvino", "--budget", "0.1", "--no-memory")
        assert other.code == 1
        assert f"is fixed to batch {batch}, and batch 5 was asked for" in other.lines[0]


def test_verify_refuses_two_different_models(workspace, lifedeploy):
    folder = next(workspace.glob("*/model.json")).parent
    ended = lifedeploy("verify", folder / "model.onnx", folder / "dense.onnx")
    assert ended.code == 2
    assert "these are not forms of one model: method is life and dense" in ended.lines[0]


def test_predict_names_classes(workspace, lifedeploy):
    ended = lifedeploy("predict", CAT, photo_folder() / "rocket.jpg", "--top", "2", "--json", "-")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert [len(prediction["guesses"]) for prediction in report["predictions"]] == [2, 2]
    for prediction in report["predictions"]:
        assert {guess["name"] for guess in prediction["guesses"]} < {"cat", "cup", "rocket"}
        assert prediction["inference_ms"] > 0
    assert "ms)" in lifedeploy("predict", CAT).out


@pytest.fixture
def sick(tmp_path, weights_file):
    """An export, unchecked, of weights that are all numbers, and whose answers are not."""
    state = load_file(weights_file)
    state["head.weight"][1] = 3e38
    save_file(state, tmp_path / "sick.safetensors", metadata={"classes": '["cat", "cup", "rocket"]'})
    request = ModelRequest(backbone=TINY, weights=str(tmp_path / "sick.safetensors"), image_size=TINY_SIZE)
    export(ExportRequest(request, check_parity=False, output=tmp_path / "sick"), Workspace(tmp_path))
    return tmp_path / "sick"


def test_an_answer_that_is_no_number_is_never_shown(sick, lifedeploy, tmp_path):
    said = "on onnxruntime fp32 gives NaN or infinity for "
    ended = lifedeploy("predict", CAT, "--model", sick, "--json", "-")
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.lines[0] and str(CAT) in ended.lines[0]
    ended = lifedeploy("visualize", sick, CAT, "-o", tmp_path / "lives.png")
    assert ended.code == 1
    assert "gives NaN or infinity for " in ended.lines[0]
    assert not (tmp_path / "lives.png").exists()


def test_weights_that_are_no_numbers_do_not_pass_the_gate(sick, lifedeploy, tmp_path):
    ended = lifedeploy("export", "-b", TINY, "--weights", sick / "weights.safetensors", "-w", tmp_path / "w")
    assert ended.code == 1
    assert "the reference itself is not finite" in ended.lines[0]
    assert not list((tmp_path / "w").glob("*"))


def test_json_on_standard_output_has_no_nan(sick, lifedeploy):
    ended = lifedeploy("verify", sick / "weights.safetensors", sick / "model.onnx", "--json", "-")
    assert ended.code == 1
    report = json.loads(ended.out, parse_constant=pytest.fail)
    assert report["parity"]["passed"] is False and report["parity"]["max_abs"] is None


def test_a_model_that_fits_into_no_onnx_file_is_refused_before_it_is_made(lifedeploy, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "load", lambda *arguments, **options: pytest.fail("weights were made"))
    ended = lifedeploy("export", "-b", "vit_giant_patch14_dinov2", "--weights", "random", "-w", tmp_path / "w")
    assert ended.code == 1
    assert "the weights take 4.2 GiB, and one ONNX file holds at most 2 GiB" in ended.lines[0]
    assert not (tmp_path / "w").exists()


def test_predict_refuses_random_weights(workspace, lifedeploy):
    path = next(workspace.glob("*/fake-fp32/model.json"))
    path.write_text(path.read_text().replace('"weights": "file"', '"weights": "random"'))
    ended = lifedeploy("predict", CAT, "--model", path)
    assert ended.code == 1
    assert "has random weights: any class it named would be made up" in ended.lines[0]


def test_doctor_says_what_runs_and_what_would_make_the_rest_run(lifedeploy):
    ended = lifedeploy("doctor")
    assert ended.code == 0
    assert "(auto)" in ended.out
    report = json.loads(lifedeploy("doctor", "--json", "-").out)
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert set(engines) == {
        "onnxruntime",
        "onnxruntime-cuda",
        "onnxruntime-tensorrt",
        "onnxruntime-tensorrt-rtx",
        "openvino",
        "tensorrt",
        "tensorrt-rtx",
        "torch",
        "torch-cuda",
        "torch-compiled",
    }
    assert engines["onnxruntime"]["availability"]["ok"]
    for engine in engines.values():
        assert engine["availability"]["ok"] or engine["availability"]["reason"]
        assert engine["builds"]["ok"] or not engine["availability"]["ok"]
    assert engines["torch"]["precisions"]["int8"] == "–"  # and not FP32 in its place, nor a promise


def test_of_two_distributions_of_a_module_the_one_that_is_imported_is_named(tmp_path, monkeypatch):
    for folder, name, version in (("near", "onnxruntime-gpu", "9.2"), ("far", "onnxruntime", "9.1")):
        package = tmp_path / folder / "onnxruntime"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        info = tmp_path / folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for folder in ("far", "near"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(optional, "_version", optional._version.__wrapped__)  # which remembers what was there before
    installed = optional.versions()
    assert installed["onnxruntime-gpu"] == "9.2"
    assert "onnxruntime" not in installed


def bad_onnx(folder: Path) -> Path:
    (folder / "bad.onnx").write_bytes(b"\x00nothing")
    return folder / "bad.onnx"


def bad_image(folder: Path) -> Path:
    (folder / "bad.jpg").write_text("no image")
    return folder / "bad.jpg"


def bad_checkpoint(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.safetensors"
    if kind == "truncated":
        whole = folder / "whole.safetensors"
        save_file({"x": torch.zeros(100)}, whole)
        path.write_bytes(whole.read_bytes()[:60])
    else:
        save_file({"cls_token": torch.zeros(1, 1, 7)}, path)
    return path


@pytest.mark.parametrize(
    ("arguments", "code", "said", "hint"),
    [
        (["export", "-b", "deit_q"], 2, "backbone 'deit_q' is unknown", "did you mean deit_"),
        (["export", "-b", "resnet50"], 2, "no timm VisionTransformer", ""),
        (["export", "-b", "vit_base_patch16_siglip_gap_224"], 2, "has no CLS token", ""),
        (["export", "--rho", "1.5"], 2, "keep rate 1.5 is out of range: it must be in (0, 1]", ""),
        (["export", "--rho", "0"], 2, "keep rate 0 is out of range", ""),
        (["export", "--rho", "0.7", "--counts", "3,2,1"], 2, "--rho and --counts exclude each other", ""),
        (["export", "--counts", "90,95,63"], 2, "token counts grow from 90 to 95 after layer 7", ""),
        (["export", "--counts", "90,50,0"], 2, "token count 0 after layer 10", ""),
        (["export", "--counts", "90,x"], 2, "--counts '90,x' is no list of whole numbers", ""),
        (["export", "--drop-layers", "4,12,13"], 2, "drop layer 12 is out of range", ""),
        (["export", "--drop-layers", "7,4,10"], 2, "drop layers 7, 4, 10 do not rise", ""),
        (["export", "--num-classes", "-1"], 2, "'--num-classes'", ""),
        (["export", "--weights-img-size", "4x5x6"], 2, "image size '4x5x6' is not allowed", ""),
        (["export", "--img-size", "225"], 2, "225", ""),
        (["export", "--img-size", "big"], 2, "image size 'big' is not allowed", ""),
        (["export", "--graph", "magic"], 2, "graph 'magic' is unknown; there are: order-once, per-stage", ""),
        (["export", "--weights", "nowhere.pth"], 1, "checkpoint nowhere.pth does not exist", "--weights takes"),
        (["build-engine", "--fp16", "--fp32"], 2, "exclude each other", ""),
        (["build-engine", "--engine", "abacus"], 2, "engine 'abacus' is unknown", ""),
        (["build-engine", "nowhere"], 1, "nowhere does not exist", ""),
        (["bench", "--batch", "1,two"], 2, "--batch '1,two' is no list of whole numbers", ""),
        (["bench", "--batch", "0"], 2, "batch sizes [0] are not allowed", ""),
        (["bench", "--mode", "fast"], 2, "mode 'fast' is unknown", ""),
        (["bench", "--plot", "b.gif"], 2, "b.gif is no plot file", ""),
        (["bench", "--json", "no/such/folder/b.json"], 2, "cannot be written", ""),
        (["predict", "nowhere.jpg"], 1, "image nowhere.jpg does not exist", ""),
        (["verify", "nowhere.onnx", "nowhere.onnx"], 1, "nowhere.onnx does not exist", ""),
        (["frobnicate"], 2, "No such command 'frobnicate'", "--help"),
        (["export", "--no-such-option"], 2, "No such option", "lifedeploy export --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(workspace, lifedeploy, arguments, code, said, hint):
    before = sorted(path for path in workspace.rglob("*"))
    ended = lifedeploy(*arguments)
    assert ended.code == code, ended.err
    assert ended.lines[0].startswith("error: ")
    assert said in ended.lines[0]
    assert len(ended.lines) <= 2
    if hint:
        assert ended.lines[1].startswith("hint: ")
        assert hint in ended.lines[1]
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert sorted(path for path in workspace.rglob("*")) == before


@pytest.mark.parametrize(
    ("make", "command", "said"),
    [
        (bad_onnx, ["inspect"], "bad.onnx is not a valid ONNX file"),
        (bad_onnx, ["bench", "--batch", "1", "--engine", "onnxruntime"], "bad.onnx is not a valid ONNX file"),
        (bad_onnx, ["bench", "--batch", "1", "--engine", "openvino"], "bad.onnx is not a valid ONNX file"),
        (bad_image, ["predict"], "bad.jpg is not an image that can be read"),
        (lambda f: bad_checkpoint(f, "truncated"), ["export", "-b", TINY, "--weights"], "not a readable safetensors"),
        (lambda f: bad_checkpoint(f, "strange"), ["export", "-b", TINY, "--weights"], "does not fit this backbone"),
    ],
    ids=["inspect", "onnxruntime", "openvino", "image", "truncated checkpoint", "wrong checkpoint"],
)
def test_bad_files(workspace, lifedeploy, tmp_path, make, command, said):
    ended = lifedeploy(*command, make(tmp_path))
    assert ended.code == 1, ended.err
    assert ended.lines[0].startswith("error: ")
    assert said in ended.lines[0]
    assert len(ended.lines) <= 2


def test_a_tampered_engine_is_not_opened(workspace, lifedeploy):
    path = next(workspace.glob("*/openvino-fp32/model.bin"))
    content = bytearray(path.read_bytes())
    content[100] ^= 0xFF
    path.write_bytes(bytes(content))
    ended = lifedeploy("bench", next(workspace.glob("*/openvino-fp32")), "--batch", "1")
    assert ended.code == 1
    assert "model.bin is not the file that model.json was written for: its SHA-256 differs" in ended.lines[0]


def test_ctrl_c_is_one_line_and_exit_1(workspace, lifedeploy, monkeypatch):
    from lifedeploy.workflows import build

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build", interrupted)
    ended = lifedeploy("build-engine")
    assert ended.code == 1
    assert ended.lines == ["error: interrupted; nothing half-written was left behind"]


def test_an_unwritable_workspace_is_one_line(lifedeploy, tmp_path, weights_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").write_text("a file, not a folder")
    ended = lifedeploy("export", "-b", TINY, "--weights", weights_file, "--img-size", "64")
    assert ended.code == 2
    assert len(ended.lines) == 1
    assert ended.lines[0].endswith("cannot be written: artifacts is no folder")
    assert "Traceback" not in ended.err


def test_a_full_disk_is_one_line_and_leaves_nothing(workspace, tmp_path, weights_file):
    """A limit on file size stands in for a full disk: the same OSError at the same places."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000));"
        "from lifedeploy.cli.app import main; main()"
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", script, "export", "-b", TINY, "--weights", weights_file, "--img-size", "64", "-o", out],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def test_debug_shows_the_traceback(workspace, lifedeploy, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lifedeploy", "inspect", "nowhere", "--debug"])
    from lifedeploy.cli import app
    from lifedeploy.errors import ArtifactError

    with pytest.raises(ArtifactError):
        app.main()


def test_a_bug_is_reported_as_one(lifedeploy, monkeypatch, workspace):
    from lifedeploy.workflows import inspect

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(inspect, "inspect", broken)
    ended = lifedeploy("inspect")
    assert ended.code == 1
    assert "unexpected ZeroDivisionError: division by zero" in ended.lines[0]
    assert "this is a bug in lifedeploy" in ended.lines[1]
