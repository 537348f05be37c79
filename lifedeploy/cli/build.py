"""``lifedeploy build-engine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, options, paths, values
from lifedeploy.errors import UsageError

_PANEL = "TensorRT"


def build_engine(
    model: options.ModelArgument = None,
    engine: Annotated[
        str,
        options.option(
            values.EngineName("--engine"),
            "-e",
            metavar="NAME",
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
        str | None,
        options.option(
            values.Choice("--remainder", "fp16", "bf16"),
            help="What is not quantised of a quantised graph, on GPUs.  [default: fp16]",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again even if nothing changed.")] = False,
    attention: Annotated[
        str | None,
        options.option(
            values.Choice("--attention", "operator", "products", "contrib"),
            help="One Attention operator (opset 23); MatMul, Softmax, MatMul; or ONNX Runtime's own operator.  "
            "[default: what suits the engine]",
        ),
    ] = None,
    batch: Annotated[
        values.Numbers | None,
        options.batches(
            "--batch",
            "Batch sizes to build for; one number: that one only.  [default: 1,8,128]",
            metavar="MIN,OPT,MAX",
            most=3,
            panel=_PANEL,
        ),
    ] = None,
    target: Annotated[
        values.Words | None,
        options.option(
            values.Targets("--target"),
            metavar="smNN,…",
            help="GPUs to build for (TensorRT for RTX).",
            panel=_PANEL,
        ),
    ] = None,
    level: Annotated[
        int | None, options.whole("--level", low=0, high=5, help="How long to look for kernels.", panel=_PANEL)
    ] = None,
    workspace_gib: Annotated[
        float | None,
        options.option(
            values.Real("--workspace-gib", 0, 65_536, above=True),
            metavar="GIB",
            help="Scratch memory at most.",
            panel=_PANEL,
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        options.option(
            paths.Output("--timing-cache"), metavar="FILE", help="Read and written (TensorRT).", panel=_PANEL
        ),
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
    workspace: options.WorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Build engines of an exported model and its baselines, and check each against PyTorch's answers.

    TensorRT for RTX also builds where there is no GPU: its graphs are checked there, its plans where they run.
    """
    options.require_apart({"--json": json, "--timing-cache": timing_cache}, [model])
    asked = options.precision(fp32=fp32, fp16=fp16, bf16=bf16, int8=int8, fp8=fp8)
    batches = _profile(batch) if batch else None
    with console.building() as (say, progress):
        say("looking at the model")
        from lifedeploy.cli import render
        from lifedeploy.engines.base import BuildOptions
        from lifedeploy.workflows.build import BuildRequest, build

        how = BuildOptions(
            attention=attention or "",
            remainder=remainder or "",
            batch=batches,
            workspace_gib=workspace_gib,
            level=level,
            target=target or (),
            timing_cache=timing_cache,
            hardware_compatible=hardware_compatible,
            version_compatible=version_compatible,
            strip_weights=strip_weights,
            refittable=refittable,
            allow_unfused=allow_unfused,
        )
        report = build(BuildRequest(model, engine, asked, force, how), Workspace(workspace), say, progress)
    record = report.record
    if record.note:
        other = record.precision != record.requested
        console.warn(record.note, title=f"asked for {record.requested}, runs {record.precision}" if other else "note")
    console.report(json, report.to_dict, lambda: render.built(report))


def _profile(found: values.Numbers) -> tuple[int, int, int]:
    """(1, 8, 128) as it is; (32,) → (32, 32, 32).

    Raises:
        UsageError: neither of these.
    """
    if len(found) == 1:
        return found[0], found[0], found[0]
    if len(found) != 3 or not found[0] <= found[1] <= found[2]:
        text = ",".join(map(str, found))
        raise UsageError(f"--batch {text!r} is not allowed; expected the smallest, usual and largest one: 1,8,128")
    return found[0], found[1], found[2]
