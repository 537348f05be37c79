"""``lifedeploy score``: its options, and what was done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from lifedeploy import limits
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, options, paths, tables, values
from lifedeploy.text import printable

if TYPE_CHECKING:
    from lifedeploy.workflows.score import ScoreReport

_CLUSTER = "On a cluster"


def score(
    model: Annotated[Path, options.argument("MODEL", "An export or engine.")],
    images: Annotated[
        list[str],
        options.argument(
            "IMAGES",
            "A folder, a pattern, a .csv or .parquet manifest, .tar shards or images; here or at an address "
            "(s3://bucket/…).",
            paths.Source,
        ),
    ],
    out: Annotated[
        str,
        options.option(
            paths.Source("--out"),
            "-o",
            metavar="DIR|FILE",
            help="Folder for a file of rows per part; or one .parquet, .jsonl or .csv.",
        ),
    ],
    keep: Annotated[
        str | None,
        options.option(
            values.OneOf("--keep", "top", "logits", "embeddings"),
            help="Of each answer.  [default: top; of a model without a head embeddings]",
        ),
    ] = None,
    top: Annotated[int, options.whole("--top", low=1, high=limits.MOST_TOP, help="Classes to keep of each image.")] = 5,
    format: Annotated[
        str | None,
        options.option(
            values.OneOf("--format", "parquet", "jsonl", "csv"), help="Of files in a folder.  [default: parquet]"
        ),
    ] = None,
    column: Annotated[
        str | None,
        options.option(values.Name("--column"), metavar="NAME", help="Of a manifest.  [default: image, path, url …]"),
    ] = None,
    root: Annotated[
        str | None,
        options.option(
            paths.Source("--root"), metavar="DIR", help="What a manifest's paths are below.  [default: its folder]"
        ),
    ] = None,
    part: Annotated[int, options.images("--part", "Images in a file of rows; shards are a file each.")] = 1024,
    max_bad: Annotated[
        float,
        options.option(
            values.Real("--max-bad", 0, 1),
            metavar="SHARE",
            help="End when more of the images than this have no answer.",
        ),
    ] = 1.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace rows of another job.")] = False,
    batch: Annotated[int, options.batch()] = 32,
    threads: options.ThreadsOption = None,
    workers: Annotated[
        int | None,
        options.whole("--workers", low=1, high=limits.MOST_THREADS, help="Threads that decode.  [default: all cores]"),
    ] = None,
    max_pixels: options.MaxPixelsOption = None,
    on: Annotated[
        str,
        options.option(
            values.OneOf("--on", "here", "ray"), help="Where: this machine, or a Ray cluster.", panel=_CLUSTER
        ),
    ] = "here",
    actors: Annotated[
        int | None,
        options.whole(
            "--actors",
            low=1,
            high=limits.MOST_THREADS,
            help="Processes that score.  [default: as there is room]",
            panel=_CLUSTER,
        ),
    ] = None,
    actor_cores: Annotated[
        int | None,
        options.whole(
            "--actor-cores",
            low=1,
            high=limits.MOST_THREADS,
            help="Cores of each.  [default: 4, or all of a smaller machine]",
            panel=_CLUSTER,
        ),
    ] = None,
    actor_gpus: Annotated[
        float | None,
        options.option(
            values.Real("--actor-gpus", 0, 64),
            metavar="N",
            help="GPUs of each.  [default: 1 where the engine runs on one]",
            panel=_CLUSTER,
        ),
    ] = None,
    workspace: options.WorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Score many images: a row each in Parquet, JSON Lines or CSV, with a reason where one cannot be read.

    Killed at any moment, the same command goes on where it was; `--on ray` may go on with what was begun here.
    """
    from lifedeploy.scoring.formats import format_of
    from lifedeploy.scoring.jobs import told
    from lifedeploy.scoring.on_ray import Actors
    from lifedeploy.scoring.places import is_address
    from lifedeploy.workflows.score import ScoreRequest
    from lifedeploy.workflows.score import score as run

    read = [model, *(Path(name) for name in images if not is_address(name))]
    written = {"--json": json, "--out": None if is_address(out) else Path(out)}
    if written["--out"] and format_of(out):
        written["the record beside --out"] = Path(f"{out}.json")
    options.require_apart(written, read)
    options.limit_pixels(max_pixels)
    with console.watching(left=True) as (say, progress):
        say("looking at the model")
        request = ScoreRequest(
            model=model,
            images=tuple(images),
            output=out,
            keep=keep or "",
            top=top,
            column=column or "",
            root=root or "",
            format=format or "",
            part=part,
            batch=batch,
            threads=threads,
            workers=workers,
            max_bad=max_bad,
            overwrite=overwrite,
            on=on,
            actors=Actors(count=actors, cores=actor_cores, gpus=actor_gpus),
            command=options.command_line(),
        )
        report = run(request, Workspace(workspace), say, progress)
    for warning in report.warnings:
        console.warn(warning)
    if report.bad:
        lines = [told(*example) for example in report.examples]
        more = report.bad - len(lines)
        lines += [f"and {more:,} more; their rows say why"] if more else []
        console.warn(
            "\n".join(lines), title=f"{report.bad:,} of {report.images:,} images have no answer", alarming=True
        )
    console.report(json, report.to_dict, lambda: scored(report))


def scored(report: ScoreReport) -> RenderableType:
    """What ``score`` says."""
    before = f", {report.parts_before:,} of them before" if report.parts_before else ""
    facts = {
        "model": f"{report.model} on {report.engine} {report.precision}",
        "images": f"{report.images:,} of {report.source}"
        + (f", {report.bad:,} without an answer" if report.bad else ""),
        "rows": f"{report.output} ({report.keep}; {report.parts:,} part{'' if report.parts == 1 else 's'}{before})",
    }
    if report.images_per_s is not None:
        facts["speed"] = f"{tables.significant(report.images_per_s)} img/s"
        if report.engine_images_per_s is not None and report.on == "here":
            facts["speed"] += f", {tables.significant(report.engine_images_per_s)} in the engine alone"
    else:
        facts["speed"] = "nothing was left to do"
    return Group(tables.facts(facts), Text(printable(_footnote(report)), style="dim"))


def _footnote(report: ScoreReport) -> str:
    machine = f"{report.machine['cpu']}, {report.machine['threads']} threads"
    where = machine if report.on == "here" else f"on {report.on}"
    return f"No benchmark: {report.scored:,} images in {report.seconds:,.1f} s, opening and decoding included; {where}."
