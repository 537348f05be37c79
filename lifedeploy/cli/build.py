"""``lifedeploy build-engine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console
from lifedeploy.cli.options import JsonOption, ModelArgument, WorkspaceOption, numbers, precision
from lifedeploy.errors import UsageError

_PANEL = "TensorRT"


def build_engine(
    model: ModelArgument = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            "-e",
            help="auto, tensorrt, tensorrt-rtx, onnxruntime-tensorrt, onnxruntime-tensorrt-rtx, onnxruntime-cuda, "
            "openvino, onnxruntime, torch, torch-cuda or torch-compiled.",
        ),
    ] = "auto",
    fp32: Annotated[bool, typer.Option("--fp32", help="Single precision.  [default; of TensorRT: --fp16]")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision, or what this machine has for it.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16, or what this machine has for it.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit integers; of what lifedeploy calibrate has quantised.")
    ] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help="8-bit floating point (TensorRT); of the same.")] = False,
    remainder: Annotated[
        str,
        typer.Option(
            "--remainder",
            metavar="fp16|bf16",
            help="What is not quantised of a quantised graph, on GPUs.  [default: fp16]",
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Build again even if nothing changed.")] = False,
    attention: Annotated[
        str,
        typer.Option(
            "--attention",
            metavar="operator|products|contrib",
            help="One Attention operator (opset 23); MatMul, Softmax, MatMul; or ONNX Runtime's own operator.  "
            "[default: what suits the engine]",
        ),
    ] = "",
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="MIN,OPT,MAX",
            help="Batch sizes to build for; one number: that one only.  [default: 1,8,128]",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="smNN,…", help="GPUs to build for (TensorRT for RTX).", rich_help_panel=_PANEL
        ),
    ] = None,
    level: Annotated[
        int | None,
        typer.Option("--level", metavar="0…5", help="How long to look for kernels.", rich_help_panel=_PANEL),
    ] = None,
    workspace_gib: Annotated[
        float | None,
        typer.Option("--workspace-gib", metavar="GIB", help="Scratch memory at most.", rich_help_panel=_PANEL),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", metavar="FILE", help="Read and written (TensorRT).", rich_help_panel=_PANEL),
    ] = None,
    hardware_compatible: Annotated[
        bool,
        typer.Option("--hardware-compatible", help="For Ampere and later (TensorRT).", rich_help_panel=_PANEL),
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="For later versions too (TensorRT).", rich_help_panel=_PANEL),
    ] = False,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights",
            help="A plan without weights: the graph beside it has them.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    refittable: Annotated[
        bool, typer.Option("--refittable", help="A plan whose weights can be exchanged.", rich_help_panel=_PANEL)
    ] = False,
    allow_unfused: Annotated[
        bool,
        typer.Option("--allow-unfused", help="Keep a plan whose attention is not fused.", rich_help_panel=_PANEL),
    ] = False,
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = None,
) -> None:
    """Build engines of an exported model and its baselines, and check each against PyTorch's answers.

    TensorRT for RTX also builds where there is no GPU: its graphs are checked there, its plans where they run.
    """
    asked = precision(fp32=fp32, fp16=fp16, bf16=bf16, int8=int8, fp8=fp8)
    batches = _profile(batch) if batch else None
    with console.building() as (say, progress):
        say("looking at the model")
        from lifedeploy.cli import render
        from lifedeploy.engines.base import BuildOptions
        from lifedeploy.workflows.build import BuildRequest, build

        options = BuildOptions(
            attention=attention,
            remainder=remainder,
            batch=batches,
            workspace_gib=workspace_gib,
            level=level,
            target=tuple(target.lower().split(",")) if target else (),
            timing_cache=timing_cache,
            hardware_compatible=hardware_compatible,
            version_compatible=version_compatible,
            strip_weights=strip_weights,
            refittable=refittable,
            allow_unfused=allow_unfused,
        )
        report = build(BuildRequest(model, engine, asked, force, options), Workspace(workspace), say, progress)
    record = report.record
    if record.note:
        other = record.precision != record.requested
        console.warn(record.note, title=f"asked for {record.requested}, runs {record.precision}" if other else "note")
    console.report(json, report.to_dict, lambda: render.built(report))


def _profile(text: str) -> tuple[int, int, int]:
    """``"1,8,128"`` → (1, 8, 128); ``"32"`` → (32, 32, 32).

    Raises:
        UsageError: neither of these.
    """
    found = numbers(text, "--batch")
    if len(found) == 1:
        return found[0], found[0], found[0]
    if len(found) != 3:
        raise UsageError(f"--batch {text!r} is not allowed; expected the smallest, usual and largest one: 1,8,128")
    return found[0], found[1], found[2]
