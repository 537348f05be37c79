"""The ``train`` command: a configuration from a TOML file, the command line over it, and a bar to watch."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console
from lifedeploy.cli.options import JsonOption, WorkspaceOption, fractions, image_size, numbers
from lifedeploy.errors import UsageError

_MODEL = "The model"
_STAGES = "Stages"
_BEYOND = "Beyond the paper"
_OPTIMISER = "Optimiser"
_AUGMENTATION = "Regularisation and augmentation"
_RUN = "The run"


def _option(flag: str, text: str, panel: str, *, metavar: str | None = None) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=panel, metavar=metavar)


def train(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder of class folders, wds/DIR or hfds/NAME.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings as TOML; options go over them.")
    ] = None,
    backbone: Annotated[str | None, _option("--backbone", "Any timm ViT.  [default: deit_s]", _MODEL)] = None,
    weights: Annotated[
        str | None,
        _option(
            "--weights",
            "Where to start.  [default: auto: the dense model fine-tuned on these classes, else pretrained]",
            _MODEL,
            metavar="auto|pretrained|random|FILE",
        ),
    ] = None,
    dense: Annotated[
        bool | None, typer.Option("--dense", help="Fine-tune the unslimmed model instead.", rich_help_panel=_MODEL)
    ] = None,
    rho: Annotated[float | None, _option("--rho", "Keep rate at each drop.  [default: 0.7]", _MODEL)] = None,
    counts: Annotated[
        str | None, _option("--counts", "Patch tokens after each drop, instead of --rho.", _MODEL, metavar="N,N,N")
    ] = None,
    drop_layers: Annotated[
        str | None, _option("--drop-layers", "[default: 4,7,10 of 12]", _MODEL, metavar="T,T,T")
    ] = None,
    img_size: Annotated[
        str | None, _option("--img-size", "[default: the backbone's own]", _MODEL, metavar="N|HxW")
    ] = None,
    temperature: Annotated[float | None, _option("--temperature", "U of eq. 7.  [default: 1.5]", _MODEL)] = None,
    epochs: Annotated[int | None, _option("--epochs", "Of a dense run.  [default: 3]", _STAGES)] = None,
    stage1_epochs: Annotated[int | None, _option("--stage1-epochs", "Predictor alone.  [default: 1]", _STAGES)] = None,
    stage2_epochs: Annotated[int | None, _option("--stage2-epochs", "Backbone alone.  [default: 1]", _STAGES)] = None,
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
    predictor_lr: Annotated[float | None, _option("--predictor-lr", "[default: 1e-3]", _OPTIMISER)] = None,
    backbone_lr: Annotated[float | None, _option("--backbone-lr", "[default: 1e-5]", _OPTIMISER)] = None,
    head_lr: Annotated[
        float | None, _option("--head-lr", "[default: the backbone's; ten times it with --dense]", _OPTIMISER)
    ] = None,
    batch: Annotated[
        int | None, _option("--batch", "Images per step, over all processes.  [default: 128]", _OPTIMISER)
    ] = None,
    accumulate: Annotated[
        int | None, _option("--accumulate", "Micro-batches that a batch is made of.  [default: 1]", _OPTIMISER)
    ] = None,
    weight_decay: Annotated[float | None, _option("--weight-decay", "[default: 0.05]", _OPTIMISER)] = None,
    warmup: Annotated[float | None, _option("--warmup", "Share of a stage.  [default: 0.1]", _OPTIMISER)] = None,
    clip_grad: Annotated[float | None, _option("--clip-grad", "0: never.  [default: 1]", _OPTIMISER)] = None,
    ema: Annotated[float | None, _option("--ema", "Decay of averaged weights.  [default: none]", _OPTIMISER)] = None,
    label_smoothing: Annotated[float | None, _option("--label-smoothing", "[default: 0]", _AUGMENTATION)] = None,
    mixup: Annotated[float | None, _option("--mixup", "[default: 0]", _AUGMENTATION)] = None,
    cutmix: Annotated[float | None, _option("--cutmix", "[default: 0]", _AUGMENTATION)] = None,
    drop_path: Annotated[float | None, _option("--drop-path", "[default: 0]", _AUGMENTATION)] = None,
    scale: Annotated[
        str | None, _option("--scale", "Area of the random crop.  [default: 0.6,1]", _AUGMENTATION, metavar="LOW,HIGH")
    ] = None,
    ratio: Annotated[
        str | None, _option("--ratio", "Its aspect.  [default: 0.75,1.33]", _AUGMENTATION, metavar="LOW,HIGH")
    ] = None,
    hflip: Annotated[float | None, _option("--hflip", "[default: 0.5]", _AUGMENTATION)] = None,
    vflip: Annotated[float | None, _option("--vflip", "[default: 0]", _AUGMENTATION)] = None,
    color_jitter: Annotated[float | None, _option("--color-jitter", "[default: 0]", _AUGMENTATION)] = None,
    auto_augment: Annotated[
        str | None, _option("--auto-augment", "timm's policy, e.g. rand-m9-mstd0.5.  [default: none]", _AUGMENTATION)
    ] = None,
    random_erasing: Annotated[float | None, _option("--random-erasing", "[default: 0]", _AUGMENTATION)] = None,
    precision: Annotated[
        str | None,
        _option("--precision", "[default: auto: bf16 where it is fast]", _RUN, metavar="auto|fp32|bf16|fp16"),
    ] = None,
    seed: Annotated[int | None, _option("--seed", "[default: 0]", _RUN)] = None,
    val_share: Annotated[
        float | None, _option("--val-share", "Held out where no validation images are given.  [default: 0.1]", _RUN)
    ] = None,
    workers: Annotated[int | None, _option("--workers", "Decoding processes.  [default: by cores]", _RUN)] = None,
    checkpoint_every: Annotated[
        int | None, _option("--checkpoint-every", "Steps, besides every epoch's end.  [default: 200]", _RUN)
    ] = None,
    log_every: Annotated[int | None, _option("--log-every", "Steps.  [default: 10]", _RUN)] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Also log for TensorBoard.", rich_help_panel=_RUN)
    ] = None,
    name: Annotated[str, _option("--name", "Folder of the run.  [default: says what is trained]", _RUN)] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue; alone: the newest run.", rich_help_panel=_RUN)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run of this name.", rich_help_panel=_RUN)
    ] = False,
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = None,
) -> None:
    """Train the life predictor, then the backbone: two epochs that make a slimmed model as good as the dense one.

    On a new data set: `train --dense` first, then lives over it, best with `--distill --hard`. Runs on one process or
    under `accelerate launch -m lifedeploy`.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if rho is not None and counts is not None:
        raise UsageError("--rho and --counts exclude each other: both set the schedule")
    given = {
        "data": data,
        "backbone": backbone,
        "weights": weights,
        "dense": dense,
        "keep_rate": rho,
        "counts": numbers(counts, "--counts") if counts else None,
        "drop_layers": numbers(drop_layers, "--drop-layers") if drop_layers else None,
        "image_size": image_size(img_size) if img_size else None,
        "temperature": temperature,
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
        "scale": fractions(scale, "--scale") if scale else None,
        "ratio": fractions(ratio, "--ratio") if ratio else None,
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
        from lifedeploy.workflows.runs import newest_run
        from lifedeploy.workflows.train import TrainRequest, resumed, settled
        from lifedeploy.workflows.train import train as run

        place = Workspace(workspace)
        command = shlex.join(["lifedeploy", *sys.argv[1:]])
        if resume and not settings and config is None:
            request = resumed(place.root / "checkpoints" / name if name else newest_run(place), command)
        else:
            request = TrainRequest(settled(settings, config), name, resume, overwrite, command)

        def started(plan: Any, folder: Path, warning: str) -> None:
            if warning:
                console.warn(warning, title="warning", alarming=True)
            console.err.print(render_training.started(plan, folder))

        report = run(
            request, place, say, watch, started, lambda line: console.warn(line, title="warning"), console.note
        )
    if main_process:
        console.report(json, report.to_dict, lambda: render_training.trained(report))
