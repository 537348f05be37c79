"""``lifedeploy build-engine``: its options, and the table of what was built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from lifedeploy import methods
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, options, paths, tables, values
from lifedeploy.errors import UsageError
from lifedeploy.records import DetailsRecord
from lifedeploy.text import printable

if TYPE_CHECKING:
    from lifedeploy.records import EightBitsRecord, FusionRecord
    from lifedeploy.workflows.build import BuildReport


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
            values.OneOf("--remainder", "fp16", "bf16"),
            help="What is not quantised of a quantised graph, on GPUs.  [default: fp16]",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again even if nothing changed.")] = False,
    attention: Annotated[
        str | None,
        options.option(
            values.OneOf("--attention", "operator", "products", "contrib"),
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
    with console.watching() as (say, progress):
        say("looking at the model")
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
        request = BuildRequest(model=model, engine=engine, precision=asked, force=force, options=how)
        report = build(request, Workspace(workspace), say, progress)
    record = report.record
    if record.note:
        other = record.precision != record.requested
        console.warn(record.note, title=f"asked for {record.requested}, runs {record.precision}" if other else "note")
    if report.unlike_tuned:
        console.warn(report.unlike_tuned)
    console.report(json, report.to_dict, lambda: built(report))


def _profile(batches: values.Numbers) -> tuple[int, int, int]:
    """(1, 8, 128) as it is; (32,) → (32, 32, 32).

    Raises:
        UsageError: neither of these.
    """
    if len(batches) == 1:
        return batches[0], batches[0], batches[0]
    if len(batches) != 3 or not batches[0] <= batches[1] <= batches[2]:
        text = ",".join(map(str, batches))
        raise UsageError(f"--batch {text!r} is not allowed; expected the smallest, usual and largest one: 1,8,128")
    return batches[0], batches[1], batches[2]


def built(report: BuildReport) -> RenderableType:
    """What ``build-engine`` made."""
    record = report.record
    verb = "reused: nothing changed since it was built" if report.reused else "built"
    headline = Text.assemble((f"{record.name} {record.runtime}", "bold"), f" · {record.precision} · {verb}")
    fused = any(manifest.engine and manifest.engine.details.fusion for manifest in report.manifests.values())
    facts: tuple[str, ...] = ("attention\nfused", "TopK", "kernels") if fused else ()
    counted = any(manifest.engine and manifest.engine.details.eight_bits for manifest in report.manifests.values())
    facts += ("products\nin 8 bits",) if counted else ()
    table = tables.plain_table("engine", "max rel.\nerror", "top-1", "kept\ntokens", *facts)
    for method, manifest in report.manifests.items():
        engine = manifest.engine
        evidence = engine.graph.parity if engine and engine.pending else manifest.parity
        details = engine.details if engine else DetailsRecord()
        table.add_row(
            Text.assemble(f"{manifest.file}  ", (methods.role_of(method), "dim")),
            *tables.evidence(evidence),
            *(_fused(details.fusion, manifest.spec.schedule.depth) if details.fusion else ()),
            *((_eight_bits(details.eight_bits),) if details.eight_bits else ()),
        )
    parts: list[RenderableType] = [headline, table]
    reach = _reach(report)
    if reach:
        parts.append(Text(printable(reach), style="dim"))
    for stem, text in _fusion_notes(report):
        parts.append(Text(printable(f"{stem}: {text}"), style="yellow"))
    if record.pending:
        checked = f"its {record.precision} graph was checked, emulated" if record.graph.parity else "not checked"
        parts.append(Text(f"built, cannot run here: {record.pending}; {checked}", style="yellow"))
    return Group(*parts, Text(printable(f"in {report.engine.folder}/"), style="green"))


def _reach(report: BuildReport) -> str:
    """How near the graphs come to the end of their type, where they were looked at."""
    reaches = [manifest.engine.graph.reach for manifest in report.manifests.values() if manifest.engine]
    reach = max(filter(None, reaches), key=lambda reach: reach.largest, default=None)
    if reach is None:
        return ""
    return f"largest activation {reach.largest:.3g} of {reach.limit:.3g} that it may be: {reach.tensor}"


def _eight_bits(counts: EightBitsRecord) -> Text:
    """Those of the quantised graph that run in 8 bits; less than all is said out loud."""
    return Text(f"{counts.products}/{counts.of}", style="" if counts.products >= counts.of else "yellow")


def _fused(fusion: FusionRecord, layers: int) -> tuple[Text, str, str]:
    """Fused attentions, sorts and kernels; what the runtime does not tell is a question mark."""
    text = f"{'?' if fusion.attention is None else fusion.attention}/{layers}"
    kernels = str(sum(fusion.launches.values())) if fusion.launches else "?"
    return Text(text, style="" if fusion.attention == layers else "yellow"), str(fusion.topk), kernels


def _fusion_notes(report: BuildReport) -> Iterator[tuple[str, str]]:
    """What has to be said about attention that is not fused, or not known to be; once where all are alike."""
    notes = {
        manifest.file: fusion.note
        for manifest in report.manifests.values()
        if manifest.engine and (fusion := manifest.engine.details.fusion) and fusion.note
    }
    alike = len(set(notes.values())) == 1 and len(notes) == len(report.manifests)
    yield from {"all": next(iter(notes.values()))}.items() if alike else notes.items()
