"""``score``: a model and many images in, files of rows out, here or on a cluster; it goes on where it was ended."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lifedeploy import __version__
from lifedeploy.artifact import Workspace
from lifedeploy.errors import UsageError
from lifedeploy.files import now
from lifedeploy.limits import MOST_IMAGES, MOST_IN_BATCH, MOST_THREADS, MOST_TOP, pixel_limit, require_within
from lifedeploy.machine import describe as describe_machine
from lifedeploy.progress import Progress, Say, silent, unwatched
from lifedeploy.scoring.answers import KEPT, Kept, require_given, usual
from lifedeploy.scoring.filing import Filer, Finished, Order, Seen
from lifedeploy.scoring.formats import FORMATS, format_of
from lifedeploy.scoring.jobs import Job, Record
from lifedeploy.scoring.on_ray import Actors, score_on_ray
from lifedeploy.scoring.output import Output, held, output_at
from lifedeploy.scoring.parts import Part
from lifedeploy.scoring.places import place_of
from lifedeploy.scoring.scorer import Settings
from lifedeploy.scoring.sources import Listed, find, listed
from lifedeploy.scoring.watch import Watch
from lifedeploy.targets import select
from lifedeploy.targets.find import ModelFile
from lifedeploy.targets.target import Target, target_of
from lifedeploy.writing import in_use, scratch_folder

WHERE = ("here", "ray")


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Which model scores which images, and where the rows go."""

    model: Path
    images: tuple[str, ...]  # one folder, pattern, manifest, shard or image, here or at an address; or several files
    output: str  # a folder, or a file with the ending of a format
    keep: str = ""  # '': classes, or embeddings of a model without a head
    top: int = 5
    column: str = ""  # of a manifest; '': the usual one
    root: str = ""  # what a manifest's paths are below; '': its folder
    format: str = ""  # '': by the output's ending, else parquet
    part: int = 1024  # images in a file of rows
    batch: int = 32
    threads: int | None = None  # of the engine
    workers: int | None = None  # threads that decode; None: as many as cores
    max_bad: float = 1.0  # share of the images that may have no answer
    overwrite: bool = False
    on: str = WHERE[0]
    actors: Actors = field(default_factory=Actors)
    command: str = ""

    def __post_init__(self) -> None:
        for flag, value, words in (
            ("--on", self.on, WHERE),
            ("--keep", self.keep or KEPT[0], KEPT),
            ("--format", self.format or next(iter(FORMATS)), tuple(FORMATS)),
        ):
            if value not in words:
                raise UsageError(f"{flag} {value!r} is unknown; there are: {', '.join(words)}")
        require_within(self.top, MOST_TOP, "classes of an image")
        require_within(self.part, MOST_IMAGES, "images in a part")
        require_within(self.batch, MOST_IN_BATCH, "images per batch")
        require_within(self.threads, MOST_THREADS, "threads", optional=True)
        require_within(self.workers, MOST_THREADS, "decoding threads", optional=True)
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"--max-bad {self.max_bad:g} is no share: it must be in [0, 1]")
        if not self.images:
            raise UsageError("no images are named")


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """What was scored, by what, and how fast."""

    created: str
    command: str
    machine: dict[str, Any]
    on: str
    model: str
    engine: str
    precision: str
    keep: str
    source: str
    output: str
    images: int  # rows in all
    bad: int  # of them without an answer
    examples: tuple[tuple[str, str], ...]  # the first of these: name, what is wrong
    parts: int
    parts_before: int  # were there already
    scored: int  # images of this run
    seconds: float  # from when the work began to the last row
    images_per_s: float | None  # of this run; None: there was nothing left to do
    engine_images_per_s: float | None  # in the engine alone, while images are decoded beside it
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"schema": 1, **asdict(self)}


