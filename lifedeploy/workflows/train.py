"""``train``: from a backbone and labelled images to a checkpoint that export picks up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lifedeploy import machine, methods
from lifedeploy.artifact import Workspace
from lifedeploy.data.images import read_split
from lifedeploy.data.left_out import unique
from lifedeploy.data.sets import describe
from lifedeploy.errors import ExportError, TrainingError, UsageError
from lifedeploy.evaluation.accuracy import by_position
from lifedeploy.exporters.onnx import require_one_file
from lifedeploy.files import write_json
from lifedeploy.model import backbones, checkpoint
from lifedeploy.model.request import LoadedModel
from lifedeploy.model.vit import SlimViT
from lifedeploy.optional import require
from lifedeploy.progress import Progress, Say, silent, unwatched
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, Provenance, model_name
from lifedeploy.training import loader
from lifedeploy.training.accelerator import accelerator_for
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.distillation import require_watchable
from lifedeploy.training.log import FILE, read_log
from lifedeploy.training.loop import Job, Outcome, Trainer
from lifedeploy.training.runs import claim, held, run_config, run_folder
from lifedeploy.training.stages import plan, require_frozen
from lifedeploy.training.start import fingerprint, load_start, require_schedules, resolved, warning_of
from lifedeploy.tuned import Tuned
from lifedeploy.typed import RANDOM_WEIGHTS
from lifedeploy.writing import require_folder

REPORT = "report.json"
LAST = "last.safetensors"
BEST = "best.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train. ``name`` is the run's folder below ``checkpoints/``; by default it says what is trained."""

    config: TrainConfig
    name: str = ""
    resume: bool = False
    overwrite: bool = False
    command: str = ""
    tuned: Tuned | None = None  # that the configuration's counts and drop layers are from


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a run came to."""

    folder: Path
    config: TrainConfig
    spec: ModelSpec
    data: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    minutes: float  # of training and validation, before a resumption too
    machine: dict[str, Any]
    precision: str
    processes: int
    peak_memory_mib: float | None  # of this process; on a GPU, of that. Of a resumed run since then
    warning: str = ""
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "schema": 1,
            "command": self.command,
            "folder": str(self.folder),
            "config": self.config.to_dict(),
            "spec": self.spec.to_dict(),
            "data": self.data,
            "epochs": [asdict(outcome) for outcome in self.outcomes],
            "minutes": round(self.minutes, 2),
            "precision": self.precision,
            "processes": self.processes,
            "peak_memory_mib": self.peak_memory_mib,
            "machine": self.machine,
            "warning": self.warning,
        }


def train(
    request: TrainRequest,
    workspace: Workspace,
    say: Say = silent,
    progress: Progress = unwatched,
    started: Callable[[TrainConfig, Path, str], None] = lambda config, folder, warning: None,
    warn: Say = silent,
    note: Say = silent,
) -> TrainReport:
    """Run all stages, or those that are left of a run that was stopped.

    ``warn`` hears, before anything is trained, what of the data is not used, and ``note`` what was made of a file of
    weights.

    Raises:
        UsageError: the configuration cannot be meant, or the run's folder is taken.
        DataError, ImageError: the images are missing or damaged.
        WeightsError: the weights to start from are.
        TrainingError: a gradient is not finite, or the state on disk is another run's.
    """
    if request.name:
        require_folder(run_folder(workspace, request.name))
    require_folder(workspace.root / "checkpoints")
    accelerator, precision = accelerator_for(request.config)
    if not accelerator.is_main_process:
        warn = note = silent
    say("reading the images' names")
    config = request.config
    if not config.data:
        raise UsageError("no data to train on", hint="--data takes a folder of class folders, wds/FOLDER or hfds/NAME")
    if request.tuned is not None:
        size = config.size or request.tuned.image_size
        request.tuned.require_of(backbones.timm_name(config.backbone), size, config.method)
    usual = methods.get(config.method).plain_options({})
    config = config.but(options=usual | config.options)  # a run keeps all settings
    split = read_split(config.data, val_share=config.val_share, seed=config.seed)
    for line in unique((*split.train.left_out, *split.val.left_out)):
        warn(line)
    loader.steps_per_epoch(len(split.train), config, accelerator.num_processes)  # refused before a folder is made
    _warn_of_size(config, warn)
    say("making the model")
    config, warning = resolved(config, split.train.classes, workspace)
    loaded = load_start(config, split.train.classes, workspace)
    if request.tuned is not None:
        request.tuned.require_of(loaded.spec.timm_name, loaded.spec.image_size, loaded.spec.method)
    for line in loaded.notes:
        note(line)
    if others := _other_classes(loaded, split.train.classes):
        warn(others)
    loaded.model.adapted.set_drop_path(config.drop_path)
    require_watchable(loaded.model, config)
    require_frozen(loaded.model, config)
    _require_forward(loaded, config)
    if lacking := _lacking(config):
        note(lacking)
    require_schedules(loaded, config)
    loader.TrainingImages(split.train, loaded.spec.preprocess, config)  # refuses an augmentation that cannot be
    if config.tensorboard:
        require("tensorboard", extra="tensorboard")
    folder = run_folder(workspace, request.name or run_name(config, loaded.spec))
    # Of several processes the first one writes. Nobody else does, from here to the end, however that comes.
    with held(folder) if accelerator.is_main_process else nullcontext():
        start = fingerprint(config, loaded)
        if accelerator.is_main_process:
            claim(folder, config, split, resume=request.resume, overwrite=request.overwrite)
        accelerator.wait_for_everyone()
        warning = warning or warning_of(loaded, config)
        spec = _trained_spec(loaded.spec, split.train.classes, config, folder)
        job = Job(
            model=loaded.model,
            spec=spec,
            config=config,
            train=split.train,
            val=split.val,
            folder=folder,
            fingerprint=start,
            resume=request.resume,
            progress=progress,
            saved=lambda model, outcome, best: _save(folder, model, spec, outcome.stage, best=best),
        )
        if accelerator.is_main_process:
            started(config, folder, warning)
        say("training")
        trainer = Trainer(job, accelerator)
        trainer.run()
        report = TrainReport(
            folder=folder,
            config=config,
            spec=spec,
            data={"train": describe(split.train), "val": describe(split.val), "held_out": split.held_out},
            outcomes=_outcomes(folder),
            minutes=trainer.position.seconds / 60,
            machine=machine.describe(),
            precision=precision,
            processes=accelerator.num_processes,
            peak_memory_mib=_peak_memory_mib(accelerator.device),
            warning=warning,
            command=request.command,
        )
        if accelerator.is_main_process:
            write_json(folder / REPORT, report.to_dict())
        accelerator.wait_for_everyone()
        return report


def resumed(folder: Path, command: str = "") -> TrainRequest:
    """The request that continues the run in ``folder``.

    Raises:
        UsageError: there is none.
    """
    return TrainRequest(config=run_config(folder), name=folder.name, resume=True, command=command)


def run_name(config: TrainConfig, spec: ModelSpec) -> str:
    """``deit_s-life-r0.7``, ``deit_s-dense``, with what else sets the run apart."""
    method, schedule = config.trained_method, spec.schedule
    if not config.slims:
        schedule = Schedule.dense(schedule.patches, schedule.depth)
    name = model_name(config.backbone, method, schedule, options=spec.options, image_size=config.size)
    extras = [word for word in ("single_stage", "hard", "distill", "elastic") if getattr(config, word)]
    return "-".join([name, *(word.replace("_stage", "") for word in extras)])


def _lacking(config: TrainConfig) -> str:
    """What stage a slimmed model is trained without, in words; '' where it has all."""
    method = config.trained_method
    if not config.slims or method.trains_reducer:
        return ""
    return (
        f"{method.name} has no parameters of its own to train: that stage is skipped, and --epochs says how long the "
        f"backbone trains ({config.epochs})"
    )


def _require_forward(loaded: LoadedModel, config: TrainConfig) -> None:
    """Whatever a method cannot do with this backbone, in the forms that it trains and is validated in, is said before a
    folder is made.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        for soft in sorted({False, *(stage.soft for stage in plan(config))}):
            loaded.model(torch.zeros(1, 3, *loaded.spec.image_size), soft=soft)


