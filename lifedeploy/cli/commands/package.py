"""``lifedeploy package``: its options, and what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, options, paths, tables, values
from lifedeploy.limits import MOST_IN_BATCH, MOST_STREAMS
from lifedeploy.text import printable
from lifedeploy.typed import SERVERS, TRITON_BACKENDS

if TYPE_CHECKING:
    from lifedeploy.serving.record import PackageRecord


def package(
    target: Annotated[
        str, options.option(values.OneOf("--for", *SERVERS), help="The server, or a container without one.")
    ],
    out: Annotated[Path, options.option(paths.Folder("--out"), "-o", metavar="DIR", help="Where the package goes.")],
    model: options.ModelArgument = None,
    engine: Annotated[
        str | None,
        options.option(
            values.EngineName("--engine", precision=True),
            "-e",
            metavar="NAME[:PRECISION]",
            help="Which of its engines.  [default: what was built last]",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        options.option(
            values.OneOf("--backend", *TRITON_BACKENDS), help="Triton's backend.  [default: what suits the engine]"
        ),
    ] = None,
    name: Annotated[
        str | None,
        options.option(
            values.Name("--name"), metavar="NAME", help="What the server calls it.  [default: backbone and method]"
        ),
    ] = None,
    top: Annotated[
        int, options.whole("--top", low=0, high=options.CLASSES, help="Name so many classes for each image.")
    ] = 0,
    max_batch: Annotated[
        int | None,
        options.whole(
            "--max-batch",
            low=1,
            high=MOST_IN_BATCH,
            help="Images that a batch may have.  [default: what the engine was built for, else 8]",
        ),
    ] = None,
    instances: Annotated[
        int | None,
        options.whole(
            "--instances",
            low=1,
            high=MOST_STREAMS,
            help="Copies of the model, which share the cores.  [default: as --bench says, else 1]",
        ),
    ] = None,
    bench: Annotated[
        Path | None,
        options.path("--bench", help="A report of bench --json: batches, delay and instances are read off it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there, whatever it is.")] = False,
    workspace: options.WorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Put an engine into a folder that a model server starts from, with an ensemble from image files to classes.

    The engine has passed its parity gate. `lifedeploy inspect DIR` says what is in it, and whether it is out of date;
    `lifedeploy verify MODEL URL` asks the running server.
    """
    options.require_apart({"--json": json}, [model, bench, out])
    with console.working() as say:
        from lifedeploy.workflows.package import PackageRequest
        from lifedeploy.workflows.package import package as run

        request = PackageRequest(
            target=target,
            out=out,
            model=model,
            engine=engine or "",
            backend=backend or "",
            name=name or "",
            top=top,
            max_batch=max_batch,
            instances=instances,
            bench=bench,
            force=force,
        )
        report = run(request, Workspace(workspace), say)
    for warning in report.warnings:
        console.warn(warning)
    console.report(json, report.to_dict, lambda: Group(packaged(report.record), Text(f"wrote {printable(str(out))}/")))


def packaged(record: PackageRecord) -> Table:
    """What is in a package."""
    plan = record.plan
    pairs = {
        "for": f"{record.target}, by lifedeploy {record.version}",
        "models": ", ".join(record.models),
        "method": record.method,
        "engine": f"{record.engine} {record.precision}, by {record.backend}",
        "batches": f"up to {plan.max_batch}, preferred {', '.join(map(str, plan.preferred))}",
        "waits": f"{plan.delay_us / 1000:g} ms at most for a preferred batch",
        "instances": str(plan.instances),
        "measured": plan.measured or "nothing was: --bench FILE takes a report",
        "needs": ", ".join(f"{name} {version}" for name, version in record.needs.items()),
        "files": str(len(record.files)),
    }
    return tables.facts({name: str(value) for name, value in pairs.items()})
