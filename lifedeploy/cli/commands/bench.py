"""``lifedeploy bench``: its options, and where its tables go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, options, paths, values
from lifedeploy.cli.commands import bench_server
from lifedeploy.errors import UsageError
from lifedeploy.limits import MOST_BATCHES, MOST_CLIENTS

_WAYS = {"with": (True,), "without": (False,), "both": (True, False)}
_BINDINGS = ("cuda-python", "pycuda")


def bench(
    model: options.ModelArgument = None,
    engine: Annotated[
        list[str] | None,
        options.option(
            values.EngineName("--engine", precision=True),
            "-e",
            metavar="NAME[:PRECISION]",
            help="Engine to measure; repeatable, and the first is what the others are held against. Built first if it "
            "is not.  [default: what was built last]",
        ),
    ] = None,
    batch: Annotated[
        values.Numbers | None,
        options.batches("--batch", "Batch sizes.  [default: 1,8,32; of a server's requests 1]"),
    ] = None,
    mode: options.ModeOption = None,
    streams: options.StreamsOption = 2,
    threads: options.ThreadsOption = None,
    budget: options.BudgetOption = 150.0,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peak memory, in a process of its own.")
    ] = True,
    cuda_binding: Annotated[
        str | None,
        options.option(
            values.OneOf("--cuda-binding", *_BINDINGS, said="CUDA binding {value} is unknown; there are: {words}"),
            help="How CUDA is called.  [default: what is installed]",
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Measure a TensorRT plan without a manifest. A plan is executable code.")
    ] = False,
    copies: Annotated[
        str,
        options.option(
            values.OneOf("--copies", *_WAYS, said="{flag} {value} is not allowed: it must be {words}"),
            help="On a GPU: with copies to and from it, without, or both.",
        ),
    ] = "both",
    profile: Annotated[
        bool, typer.Option("--profile", help="Also show where the time goes: attention, MLP, TopK, Gather, Slice …")
    ] = False,
    data: Annotated[
        str | None,
        options.option(
            paths.Source("--data"),
            metavar="DIR",
            help="Labelled images, as for evaluate: accuracy beside speed, in one table.",
        ),
    ] = None,
    split: options.SplitOption = None,
    limit: options.LimitOption = None,
    max_pixels: options.MaxPixelsOption = None,
    csv: Annotated[
        Path | None, options.option(paths.Output("--csv"), metavar="FILE", help="Also write the rows as CSV.")
    ] = None,
    plot: Annotated[Path | None, options.picture("--plot", help="Also draw them: .png, .svg or .pdf.")] = None,
    url: Annotated[
        str | None,
        options.option(
            paths.Url("--url"),
            metavar="URL",
            help="Measure the model behind a server, http://HOST:PORT/MODEL or grpc, against its engine without one.",
        ),
    ] = None,
    concurrency: Annotated[
        values.Numbers | None,
        options.option(
            values.WholeList("--concurrency", 1, MOST_CLIENTS, MOST_BATCHES),
            metavar="N,N",
            help="With --url: clients that ask at the same time.  [default: 1,4,16]",
        ),
    ] = None,
    workspace: options.WorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Measure the slimmed model against its dense baseline and first-k bound, in turn, round by round.

    Stops when the 95 % interval of every speed-up is within ±1 %, or when the budget ends. Several engines take turns
    with each other, so that they can be compared; with labelled images, in accuracy too.
    """
    options.require_apart({"--json": json, "--csv": csv, "--plot": plot}, [model, data, split])
    options.limit_pixels(max_pixels)
    if url is not None:
        useless: dict[str, object] = {"--engine": engine, "--mode": mode, "--profile": profile, "--data": data}
        useless |= {"--trust": trust, "--csv": csv, "--plot": plot, "--cuda-binding": cuda_binding, "--split": split}
        useless |= {
            "--limit": limit,
            "--max-pixels": max_pixels,
            "--copies": copies != "both",
            "--no-memory": not memory,
        }
        bench_server.require_alone(flag for flag, given in useless.items() if given)
        clients = concurrency or (1, 4, 16)
        bench_server.bench(url, model, batch or (1,), clients, streams, threads, budget, Workspace(workspace), json)
        return
    if concurrency is not None:
        raise UsageError("--concurrency is the number of a server's clients, and no server was named: --url URL")
    with console.watching() as (say, progress):
        say("looking for engines")
        from lifedeploy.bench.measure import Stop
        from lifedeploy.cli.commands import bench_tables
        from lifedeploy.workflows.bench import BenchRequest
        from lifedeploy.workflows.bench import bench as run

        request = BenchRequest(
            model=model,
            engines=tuple(engine or ()),
            batches=batch or (1, 8, 32),
            modes=tuple(mode or ("latency",)),
            streams=streams,
            threads=threads,
            stop=Stop(budget_s=budget),
            memory=memory,
            command=options.command_line(),
            cuda_binding=cuda_binding or "",
            trust=trust,
            copies=_WAYS[copies],
            profile=profile,
            data=data or "",
            split=split or "",
            limit=limit,
        )
        report = run(request, Workspace(workspace), say, progress)
    for warning in report.warnings:
        console.warn(warning)
    console.report(json, report.to_dict, lambda: bench_tables.measured(report))
    if csv is not None:
        report.write_csv(csv)
        console.wrote(csv)
    if plot is not None:
        from lifedeploy.viz.plots import plot_bench

        plot_bench(report, plot)
        console.wrote(plot)
