"""``train``: from a backbone and labelled images to a checkpoint that export picks up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lifedeploy import machine, methods
from lifedeploy.artifact import Workspace
from lifedeploy.data.images import describe, read_split
from lifedeploy.data.left_out import unique
from lifedeploy.errors import ExportError, TrainingError, UsageError, WeightsError
from lifedeploy.evaluation.accuracy import by_position
from lifedeploy.exporters.onnx import require_one_file
from lifedeploy.files import write_json
from lifedeploy.model import backbones, checkpoint, weights
from lifedeploy.model.vit import SlimViT
from lifedeploy.model.weights import LoadedModel, ModelRequest
from lifedeploy.optional import require
from lifedeploy.progress import Progress, Say, silent, unwatched
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, Provenance, model_name
from lifedeploy.training import loader
from lifedeploy.training.accelerator import accelerator_for
from lifedeploy.training.config import TrainConfig, brought_up, read_toml
from lifedeploy.training.distillation import require_watchable
from lifedeploy.training.log import FILE, read_log
from lifedeploy.training.loop import Job, Outcome, Trainer
from lifedeploy.training.runs import claim, held, run_config, run_folder
from lifedeploy.training.stages import plan
from lifedeploy.writing import require_folder

REPORT = "report.json"
LAST = "last.safetensors"
DENSE_LR = 2e-5
BEST = "best.safetensors"



@dataclass(frozen=True)
class TrainRequest:
    """What to train. ``name`` is the run's folder below ``checkpoints/``; by default it says what is trained."""

    config: TrainConfig
    name: str = ""
    resume: bool = False
    overwrite: bool = False
    command: str = ""


@dataclass(frozen=True)
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
    warning: str = ""
    command: str = ""

    @property
    def last(self) -> Outcome:
        """The last epoch's validation."""
        return self.outcomes[-1]

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
    say("reading the images' names")
    config = request.config
    if not config.data:
        raise UsageError("no data to train on", hint="--data takes a folder of class folders, wds/FOLDER or hfds/NAME")
    usual = methods.get(config.method).plain_options({})
    config = config.but(options=usual | config.options)  # a run keeps all settings
    split = read_split(config.data, val_share=config.val_share, seed=config.seed)
    if accelerator.is_main_process:
        for line in unique((*split.train.left_out, *split.val.left_out)):
            warn(line)
    loader.steps_per_epoch(len(split.train), config, accelerator.num_processes)  # refused before a folder is made
    if accelerator.is_main_process:
        _warn_of_size(config, warn)
    say("making the model")
    config, warning = _resolved(config, split.train.classes, workspace)
    loaded = _load(config, split.train.classes, workspace)
    if accelerator.is_main_process:
        for line in loaded.notes:
            note(line)
        if others := _other_classes(loaded, split.train.classes):
            warn(others)
    loaded.model.adapted.set_drop_path(config.drop_path)
    require_watchable(loaded.model, config)
    if config.elastic:
        _require_elastic(loaded, config)
    loader.TrainingImages(split.train, loaded.spec.preprocess, config)  # refuses an augmentation that cannot be
    if config.tensorboard:
        require("tensorboard", extra="tensorboard")
    folder = run_folder(workspace, request.name or run_name(config, loaded.spec))
    # Of several processes the first one writes. Nobody else does, from here to the end, however that comes.
    with held(folder) if accelerator.is_main_process else nullcontext():
        fingerprint = _fingerprint(config, loaded)
        if accelerator.is_main_process:
            claim(folder, config, split, resume=request.resume, overwrite=request.overwrite)
        accelerator.wait_for_everyone()
        warning = warning or _warning(loaded, config)
        spec = _trained_spec(loaded.spec, split.train.classes, config, folder)
        job = Job(
            model=loaded.model,
            spec=spec,
            config=config,
            train=split.train,
            val=split.val,
            folder=folder,
            fingerprint=fingerprint,
            resume=request.resume,
            progress=progress,
        )
        job.saved = lambda model, outcome, best: _save(folder, model, spec, outcome.stage, best=best)
        if accelerator.is_main_process:
            started(config, folder, warning)
        say("training")
        trainer = Trainer(job, accelerator)
        trainer.run()
        report = TrainReport(
            folder,
            config,
            spec,
            {"train": describe(split.train), "val": describe(split.val), "held_out": split.held_out},
            _outcomes(folder),
            trainer.position.seconds / 60,
            machine.describe(),
            precision,
            accelerator.num_processes,
            warning,
            request.command,
        )
        if accelerator.is_main_process:
            write_json(folder / REPORT, report.to_dict())
        accelerator.wait_for_everyone()
        return report


def settled(settings: dict[str, Any], file: Path | None) -> TrainConfig:
    """The configuration of ``settings`` over those in ``file`` over the defaults.

    A new head starts from nothing: with ``dense``, rates that nobody set are those of fine-tuning, measured in
    benchmarks/real.

    Raises:
        UsageError: an unknown setting, or a value that cannot be.
    """
    read = brought_up(read_toml(file)) if file else {}
    merged = read | settings
    own, given = read.get("options"), settings.get("options")
    same = merged.get("method", methods.DEFAULT) == read.get("method", methods.DEFAULT)
    if not same:
        merged["options"] = given or {}  # the file's are another method's
    elif isinstance(own, dict) and isinstance(given, dict):
        merged["options"] = {**own, **given}  # of one method, option by option
    config = TrainConfig.from_dict(merged, str(file) if file else "the command")
    dense = not config.slims
    if dense and "backbone_lr" not in merged:
        config = config.but(backbone_lr=DENSE_LR)
    if "head_lr" not in merged and (dense or "backbone_lr" in merged):
        config = config.but(head_lr=(10 if dense else 1) * config.backbone_lr)
    return config