def score(
    request: ScoreRequest, workspace: Workspace, say: Say = silent, progress: Progress = unwatched
) -> ScoreReport:
    """Score all images that have no rows yet. Whatever ended it before, the same request goes on where it was.

    Raises:
        ArtifactError, WeightsError, UsageError: there is no such model, or it does not give what is asked for; or rows
            of another job are where these are to go.
        DataError: the input is not there, empty or damaged; it or the output cannot be reached; or more images than
            allowed have no answer.
        EngineError: the runtime, or the cluster, failed.
    """
    say("looking at the model")
    with in_use(select.for_prediction(request.model, workspace).folder):
        target = target_of(ModelFile.of(select.for_prediction(request.model, workspace)))
        keep = _kept(request, target)
        place = place_of(request.output).absolute()
        output = output_at(place, format_of(place.name), request.format)
        output.format.require()
        output.require_writable()
        say(f"listing {request.images[0]}")
        given = find(request.images, column=request.column, root=request.root)
        with scratch_folder("score") as folder:
            images = listed(given, request.part, folder, output.folder)
            job = _job(request, keep, target, given.shown, images, output)
            with held(output):
                return _scored(request, target, job, images, output, say, progress)


def _kept(request: ScoreRequest, target: Target) -> Kept:
    """What is to be kept of an answer, which the model gives.

    Raises:
        UsageError, WeightsError: it does not, or should not.
    """
    assert target.spec is not None
    keep = next((kept for kept in KEPT if kept == request.keep), usual(target.spec))
    require_given(keep, target.spec, target.place)
    if keep == "top":
        select.require_trained(target.path, target.spec)
    return keep


def _job(request: ScoreRequest, keep: Kept, target: Target, shown: str, images: Listed, output: Output) -> Job:
    assert target.artifact is not None
    return Job(
        model=target.name,
        source=shown,
        root=images.source.root,
        column=images.source.column,
        sha256=target.artifact.manifest.sha256,
        engine=target.engine.name,
        precision=target.precision,
        keep=keep,
        top=request.top if keep == "top" else 1,
        input=images.digest,
        part=request.part,
        format=output.format.name,
        max_pixels=pixel_limit(),
    )


def _scored(
    request: ScoreRequest, target: Target, job: Job, images: Listed, output: Output, say: Say, progress: Progress
) -> ScoreReport:
    record = output.begin(job, __version__, overwrite=request.overwrite)
    watch = None
    if not record.complete:
        if images.listing is not None:
            output.keep_listing(images.listing)
        numbers = sorted(output.done(job.key))
        say(f"looking at {len(numbers):,} parts that are done" if numbers else f"opening {target.name}")
        done = output.tallies(numbers, job.key)
        watch = Watch(images.parts, images.images, done, request.max_bad, progress)
        left = [part for part in images.parts if part.number not in done]
        order = _order(request, target, job, images, output)
        with closing(_finished(order, left, request, watch.seen)) as finished:
            watch.follow(finished)
        say("finishing")
        record = replace(record, complete=True, parts=len(images.parts), tally=watch.tally)
        output.finish(record, images.parts)
    else:
        output.tidy()
    return _report(request, target, record, images, output, watch)


def _order(request: ScoreRequest, target: Target, job: Job, images: Listed, output: Output) -> Order:
    assert target.artifact is not None
    settings = Settings(batch=request.batch, threads=request.threads, workers=request.workers)
    return Order(
        manifest=target.artifact.manifest_path.absolute(),
        job=job,
        source=images.source,
        folder=output.folder.address,
        settings=settings,
    )


def _finished(
    order: Order, parts: Sequence[Part], request: ScoreRequest, seen: Seen
) -> Generator[Finished, None, None]:
    """Every part when its file is there; without parts no model is opened."""
    if parts and request.on == "ray":
        yield from score_on_ray(order, parts, request.actors)
    elif parts:
        with Filer(order) as filer:
            yield from filer.filed(parts, seen)


def _report(
    request: ScoreRequest, target: Target, record: Record, images: Listed, output: Output, watch: Watch | None
) -> ScoreReport:
    scored, seconds = (watch.scored, watch.seconds) if watch else (0, 0.0)
    return ScoreReport(
        created=now(),
        command=request.command,
        machine=describe_machine(threads=request.threads),
        on=request.on,
        model=target.name,
        engine=target.engine.name,
        precision=target.precision,
        keep=record.job.keep,
        source=record.job.source,
        output=request.output,
        images=record.tally.images,
        bad=record.tally.bad,
        examples=record.tally.examples,
        parts=record.parts,
        parts_before=watch.before if watch else record.parts,
        scored=scored,
        seconds=seconds,
        images_per_s=scored / seconds if scored and seconds else None,
        engine_images_per_s=scored / watch.engine_s if watch and watch.engine_s and scored else None,
        warnings=tuple(map(str, images.left_out)),
    )
