"""Options that several commands share, and the ways to declare one with a range."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lifedeploy import limits, typed
from lifedeploy.cli import paths, values
from lifedeploy.errors import UsageError

if TYPE_CHECKING:
    from lifedeploy.tuned import Tuned

CLASSES = typed.MOST_CLASSES
SIDE = typed.LARGEST_EXTENT  # pixels
LAYERS = 1_000
TOKENS = SIDE**2
SEED = 2**32 - 1  # what NumPy and PyTorch both take
_MANY = 64  # numbers in a list
_IMAGES = "{value} images are not allowed: at least {low} is needed, and at most {high}"
_PER_BATCH = "{value} images per batch are not allowed: at least {low} is needed, and at most {high}"
# What no report takes the place of, whoever asks for it.
_OF_A_MODEL = (
    ".onnx", ".xml", ".bin", ".plan", ".engine", ".safetensors", ".pt", ".pth", ".ckpt", ".npz", ".tar",
)  # fmt: skip
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def option(value: values.Value, *flags: str, help: str, metavar: str | None = None, panel: str | None = None) -> Any:
    """An option that ``value`` reads; where that has a range, ``--help`` shows it."""
    low = high = None
    if isinstance(value, (values.Whole, values.Real)):
        if isinstance(value, values.Real) and (value.above or value.below):  # typer has words for closed ones only
            text, default, more = help.partition("[default")
            help = f"{text.rstrip()}{' ' if text else ''}Must be {value.interval}.  {default}{more}".strip()
        else:
            low, high = value.low, value.high
    if isinstance(value, values.OneOf):
        metavar = metavar or "|".join(value.words)
    return typer.Option(
        value.flag, *flags, parser=value, min=low, max=high, metavar=metavar, help=help, rich_help_panel=panel
    )


def whole(
    *flags: str, low: int, high: int, help: str, said: str = "", metavar: str = "N", panel: str | None = None
) -> Any:
    """An option that is a whole number."""
    return option(values.Whole(flags[0], low, high, said), *flags[1:], help=help, metavar=metavar, panel=panel)


def images(flag: str, help: str, *, low: int = 1) -> Any:
    """An option that is a number of images."""
    return whole(flag, low=low, high=limits.MOST_IMAGES, help=help, said=_IMAGES)


def batch() -> Any:
    """How many images go through a model at once."""
    return whole("--batch", low=1, high=limits.MOST_IN_BATCH, said=_PER_BATCH, help="Images per batch.")


def counts(flag: str, help: str, panel: str | None = None) -> Any:
    """An option that is a list of token counts."""
    return option(values.WholeList(flag, 0, TOKENS, _MANY), help=help, metavar="N,N,N", panel=panel)


def drop_layers(flag: str, help: str, panel: str | None = None) -> Any:
    """An option that is a list of layers."""
    return option(values.WholeList(flag, 0, LAYERS, _MANY), help=help, metavar="T,T,T", panel=panel)


def image_size(flag: str, help: str, panel: str | None = None) -> Any:
    """An option that is the size of an image."""
    return option(values.Pixels(flag, 1, SIDE), help=help, metavar="N|HxW", panel=panel)


def batches(
    flag: str, help: str, *, metavar: str = "N,N", most: int = limits.MOST_BATCHES, panel: str | None = None
) -> Any:
    """An option that is a list of batch sizes."""
    value = values.WholeList(
        flag, 1, limits.MOST_IN_BATCH, most, "batch sizes [{value}] are not allowed: each must be from {low} to {high}"
    )
    return option(value, help=help, metavar=metavar, panel=panel)


def keep_rate(flag: str, help: str, panel: str | None = None) -> Any:
    """An option that is a keep rate."""
    said = "keep rate {value} is out of range: it must be {interval}"
    return option(values.Real(flag, 0, 1, said, above=True), help=help, metavar="RHO", panel=panel)


def path(flag: str, *flags: str, help: str, metavar: str = "FILE", panel: str | None = None) -> Any:
    """An option that is a file to read."""
    return option(paths.Input(flag), *flags, help=help, metavar=metavar, panel=panel)


def picture(flag: str, *flags: str, help: str) -> Any:
    """An option that is a picture to write."""
    return option(paths.Output(flag, endings=paths.PICTURES), *flags, help=help, metavar="FILE")


def argument(metavar: str, help: str, kind: type[values.Value] = paths.Input) -> Any:
    """An argument that is a file or folder to read; or another ``kind`` of value."""
    return typer.Argument(metavar=metavar, help=help, parser=kind(metavar))


def workspace(*, written: bool) -> Any:
    """An option that is the workspace."""
    folder = paths.Folder("--workspace", written=written)
    return option(folder, "-w", metavar="DIR", help="Where results go and are looked for.")


WorkspaceOption = Annotated[Path, workspace(written=False)]
WrittenWorkspaceOption = Annotated[Path, workspace(written=True)]
JsonOption = Annotated[
    Path | None,
    option(
        paths.Output("--json", dash=True),
        metavar="FILE",
        help="Also write the report as JSON; - for standard output.",
    ),
]
ModelArgument = Annotated[
    Path | None,
    argument("MODEL", "An export or engine folder, a manifest, or a model file. Default: newest."),
]
SplitOption = Annotated[
    str | None,
    option(
        paths.Source("--split"),
        metavar="train|val|all|NAME|FILE",
        help="Which of the images.  [default: val if there is one]",
    ),
]
ThreadsOption = Annotated[
    int | None,
    whole(
        "--threads",
        low=1,
        high=limits.MOST_THREADS,
        said="{value} threads are not allowed: at least {low} is needed, and at most {high}",
        help="CPU threads.  [default: all]",
    ),
]
BackboneOption = Annotated[
    str, option(values.Name("--backbone"), "-b", metavar="NAME", help="deit_t|s|b, vit_t|s|b, or any timm ViT.")
]
WeightsOption = Annotated[
    str,
    option(paths.Source("--weights"), metavar="auto|pretrained|random|FILE", help="Where weights come from."),
]
ImageSizeOption = Annotated[
    values.Size | None, image_size("--img-size", "Image size in pixels.  [default: the backbone's own]")
]
ClassesOption = Annotated[
    int | None,
    whole("--num-classes", low=0, high=CLASSES, help="Classes of the head; 0: none.  [default: the weights' own]"),
]
ModeOption = Annotated[
    list[str] | None,
    option(
        values.OneOf("--mode", *typed.MODES, said="mode {value} is unknown; there are: {words}"),
        help="One request at a time, or several in flight; repeatable.  [default: latency]",
    ),
]
StreamsOption = Annotated[
    int, whole("--streams", low=1, high=limits.MOST_STREAMS, help="Requests in flight in throughput mode.")
]
BudgetOption = Annotated[
    float,
    option(
        values.Real("--budget", 0, limits.LONGEST_BUDGET_S, above=True),
        metavar="SECONDS",
        help="Longest time per engine, mode and batch size (three rounds are always made).",
    ),
]
LimitOption = Annotated[int | None, images("--limit", "Take N images, evenly over the data.  [default: all]")]
MaxPixelsOption = Annotated[
    int | None,
    whole(
        "--max-pixels",
        low=1,
        high=limits.MOST_PIXELS,
        help=f"Open no image of more pixels.  [default: {limits.PIXELS}]",
    ),
]


def limit_pixels(count: int | None) -> None:
    """Open no image of more than ``count`` pixels from here on; None: as it is."""
    if count is not None:
        limits.limit_pixels(count)


def precision(**given: bool) -> str:
    """The one precision asked for; '' where none was: the engine's usual one.

    Raises:
        UsageError: more than one.
    """
    chosen = [name for name, wanted in given.items() if wanted]
    if len(chosen) > 1:
        raise UsageError(f"--{' and --'.join(chosen)} exclude each other: an engine has one precision")
    return chosen[0] if chosen else ""


def require_apart(outputs: Mapping[str, Path | None], inputs: Iterable[Path | str | None] = ()) -> None:
    """Make sure that no file to write is another one of them, one of the ``inputs``, or part of a model or data set.

    Args:
        outputs: option → its file; ``-`` and None are none.
        inputs: files and folders that are read; what else is in a folder is not looked at.

    Raises:
        UsageError: one is.
    """
    written = {flag: path for flag, path in outputs.items() if path is not None and str(path) != "-"}
    read = [Path(path) for path in inputs if path]
    seen: dict[str, str] = {}
    for flag, path in written.items():
        place = os.path.realpath(path)
        if not path.exists() or path.is_file():  # two reports may well go to one device
            if place in seen:
                raise UsageError(f"{seen[place]} and {flag} are one file, {path}: each needs its own")
            seen[place] = flag
        if not path.is_file():
            continue
        if any(source.is_file() and source.samefile(path) for source in read):
            raise UsageError(f"{flag} {path} is read too, and would be replaced: name another file")
        if _is_of_a_model(path) or (
            path.suffix.lower() in _IMAGE_ENDINGS and any(_holds(source, place) for source in read)
        ):
            raise UsageError(f"{flag} {path} is a file of a model or of the data, and would be replaced")


def _is_of_a_model(path: Path) -> bool:
    """Whether it is a graph, weights or samples; or a manifest, which lies beside one with its name."""
    if path.suffix.lower() in _OF_A_MODEL:
        return True
    return path.suffix == ".json" and any(path.with_suffix(ending).exists() for ending in _OF_A_MODEL)


def _holds(folder: Path, place: str) -> bool:
    return folder.is_dir() and place.startswith(os.path.realpath(folder) + os.sep)


def tuned_schedule(path: Path | None, instead: Mapping[str, object]) -> Tuned | None:
    """The schedule in a file that ``tune`` wrote, if one is named; ``instead``: options that say a schedule too.

    Raises:
        UsageError: one of these is given besides.
        ArtifactError, ScheduleError: the file is no such schedule.
    """
    if path is None:
        return None
    given = next((flag for flag, value in instead.items() if value is not None), None)
    if given is not None:
        raise UsageError(f"--schedule and {given} exclude each other: both set the schedule")
    from lifedeploy.tuned import read_tuned

    return read_tuned(path)


def first_given(context: typer.Context, *names: str) -> str:
    """The flag of the first of these parameters that the command line has; '' where it has none of them."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            return f"--{name.replace('_', '-')}"
    return ""


def command_line() -> str:
    """How this process was called, for reports."""
    return shlex.join(["lifedeploy", *sys.argv[1:]])
