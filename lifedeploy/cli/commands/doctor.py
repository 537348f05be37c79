"""``lifedeploy doctor``: what is installed and what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy.cli import console, options, tables
from lifedeploy.text import printable

if TYPE_CHECKING:
    from lifedeploy.workflows.doctor import DoctorReport


def doctor(json: options.JsonOption = None) -> None:
    """Show what is installed, which engines run here, and what would make the others run."""
    options.require_apart({"--json": json})
    with console.working() as say:
        say("looking around")
        from lifedeploy.workflows.doctor import doctor as run

        report = run()
    console.report(json, report.to_dict, lambda: examined(report))


def examined(report: DoctorReport) -> RenderableType:
    """The machine, the engines and the methods."""
    machine = report.machine
    facts = {
        "cpu": f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['features']) or 'features unknown'})",
        "gpu": ", ".join(machine["gpu"]) or "none",
        "memory": f"{machine['memory_gib']} GiB",
        "system": f"{machine['system']}, Python {machine['python']}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
    }
    table = Table(
        title="Engines", title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
    )
    for header in ("engine", "runs here", "--fp32 / --fp16 /\n--bf16 run"):
        # Names must not lose their ends: they are what one types.
        table.add_column(header, no_wrap=header == "engine", overflow="fold")
    for health in report.engines:
        here = health.availability
        no = ("builds only", "yellow") if health.builds.ok else ("no", "red")
        said = (("yes", "green"), f", {here.version}") if here.ok else (no, f": {here.reason}")
        state = Text.assemble(*said)
        if health.name == report.auto:
            state.append(" (auto)", style="dim")
        if here.hint:
            state.append(f"\n{here.hint}", style="dim")
        table.add_row(health.name, state, " / ".join(health.precisions.values()) or "–")
    known = Table(
        title="Methods", title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
    )
    for method in report.methods:
        fine = Text(printable(f"{method.title}, of {method.package}"))
        known.add_row(printable(method.name), Text(printable(method.problem), style="red") if method.problem else fine)
    problems = [Text(problem, style="bold red") for problem in report.problems]
    return Group(tables.facts(facts), Text(""), table, Text(""), known, *problems)
