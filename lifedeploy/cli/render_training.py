"""How training looks on a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy import methods
from lifedeploy.text import printable
from lifedeploy.training.config import TrainConfig
from lifedeploy.workflows.train import TrainReport


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
    if report.config.slims and not report.config.counts and report.config.trained_method.takes_keep_rate:
        last.append(f" --rho {report.config.keep_rate:g}")
    return Group(table, last)
