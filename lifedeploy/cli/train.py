"""The ``train`` command: a configuration from a TOML file, the command line over it, and a bar to watch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lifedeploy import methods
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, method_options, options, paths, values
from lifedeploy.errors import UsageError

_MODEL = "The model"
_STAGES = "Stages"
_BEYOND = "Beyond the paper"
_OPTIMISER = "Optimiser"
_AUGMENTATION = "Regularisation and augmentation"
_RUN = "The run"
_PRECISIONS = ("auto", "fp32", "bf16", "fp16")


# Learning rates, weights of losses, and what augmentation is given; see TrainConfig, which has the same ranges.
_RATE, _EPOCHS, _STEPS = 1000, 100_000, 1_000_000_000


def _real(
    flag: str, help: str, panel: str, high: float = 1, *, low: float = 0, below: bool = False, said: str = ""
) -> Any:
    return options.option(values.Real(flag, low, high, said, below=below), help=help, metavar="X", panel=panel)


def _whole(flag: str, help: str, panel: str, high: int, *, low: int = 0) -> Any:
    return options.whole(flag, low=low, high=high, help=help, panel=panel)


def train(
    data: Annotated[
        str | None,
        options.option(paths.Source("--data"), metavar="DIR", help="Folder of class folders, wds/DIR or hfds/NAME."),
    ] = None,
    config: Annotated[Path | None, options.path("--config", help="Settings as TOML; options go over them.")] = None,
    backbone: Annotated[
        str | None,
        options.option(
            values.Name("--backbone"), metavar="NAME", help="Any timm ViT.  [default: deit_s]", panel=_MODEL
        ),
    ] = None,
    weights: Annotated[
        str | None,
        options.option(
            paths.Source("--weights"),
            help="Where to start.  [default: auto: the dense model fine-tuned on these classes, else pretrained]",
            metavar="auto|pretrained|random|FILE",
            panel=_MODEL,
        ),
    ] = None,
    method: Annotated[
        str | None,
        options.option(
            method_options.MethodName(methods.SLIMMED, methods.BASELINE),
            metavar="NAME",
            help=f"How tokens are dropped; its own options come with it.  [default: {methods.DEFAULT}]",
            panel=_MODEL,
        ),
    ] = None,
    dense: Annotated[
        bool | None, typer.Option("--dense", help="Fine-tune the unslimmed model instead.", rich_help_panel=_MODEL)
    ] = None,
    rho: Annotated[float | None, options.keep_rate("--rho", "Keep rate at each drop.  [default: 0.7]", _MODEL)] = None,
    counts: Annotated[
        values.Numbers | None,
        options.counts("--counts", "Patch tokens after each drop, instead of --rho.", _MODEL),
    ] = None,
    drop_layers: Annotated[
        values.Numbers | None, options.drop_layers("--drop-layers", "[default: 4,7,10 of 12]", _MODEL)
    ] = None,
    img_size: Annotated[
        values.Size | None, options.image_size("--img-size", "[default: the backbone's own]", _MODEL)
    ] = None,
    epochs: Annotated[
        int | None,
        _whole("--epochs", "Of a dense run, or a method of one stage.  [default: 3]", _STAGES, _EPOCHS),
    ] = None,
    stage1_epochs: Annotated[
        int | None, _whole("--stage1-epochs", "The method's own parameters alone.  [default: 1]", _STAGES, _EPOCHS)
    ] = None,
    stage2_epochs: Annotated[
        int | None, _whole("--stage2-epochs", "Backbone alone.  [default: 1]", _STAGES, _EPOCHS)
    ] = None,
    single_stage: Annotated[
        bool | None,
        typer.Option("--single-stage", help="Everything at once: the paper's ablation.", rich_help_panel=_STAGES),
    ] = None,
    hard: Annotated[
        bool | None,
        typer.Option(
            "--hard", help="In the backbone's stage tokens really leave, as when deployed.", rich_help_panel=_BEYOND
        ),
    ] = None,
    distill: Annotated[
        bool | None,
        typer.Option(
            "--distill",
            help="The dense model it starts from is the teacher: of logits, tokens, lives.",
            rich_help_panel=_BEYOND,
        ),
    ] = None,
    elastic: Annotated[
        bool | None,
        typer.Option(
            "--elastic", help="Another keep rate in every step: one checkpoint for all.", rich_help_panel=_BEYOND
        ),
    ] = None,
    predictor_lr: Annotated[float | None, _real("--predictor-lr", "[default: 1e-3]", _OPTIMISER, _RATE)] = None,
    backbone_lr: Annotated[float | None, _real("--backbone-lr", "[default: 1e-5]", _OPTIMISER, _RATE)] = None,
    head_lr: Annotated[
        float | None,
        _real("--head-lr", "[default: the backbone's; ten times it with --dense]", _OPTIMISER, _RATE),
    ] = None,
    batch: Annotated[
        int | None,
        _whole("--batch", "Images per step, over all processes.  [default: 128]", _OPTIMISER, options.BATCH, low=1),
    ] = None,
    accumulate: Annotated[
        int | None,
        _whole(
            "--accumulate", "Micro-batches that a batch is made of.  [default: 1]", _OPTIMISER, options.BATCH, low=1
        ),
    ] = None,
    weight_decay: Annotated[float | None, _real("--weight-decay", "[default: 0.05]", _OPTIMISER, _RATE)] = None,
    warmup: Annotated[
        float | None, _real("--warmup", "Share of a stage.  [default: 0.1]", _OPTIMISER, below=True)
    ] = None,
    clip_grad: Annotated[float | None, _real("--clip-grad", "0: never.  [default: 1]", _OPTIMISER, 1e9)] = None,
    ema: Annotated[
        float | None, _real("--ema", "Decay of averaged weights.  [default: none]", _OPTIMISER, below=True)
    ] = None,
    label_smoothing: Annotated[
        float | None, _real("--label-smoothing", "[default: 0]", _AUGMENTATION, below=True)
    ] = None,
    mixup: Annotated[float | None, _real("--mixup", "[default: 0]", _AUGMENTATION, _RATE)] = None,
    cutmix: Annotated[float | None, _real("--cutmix", "[default: 0]", _AUGMENTATION, _RATE)] = None,
    drop_path: Annotated[float | None, _real("--drop-path", "[default: 0]", _AUGMENTATION, below=True)] = None,
    scale: Annotated[
        values.Reals | None,
        options.option(
            values.RealList("--scale", 0, 1, 2, above=True),
            help="Area of the random crop.  [default: 0.6,1]",
            metavar="LOW,HIGH",
            panel=_AUGMENTATION,
        ),
    ] = None,
    ratio: Annotated[
        values.Reals | None,
        options.option(
            values.RealList("--ratio", 0.01, 100, 2),
            help="Its aspect.  [default: 0.75,1.33]",
            metavar="LOW,HIGH",
            panel=_AUGMENTATION,
        ),
    ] = None,
    hflip: Annotated[float | None, _real("--hflip", "[default: 0.5]", _AUGMENTATION)] = None,
    vflip: Annotated[float | None, _real("--vflip", "[default: 0]", _AUGMENTATION)] = None,
    color_jitter: Annotated[float | None, _real("--color-jitter", "[default: 0]", _AUGMENTATION, 10)] = None,
    auto_augment: Annotated[
        str | None,
        options.option(
            values.Name("--auto-augment"),
            metavar="POLICY",
            help="timm's policy, e.g. rand-m9-mstd0.5.  [default: none]",
            panel=_AUGMENTATION,
        ),
    ] = None,
    random_erasing: Annotated[float | None, _real("--random-erasing", "[default: 0]", _AUGMENTATION)] = None,
    precision: Annotated[
        str | None,
        options.option(
            values.Choice("--precision", *_PRECISIONS, said="precision is {bare}, expected one of {words}"),
            help="[default: auto: bf16 where it is fast]",
            panel=_RUN,
        ),
    ] = None,
    seed: Annotated[int | None, _whole("--seed", "[default: 0]", _RUN, options.SEED)] = None,
    val_share: Annotated[
        float | None,
        _real(
            "--val-share",
            "Held out where no validation images are given.  [default: 0.1]",
            _RUN,
            below=True,
            said="a share of {found} cannot be held out; it must be {interval}",
        ),
    ] = None,
    workers: Annotated[
        int | None, _whole("--workers", "Decoding processes; -1: by cores.  [default: -1]", _RUN, 256, low=-1)
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        _whole("--checkpoint-every", "Steps, besides every epoch's end.  [default: 200]", _RUN, _STEPS, low=1),
    ] = None,
    log_every: Annotated[int | None, _whole("--log-every", "Steps.  [default: 10]", _RUN, _STEPS, low=1)] = None,
    max_pixels: options.MaxPixelsOption = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Also log for TensorBoard.", rich_help_panel=_RUN)
    ] = None,
    name: Annotated[
        str | None,
        options.option(
            values.FolderName("--name"),
            metavar="NAME",
            help="Folder of the run.  [default: says what is trained]",
            panel=_RUN,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue; alone: the newest run.", rich_help_panel=_RUN)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run of this name.", rich_help_panel=_RUN)
    ] = False,
    workspace: options.WrittenWorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Train what a method has of its own, then the backbone: for `life`, two epochs make it as good as the dense model.

    On a new data set: `train --dense` first, then the slimmed model over it, best with `--distill --hard`. Runs
    on one process or under `accelerate launch -m lifedeploy`.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if rho is not None and counts is not None:
        raise UsageError("--rho and --counts exclude each other: both set the schedule")
    options.require_apart({"--json": json}, [data, config, weights])
    options.limit_pixels(max_pixels)
    given = {
        "data": data,
        "backbone": backbone,
        "method": method,
        "options": method_options.given() or None,
        "weights": weights,
        "dense": dense,
        "keep_rate": rho,
        "counts": counts and tuple(counts),
        "drop_layers": drop_layers and tuple(drop_layers),
        "image_size": img_size and tuple(img_size),
        "epochs": epochs,
        "stage1_epochs": stage1_epochs,
        "stage2_epochs": stage2_epochs,
        "single_stage": single_stage,
        "hard": hard,
        "distill": distill,
        "elastic": elastic,
        "predictor_lr": predictor_lr,
        "backbone_lr": backbone_lr,
        "head_lr": head_lr,
        "batch": batch,
        "accumulate": accumulate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "clip_grad": clip_grad,
        "ema": ema,
        "label_smoothing": label_smoothing,
        "mixup": mixup,
        "cutmix": cutmix,
        "drop_path": drop_path,
        "scale": scale and tuple(scale),
        "ratio": ratio and tuple(ratio),
        "hflip": hflip,
        "vflip": vflip,
        "color_jitter": color_jitter,
        "auto_augment": auto_augment,
        "random_erasing": random_erasing,
        "precision": precision,
        "seed": seed,
        "val_share": val_share,
        "workers": workers,
        "checkpoint_every": checkpoint_every,
        "log_every": log_every,
        "tensorboard": tensorboard,
    }
    settings = {key: value for key, value in given.items() if value is not None}
    main_process = os.environ.get("RANK", "0") == "0"
    with console.training(quiet=not main_process) as (say, watch):
        say("importing torch")
        from lifedeploy.cli import render_training
        from lifedeploy.workflows.runs import newest_run, run_folder
        from lifedeploy.workflows.train import TrainRequest, resumed, settled
        from lifedeploy.workflows.train import train as run

        place = Workspace(workspace)
        command = options.command_line()
        if resume and not settings and config is None:
            request = resumed(run_folder(place, name) if name else newest_run(place), command)
        else:
            request = TrainRequest(settled(settings, config), name or "", resume, overwrite, command)

        def started(plan: Any, folder: Path, warning: str) -> None:
            if warning:
                console.warn(warning, title="warning", alarming=True)
            console.err.print(render_training.started(plan, folder))

        report = run(
            request, place, say, watch, started, lambda line: console.warn(line, title="warning"), console.note
        )
    if main_process:
        console.report(json, report.to_dict, lambda: render_training.trained(report))
