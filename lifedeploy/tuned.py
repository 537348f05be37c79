"""A schedule that was chosen for a machine, as ``tune`` writes it: what it is of, what it is for, what it should do.

What it is for goes into the manifests of whatever is made of it: on another engine its counts are as good as any, and
need not be the fastest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from lifedeploy.errors import ArtifactError, ScheduleError, UsageError
from lifedeploy.files import now, write_json
from lifedeploy.limits import MOST_STREAMS, MOST_THREADS
from lifedeploy.reading import decode_json, read_text
from lifedeploy.schedule import Schedule
from lifedeploy.text import quoted
from lifedeploy.typed import (
    BatchSize,
    Extent,
    Layer,
    MethodName,
    Mode,
    Name,
    Number,
    Patches,
    Precision,
    Text,
    described,
)

SCHEMA = 1
KIND = "tuned-schedule"
_Counts = Annotated[tuple[Patches, ...], Meta(min_length=1, max_length=1000)]
_Layers = Annotated[tuple[Layer, ...], Meta(min_length=1, max_length=1000)]


@dataclass(frozen=True, kw_only=True)
class TunedFor:
    """The engine, the machine and the setting that a schedule is for."""

    engine: Name
    precision: Precision
    runtime: Text  # its version
    processor: Text  # the CPU with its instruction sets, or GPUs
    mode: Mode
    batch: BatchSize
    streams: Annotated[int, Meta(ge=1, le=MOST_STREAMS)] = 1
    threads: Annotated[int, Meta(ge=1, le=MOST_THREADS)] | None = None

    @property
    def label(self) -> str:
        """Engine and setting in words."""
        return f"{self.engine} {self.precision} {self.runtime}, {self.mode}, batch {self.batch}"

    def unlike(self, *, engine: str, precision: str, runtime: str, processor: str) -> str:
        """What is another there than it is for, in a sentence; '' where all is as it was.

        Where the processor is not known, it is ''.
        """
        processor = processor or self.processor
        pairs = (
            (engine, self.engine),
            (precision, self.precision),
            (runtime, self.runtime),
            (processor, self.processor),
        )
        others = [f"{here}, not {there}" for here, there in pairs if here != there]
        if not others:
            return ""
        return (
            f"the schedule was tuned for {self.label} on {self.processor}, and this is {'; '.join(others)}: its counts "
            "are as good as others here, and may not be the fastest"
        )


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A schedule, the model that it is of, and the machine that it is for."""

    schema: int = SCHEMA
    kind: str = KIND
    backbone: Name  # timm's name
    method: MethodName
    image_size: tuple[Extent, Extent]  # (height, width) in pixels
    patches: Patches
    depth: Layer
    counts: _Counts
    drop_layers: _Layers
    tuned_for: TunedFor
    speedup: Number  # measured, over the baseline
    over_before: Number  # measured, over the schedule that the model was exported with
    loss: Number  # expected, in what ``loss_is`` says
    loss_is: Text
    created: Text = field(default_factory=now)
    command: Text = ""

    @property
    def schedule(self) -> Schedule:
        """Tokens per layer.

        Raises:
            ScheduleError: counts and layers are those of no schedule.
        """
        return Schedule.from_counts(self.patches, self.depth, self.counts, self.drop_layers)

    def require_of(self, backbone: str, image_size: tuple[int, int], method: str) -> None:
        """Make sure that it is of a backbone (timm's name, whatever weights it names), an image size and a method.

        Raises:
            UsageError: it is of another.
        """
        if architecture(backbone) != architecture(self.backbone):
            raise UsageError(f"the schedule was tuned for {self.backbone}, and the model is {backbone}")
        if tuple(image_size) != self.image_size:
            given, here = ("x".join(map(str, size)) for size in (self.image_size, image_size))
            raise UsageError(
                f"the schedule was tuned for images of {given} px, and the model takes {here} px",
                hint=f"--img-size {given}, or lifedeploy tune on a model of {here} px",
            )

        if method != self.method:
            raise UsageError(
                f"the schedule was tuned for {self.method}, and the method is {method}",
                hint=f"--counts {','.join(map(str, self.counts))} --drop-layers {','.join(map(str, self.drop_layers))}",
            )

    def write(self, path: Path) -> None:
        """Write it to ``path``."""
        write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def architecture(backbone: str) -> str:
    """timm's name of a model without the tag that names its weights."""
    return backbone.partition(".")[0]


def read_tuned(path: Path) -> Tuned:
    """The schedule in a file that ``tune`` wrote.

    Raises:
        ArtifactError: it is missing, damaged, of another version, or another file altogether.
        ScheduleError: its counts are no schedule.
    """
    hint = "lifedeploy tune MODEL -o tune.json writes one"
    text = read_text(path)
    head = decode_json(text, Any, f"{path} is no tuned schedule: its JSON")
    if not isinstance(head, dict) or head.get("kind") != KIND:
        raise ArtifactError(f'{path} is no tuned schedule: expected a JSON object of kind "{KIND}"', hint=hint)
    if head.get("schema") != SCHEMA or isinstance(head["schema"], bool):
        raise ArtifactError(
            f"{path} is a tuned schedule of schema {quoted(head.get('schema'))}; this version reads {SCHEMA}", hint=hint
        )
    tuned = described(head, Tuned, str(path))
    try:
        tuned.schedule  # noqa: B018  raises where it can be none
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error.message}") from error
    return tuned