def resumed(folder: Path, command: str = "") -> TrainRequest:
    """The request that continues the run in ``folder``.

    Raises:
        UsageError: there is none.
    """
    return TrainRequest(run_config(folder), folder.name, resume=True, command=command)


def run_name(config: TrainConfig, spec: ModelSpec) -> str:
    """``deit_s-life-r0.7``, ``deit_s-dense``, with what else sets the run apart."""
    method, schedule = config.trained_method, spec.schedule
    if not config.slims:
        schedule = Schedule.dense(schedule.patches, schedule.depth)
    name = model_name(config.backbone, method, schedule, options=spec.options, image_size=config.size)
    extras = [word for word in ("single_stage", "hard", "distill", "elastic") if getattr(config, word)]
    return "-".join([name, *(word.replace("_stage", "") for word in extras)])


def _warn_of_size(config: TrainConfig, warn: Say) -> None:
    """Say before hours of training that what comes out of them cannot be exported."""
    try:
        require_one_file(backbones.weight_bytes(config.backbone))
    except ExportError as error:
        warn(f"{config.backbone} can be trained and not exported: {error.message}")


def _resolved(config: TrainConfig, classes: Sequence[str], workspace: Workspace) -> tuple[TrainConfig, str]:
    """The configuration with ``--weights auto`` made explicit, so that a resumed run starts from the same; a warning.

    A slimmed model is trained over the newest dense one fine-tuned on these classes; failing that, and for a dense run,
    over timm's weights; with no hub in reach, over random ones.
    """
    if config.weights != "auto":
        return config, ""
    backbone = backbones.timm_name(config.backbone)
    if config.slims:
        wanted = (backbone, methods.baseline().name, tuple(classes))
        for path in workspace.checkpoints():
            try:
                spec = checkpoint.read_spec(path)
            except WeightsError:  # damaged, or still being written
                continue
            if spec is None or (spec.timm_name, spec.method, spec.classes) != wanted:
                continue
            if config.size in (None, spec.image_size):
                return config.but(weights=str(path)), ""
    obstacle = weights.hub_obstacle(backbone)
    if not obstacle:
        return config.but(weights="pretrained"), ""
    return config.but(weights="random"), (
        f"RANDOM WEIGHTS to start from: no model fine-tuned on these classes in {workspace.root}/ and no pretrained "
        f"weights ({obstacle})."
    )


def _load(config: TrainConfig, classes: Sequence[str], workspace: Workspace) -> LoadedModel:
    request = ModelRequest(
        backbone=config.backbone,
        keep_rate=None if config.counts or not config.trained_method.takes_keep_rate else config.keep_rate,
        counts=config.counts or None,
        drop_layers=config.drop_layers or None,
        method=config.trained_method.name,
        options=config.model_options,
        weights=config.weights,
        image_size=config.size,
        num_classes=len(classes),
        new_head=True,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)  # a new head is drawn
        loaded = weights.load(request, workspace)
    if loaded.spec.classes and set(loaded.spec.classes) == set(classes) and loaded.spec.classes != tuple(classes):
        raise WeightsError(f"{config.weights} orders its classes differently: {', '.join(loaded.spec.classes[:5])} …")
    return loaded


def _warning(loaded: LoadedModel, config: TrainConfig) -> str:
    start = loaded.spec.provenance
    if config.slims and start.weights == "random":
        what = "lives are" if config.trained_method.predicts_lives else f"{config.method} is"
        return f"{what} about to be trained on random weights: fine-tune a model first (lifedeploy train --dense)"
    if config.slims and loaded.new_head:
        return "the head is new: fine-tune a dense model on these classes first (lifedeploy train --dense)"
    return ""


def _other_classes(loaded: LoadedModel, classes: Sequence[str]) -> str:
    """What the classes of a head are taken for that was trained on others, or has no names; '' of all other heads."""
    spec = loaded.spec
    if loaded.new_head or spec.provenance.weights == "random" or spec.classes == tuple(classes):
        return ""
    return (
        f"the head of {spec.provenance.source} is kept, and its classes are matched BY POSITION: "
        f"{by_position(classes, spec.classes)}"
    )


def _fingerprint(config: TrainConfig, loaded: LoadedModel) -> str:
    """What must be the same for a run to be continued: all that decides its result."""
    start = asdict(loaded.spec.provenance)
    return hashlib.sha256(json.dumps([config.decisive(), start], sort_keys=True).encode()).hexdigest()


def _require_elastic(loaded: LoadedModel, config: TrainConfig) -> None:
    """Make sure that the method can change its schedule, before anything is written.

    Raises:
        UsageError: it cannot, or has the same one for all keep rates.
    """
    ends = [config.schedule_at(rate, loaded.spec.schedule) for rate in config.elastic_range]
    if ends[0].tokens == ends[1].tokens and config.elastic_range[0] < config.elastic_range[1]:
        raise UsageError(f"--elastic changes the keep rate in every step, and {config.method} has one schedule for all")
    for other in ends:
        loaded.model.reducer.relaxed(other)
        loaded.model.reducer.at(other)


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
