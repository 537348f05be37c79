"""The command ``bench`` with several engines and with labelled images: tables, files, exit codes."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console

from lifedeploy.artifact import Workspace
from lifedeploy.bench.measure import Stop
from lifedeploy.cli.commands.bench_tables import measured
from lifedeploy.errors import UsageError
from lifedeploy.workflows.bench import BenchRequest, bench
from tests.workflows.test_evaluate import make_images

SHORT = ("--batch", "2", "--budget", "0.1", "--no-memory", "--threads", "1")


def shown(report, width=80):
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(measured(report))
    return capture.get()


def test_which_one_is_a_table_of_eighty_columns(workspace, lifedeploy, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    data = make_images(tmp_path / "data")
    ended = lifedeploy(
        *("bench", "--engine", "onnxruntime", "--engine", "onnxruntime:bf16", "--engine", "openvino:fp32", *SHORT),
        *("--data", data, "--limit", "9", "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png"),
    )
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out
    table = ended.out.partition("Which one? · ")[2].splitlines()
    assert table[0].rstrip().endswith("latency · batch 2")
    lines = [line for line in table if " fp32 " in line][:4]
    choices = json.loads((tmp_path / "b.json").read_text())["choices"]
    assert [line.startswith("●") for line in lines] == [choice["pareto"] for choice in choices]
    for line, choice in zip(lines, choices, strict=True):
        assert f"{choice['engine']} fp32 {choice['method']}" in line
        assert f"{choice['top1'] * 100:.1f} ± {choice['standard_error'] * 100:.1f}" in line
        assert f"{choice['over_base']:.2f} ({choice['over_base_low']:.2f}–" in line
    said = " ".join(ended.out.split())
    assert "Base: onnxruntime fp32 dense" in said
    assert "9 images of 3 classes in" in said
    assert " ".join(ended.err.replace("│", "").split()).count("both are onnxruntime fp32 here: measured once") == 1
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"


def test_what_dense_is_beside_timm_s_own_model_is_said(workspace):
    request = BenchRequest(engines=("onnxruntime",), batches=(2,), stop=Stop(budget_s=0.1, min_rounds=3), memory=False)
    report = bench(request, Workspace(workspace))
    dense = next(row.subject for row in report.rows if row.subject.method == "dense")
    said = f"timm's own model has {dense.over_plain:.2f} times its MACs."
    assert dense.over_plain > 1 and said in " ".join(shown(report, 200).split())
    whole = [replace(row, subject=replace(row.subject, over_plain=1.0)) for row in report.rows]
    assert "timm's own model" not in shown(replace(report, rows=tuple(whole)), 200)


def test_the_longest_name_and_the_widest_numbers_fit(workspace, tmp_path):
    stop = Stop(budget_s=0.1, min_rounds=3)
    data = make_images(tmp_path / "data")
    request = BenchRequest(engines=("onnxruntime",), batches=(2,), stop=stop, memory=False, data=str(data))
    report = bench(request, Workspace(workspace))
    numbers = {"images_per_s": 12345.6, "over_base": 10.25, "over_base_low": 10.11, "over_base_high": 10.38}
    wide = {"top1": 0.9, "standard_error": 0.113, "average_precision": 0.9, "same_top1": 1.0, "kept_overlap": 1.0}
    choices = []
    for choice in report.choices:
        subject = replace(choice.row.subject, engine="onnxruntime-tensorrt-rtx", precision="bf16")
        choices.append(replace(choice, row=replace(choice.row, subject=subject, **numbers), **wide))
    out = shown(replace(report, choices=tuple(choices)))
    assert "…" not in out
    for said in ("onnxruntime-tensorrt-rtx", "12346", "10.2 (10.1–10.4)", "90.0 ± 11.3"):
        assert said in out
    unknown = {"average_precision": None, "same_top1": None, "kept_overlap": None}
    out = shown(replace(report, choices=tuple(replace(choice, **unknown) for choice in report.choices)))
    assert "AP" not in out.partition("Which one?")[2]  # more classes than it is defined for


def test_engines_stand_side_by_side_without_images_too_and_one_engine_alone(workspace, lifedeploy):
    both = lifedeploy("bench", "--engine", "onnxruntime", "--engine", "openvino", *SHORT)
    assert both.code == 0, both.err
    table = both.out.partition("Side by side · ")[2]
    assert table.count("openvino fp32 first-k") == 1
    assert "Base: onnxruntime fp32 dense" in table
    assert "top-1" not in table
    alone = lifedeploy("bench", "--engine", "onnxruntime", *SHORT)
    assert "speed-up" in alone.out
    assert "Side by side" not in alone.out
    assert "Base:" not in alone.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--limit", "5"], 2, "--split and --limit choose among labelled images"),
        (["--split", "val"], 2, "--split and --limit choose among labelled images"),
        (["--data", "nowhere"], 1, "nowhere is no folder"),
        (["--data", "data", "--limit", "0"], 2, "0 images are not allowed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(workspace, lifedeploy, arguments, code, said):
    ended = lifedeploy("bench", "--engine", "fake", *arguments)
    assert ended.code == code, ended.err
    assert said in ended.lines[0]
    assert len(ended.lines) <= 2
    assert ended.out == ""


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"stop": Stop(budget_s=float("nan"))}, "a budget of nan s is not allowed: it must be positive, and at most"),
        ({"stop": Stop(budget_s=float("inf"))}, "a budget of inf s is not allowed"),
        ({"batches": (1, 65_537)}, "each must be at least 1 and at most 65,536"),
        ({"batches": (1,) * 65}, "there may be 64 of them"),
        ({"streams": 1_025}, "1025 streams are not allowed: at least 1 is needed, and at most 1,024"),
        ({"threads": 2**64}, "threads are not allowed"),
        ({"data": "data", "limit": 2**40}, "images are not allowed"),
        ({"modes": ("x" * 10_000,)}, "is unknown; there are: latency, throughput"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_request_that_would_not_end_is_none(request_, said):
    with pytest.raises(UsageError) as caught:
        BenchRequest(**request_)
    assert said in caught.value.message
    assert len(caught.value.message) < 700


def test_pixels_can_be_limited_where_images_are_opened(workspace, lifedeploy, tmp_path, monkeypatch):
    monkeypatch.setenv("LIFEDEPLOY_MAX_PIXELS", "1000000")  # which the command sets: it has to be what it was again
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    data = make_images(tmp_path / "data")
    few = ("--max-pixels", "10")
    for command in (
        ("bench", "--engine", "fake", *SHORT, "--data", data),
        ("evaluate", "--data", data),
        ("calibrate", "--data", data, "--images", "4", "--check-images", "2"),
        ("predict", next(data.rglob("*.png"))),
        ("visualize", next(workspace.glob("*/model.json")).parent, next(data.rglob("*.png"))),
    ):
        ended = lifedeploy(*command, *few)
        assert ended.code == 1, ended.err
        assert "pixels" in ended.lines[0]
    assert lifedeploy("train", "--data", "nowhere", "--max-pixels", "11").code == 1
    assert os.environ["LIFEDEPLOY_MAX_PIXELS"] == "11"