def _peak_memory_mib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return machine.peak_memory_mib()


def _warn_of_size(config: TrainConfig, warn: Say) -> None:
    """Say before hours of training that what comes out of them cannot be exported."""
    try:
        require_one_file(backbones.weight_bytes(config.backbone))
    except ExportError as error:
        warn(f"{config.backbone} can be trained and not exported: {error.message}")


def _other_classes(loaded: LoadedModel, classes: Sequence[str]) -> str:
    """What the classes of a head are taken for that was trained on others, or has no names; '' of all other heads."""
    spec = loaded.spec
    if loaded.new_head or spec.provenance.weights == RANDOM_WEIGHTS or spec.classes == tuple(classes):
        return ""
    return (
        f"the head of {spec.provenance.source} is kept, and its classes are matched BY POSITION: "
        f"{by_position(classes, spec.classes)}"
    )


def _trained_spec(spec: ModelSpec, classes: Sequence[str], config: TrainConfig, folder: Path) -> ModelSpec:
    trained = any(stage.reducer for stage in plan(config)) and config.trained_method.trains_reducer
    predictor = "trained" if trained else spec.provenance.predictor
    provenance = Provenance(weights="trained", source=folder.name, predictor=predictor, elastic=config.elastic)
    return replace(spec, provenance=provenance, classes=tuple(classes))


def _save(folder: Path, model: SlimViT, spec: ModelSpec, stage: str, *, best: bool) -> None:
    """The last, the best, and what each stage came to."""
    checkpoint.save(folder / f"after-{stage}.safetensors", model, spec)
    checkpoint.save(folder / LAST, model, spec)
    if best:
        checkpoint.save(folder / BEST, model, spec)


def _outcomes(folder: Path) -> tuple[Outcome, ...]:
    """All validations of the run, those before a resumption too."""
    rows = [row for row in read_log(folder / FILE) if row.kind == "val"]
    if not rows:
        raise TrainingError(f"{folder / FILE} has no validation in it", hint="--overwrite starts the run again")
    return tuple(Outcome(row.stage, row.epoch, row.loss, row.accuracy) for row in rows)
