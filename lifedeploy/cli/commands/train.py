"""``lifedeploy train``: its options are the fields of ``TrainConfig``; a TOML file may hold them too."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy import methods
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, field_options, method_options, options, paths, values
from lifedeploy.errors import UsageError
from lifedeploy.optional import EXTRAS, require_installed
from lifedeploy.text import printable
from lifedeploy.training.config import TrainConfig

if TYPE_CHECKING:
    from lifedeploy.workflows.train import TrainReport


# Options that export has too, and values of which more is asked than the type of their field says.
_SHARED = {
    "keep_rate": options.keep_rate,
    "counts": options.counts,
    "drop_layers": options.drop_layers,
    "image_size": options.image_size,
}
_READERS = {
    "data": paths.Source("--data"),
    "weights": paths.Source("--weights"),
    "method": method_options.MethodName(methods.SLIMMED, methods.BASELINE),
}
_MODEL, _RUN = "The model", "The run"


def _annotations() -> dict[str, Any]:
    """Setting → what typer makes its option of."""
    kinds = get_type_hints(TrainConfig, include_extras=True)
    annotations = {}
    for item in fields(TrainConfig):
        if not item.metadata:  # a setting of files only
            continue
        panel = item.metadata["panel"] or None
        if item.name in _SHARED:
            flag, help = field_options.flag(item), field_options.help(item)
            annotations[item.name] = Annotated[str | None, _SHARED[item.name](flag, help, panel)]
        else:
            reader = _READERS.get(item.name)
            negated = bool(item.metadata.get("negated"))
            annotations[item.name] = field_options.annotation(item, kinds[item.name], panel, reader, negated=negated)
    return annotations


def train(
    config: Annotated[Path | None, options.path("--config", help="Settings as TOML; options go over them.")] = None,
    schedule: Annotated[
        Path | None,
        options.path("--schedule", help="Counts and drop layers out of a file that `tune` wrote.", panel=_MODEL),
    ] = None,
    max_pixels: options.MaxPixelsOption = None,
    name: Annotated[
        str | None,
        options.option(
            values.FolderName("--name"),
            metavar="NAME",
            help="Folder of the run.  [default: says what is trained]",
            panel=_RUN,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue; alone: the newest run.", rich_help_panel=_RUN)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run of this name.", rich_help_panel=_RUN)
    ] = False,
    workspace: options.WrittenWorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
    **given: Any,
) -> None:
    """Train what a method has of its own, then the backbone: for `life`, two epochs make it as good as the dense model.

    On a new data set: `train --dense` first, then the slimmed model over it, best with `--recipe lifedeploy`. Runs
    on one process or under `accelerate launch -m lifedeploy`.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if given["keep_rate"] is not None and given["counts"] is not None:
        raise UsageError("--rho and --counts exclude each other: both set the schedule")
    flags = {"--rho": given["keep_rate"], "--counts": given["counts"], "--drop-layers": given["drop_layers"]}
    tuned = options.tuned_schedule(schedule, flags)
    options.require_apart({"--json": json}, [given["data"], config, given["weights"], schedule])
    options.limit_pixels(max_pixels)
    settings = {key: value for key, value in given.items() if value is not None}
    if tuned is not None:
        settings |= {"counts": tuned.counts, "drop_layers": tuned.drop_layers}
    if method_options.given():
        settings["options"] = method_options.given()
    main_process = os.environ.get("RANK", "0") == "0"
    with console.watching(shown=main_process, elapsed=False) as (say, progress):
        require_installed(*EXTRAS["train"], extra="train")  # before torch, which it brings too
        say("importing torch")
        from lifedeploy.training.recipes import settled
        from lifedeploy.training.runs import newest_run, run_folder
        from lifedeploy.workflows.train import TrainRequest, resumed
        from lifedeploy.workflows.train import train as run

        place = Workspace(workspace)
        command = options.command_line()
        if resume and not settings and config is None:
            request = resumed(run_folder(place, name) if name else newest_run(place), command)
        else:
            request = TrainRequest(
                config=settled(settings, config),
                name=name or "",
                resume=resume,
                overwrite=overwrite,
                command=command,
                tuned=tuned,
            )

        def begin(plan: TrainConfig, folder: Path, warning: str) -> None:
            if warning:
                console.warn(warning, alarming=True)
            console.err.print(started(plan, folder))

        report = run(request, place, say, progress, begin, console.warn, console.note)
    if main_process:
        console.report(json, report.to_dict, lambda: trained(report))


field_options.declare(train, _annotations())


def started(config: TrainConfig, folder: Path) -> RenderableType:
    """What is about to run: what differs from the defaults, and where the rest stands."""
    text = Text.assemble(("training ", "bold"), printable(str(folder)), "\n")
    usual = TrainConfig().to_dict() | {"options": methods.get(config.method).plain_options({})}
    changed = [f"{name}={getattr(config, name)}" for name, value in config.to_dict().items() if value != usual[name]]
    text.append(printable(", ".join(changed)) or "all settings at their defaults")
    text.append("\n" + printable(f"all settings: {folder}/config.toml"), style="dim")
    return text


def trained(report: TrainReport) -> RenderableType:
    """Epochs and where the checkpoints are."""
    table = Table(box=None, pad_edge=False)
    for heading, justify in (("epoch", "right"), ("stage", "left"), ("val accuracy", "right"), ("val loss", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for outcome in report.outcomes:
        cells = (str(outcome.epoch), outcome.stage, f"{outcome.accuracy * 100:.2f} %", f"{outcome.loss:.4f}")
        table.add_row(*cells)
    val, train = report.data["val"], report.data["train"]
    held_out = f", held out: {report.data['held_out']}" if report.data["held_out"] else ""
    processes = f", {report.processes} processes" if report.processes > 1 else ""
    last = Text(
        f"{train['images']} training images, {val['images']} to validate on{held_out}; {report.minutes:.1f} minutes, "
        f"{report.precision}{processes}, {report.machine['cpu']}.\n"
    )
    last.append(printable(f"Checkpoints: {report.folder}/best.safetensors and last.safetensors; next: "), style="dim")
    last.append(f"lifedeploy export --backbone {report.config.backbone}")
    if report.config.slims and report.config.method != methods.DEFAULT:
        last.append(f" --method {report.config.method}")
    if report.config.slims and not report.config.counts and not report.config.has_own_budget:
        last.append(f" --rho {report.config.keep_rate:g}")
    return Group(table, last)
