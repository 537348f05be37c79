"""The loop: stages, epochs, steps, on one process or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor

from lifedeploy.data.sets import ImageSet
from lifedeploy.errors import TrainingError
from lifedeploy.model.blocks import plain_attention
from lifedeploy.model.vit import SlimOutput, SlimViT
from lifedeploy.processes import Processes
from lifedeploy.progress import Progress, Step, unwatched
from lifedeploy.reading import foreign
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec
from lifedeploy.training import loader, state
from lifedeploy.training.accelerator import trains_by_products
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.distillation import Teacher
from lifedeploy.training.loader import MicroBatch
from lifedeploy.training.log import Log, LogRow
from lifedeploy.training.losses import classification_loss
from lifedeploy.training.stages import LearningRates, Stage, freeze, parameter_groups, plan
from lifedeploy.training.state import START, State
from lifedeploy.training.validation import Meter, validate


@dataclass(frozen=True)
class Outcome:
    """Loss and accuracy over the validation images at the end of an epoch."""

    stage: str
    epoch: int  # over the whole run, from 1
    loss: float
    accuracy: float


@dataclass(kw_only=True)
class Job:
    """What to train, and whom to tell. The callbacks are called in the main process only."""

    model: SlimViT
    spec: ModelSpec
    config: TrainConfig
    train: ImageSet
    val: ImageSet
    folder: Path
    fingerprint: str
    resume: bool = False
    progress: Progress = unwatched
    saved: Callable[[SlimViT, Outcome, bool], None] = lambda model, outcome, best: None


class Trainer:
    """A run of all stages, or of what is left of them, in this process and its fellows."""

    def __init__(self, job: Job, accelerator: Any) -> None:
        self.job = job
        self.config = job.config
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.processes = Processes(accelerator.process_index, accelerator.num_processes)
        self.model = job.model.to(self.device)
        self.stages = plan(job.config)
        if any(stage.soft and stage.backbone for stage in self.stages):
            self.model.reducer.equip(self.model.adapted)
        self.steps = loader.steps_per_epoch(len(job.train), job.config, self.processes.world)
        self.images = loader.TrainingImages(job.train, job.spec.preprocess, job.config)
        self.teacher = Teacher(self.model, job.config) if job.config.distill else None
        self.ema = ModelEmaV3(self.model, decay=job.config.ema, use_warmup=True) if job.config.ema else None
        self.mixup = _mixup(job.config, job.spec.num_classes)
        self.position = START
        self._resumed: State | None = None
        if job.resume:
            self._continue()
        self._began = time.perf_counter() - self.position.seconds
        log_rows = self.position.log_rows
        tensorboard = job.config.tensorboard
        self.log = Log(job.folder, tensorboard=tensorboard, keep=log_rows) if accelerator.is_main_process else None

    def run(self) -> None:
        """All stages that are left.

        Raises:
            TrainingError: a gradient is not finite.
            ImageError: an image cannot be decoded.
        """
        with plain_attention(self.model) if trains_by_products(self.accelerator) else nullcontext():
            for number in range(self.position.stage, len(self.stages)):
                self._stage(number, self.stages[number])
        if self.log is not None:
            self.log.close()

    def _stage(self, number: int, stage: Stage) -> None:
        freeze(self.model, stage, self.config.frozen)
        optimizer = torch.optim.AdamW(parameter_groups(self.model, self.config), foreach=True)
        total = stage.epochs * self.steps
        rounds = self.model.reducer.turns if stage.reducer and stage.soft else 1
        rates = LearningRates(optimizer, total, self.config, rounds)
        model = self.accelerator.prepare_model(self.model)
        optimizer_: Any = self.accelerator.prepare_optimizer(optimizer)
        if self._resumed is not None:
            state.restore_optimizer(optimizer, self._resumed.optimizer, self._resumed.path)
            with foreign(f"the loss scaler in {self._resumed.path}", TrainingError):
                if self.accelerator.scaler is not None and self._resumed.scaler:
                    self.accelerator.scaler.load_state_dict(dict(self._resumed.scaler))
            self._resumed = None
        try:
            for epoch in range(self.position.epoch, stage.epochs):
                self._epoch(stage, epoch, model, optimizer_, rates)
                self._finish_epoch(stage)
                last = epoch + 1 == stage.epochs
                self._advance(
                    stage=number + last,
                    epoch=0 if last else epoch + 1,
                    step=0,
                    run_epoch=self.position.run_epoch + 1,
                )
                # The next stage starts with a fresh optimiser: this one's moments are of no more use.
                self._save(None if last else optimizer)
        finally:
            self.model = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            # Else the next stage's would be taken for prepared, and trained without autocast.
            vars(self.model).pop("_is_accelerate_prepared", None)
            self.accelerator.free_memory()

    def _epoch(self, stage: Stage, epoch: int, model: Any, optimizer: Any, rates: LearningRates) -> None:
        run_epoch = self.position.run_epoch
        first = self.position.step
        order = loader.micro_batches(len(self.job.train), self.config, self.processes, run_epoch, first)
        batches = loader.batches(self.images, order, self.config, self.device)
        meter = Meter(self.device)
        for step in range(first, self.steps):
            done = epoch * self.steps + step
            rates.set(done + 1)
            micro_batches = [next(batches) for _ in range(self.config.accumulate)]
            self._step(stage, done / rates.steps, micro_batches, model, optimizer, meter)
            self._advance(step=step + 1, run_step=self.position.run_step + 1)
            at_end = step + 1 == self.steps
            save = self.position.run_step % self.config.checkpoint_every == 0 and not at_end
            # Before a state is saved too: a mean over a line's steps does not survive in it.
            if (step + 1) % self.config.log_every == 0 or at_end or save:
                self._report(stage, epoch, step + 1, rates, meter)
                meter = Meter(self.device)
            if save:
                self._save(optimizer.optimizer)

    def _step(
        self,
        stage: Stage,
        progress: float,
        batches: Sequence[MicroBatch],
        model: Any,
        optimizer: Any,
        meter: Meter,
    ) -> None:
        """One step of the optimiser. All that it draws is a function of the seed, the step and the process."""
        seed = loader.seed_of(self.config.seed, self.position.run_step, self.processes.rank)
        torch.manual_seed(seed)
        schedule = self._schedule(stage, progress)
        for number, batch in enumerate(batches):
            images, targets = batch.images, batch.targets
            if self.mixup is not None:
                with loader.seeded(loader.seed_of(seed, number)):
                    images, targets = self.mixup(images, targets)
            synchronise = number + 1 == len(batches)
            with nullcontext() if synchronise else self.accelerator.no_sync(model):
                output = model(images, soft=stage.soft, schedule=schedule, progress=progress)
                loss = self._loss(output, images, targets, batch.targets)
                self.accelerator.backward(loss / len(batches))
            meter.add(loss.detach(), output.logits.detach(), batch.targets)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        norm = self.accelerator.clip_grad_norm_(trained, self.config.clip_grad or math.inf)
        self._require_finite(stage, norm, loss.detach(), batches)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(model), self.position.run_step)

    def _schedule(self, stage: Stage, progress: float) -> Schedule | None:
        """Another keep rate in every step of an elastic stage, the same in all processes, or one that falls; else the
        model's own.
        """
        if stage.elastic:
            low, high = self.config.elastic_range
            rate = low + (high - low) * loader.seed_of(self.config.seed, self.position.run_step) / 2**32
        elif stage.backbone and progress < self.config.keep_ramp[1]:
            rate = ramped(self.config.keep_rate, progress, self.config.keep_ramp)
        else:
            return None
        return self.config.schedule_at(rate, self.job.spec.schedule)

    def _loss(self, output: SlimOutput, images: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Of a batch: against ``targets``, which may be mixtures of its ``labels``; of a teacher; and of the method."""
        config, reducer = self.config, self.job.model.reducer

        def criterion(logits: Tensor) -> Tensor:
            return classification_loss(logits, targets, config.label_smoothing)

        loss = reducer.labelled(output.logits, output.loss_inputs, criterion)
        if self.teacher is not None:
            with self.accelerator.autocast():
                taught = self.teacher.loss(output, self.teacher(images), self.job.model.adapted.final_norm)
            loss = config.distill_labels * loss + taught
        penalty = reducer.penalty(output.loss_inputs, output.logits.detach().argmax(dim=1) == labels)
        return loss if penalty is None else loss + penalty

    def _require_finite(self, stage: Stage, norm: Tensor | None, loss: Tensor, batches: Sequence[MicroBatch]) -> None:
        """Stop before a step that would leave a model of NaNs.

        In FP16 a gradient overflows now and then: the scaler skips that step and lowers its scale, until it cannot.
        """
        scaler = self.accelerator.scaler
        overflow_expected = scaler is not None and bool(torch.isfinite(loss)) and scaler.get_scale() > 1
        finite = norm is None or bool(torch.isfinite(norm))
        if (finite and bool(torch.isfinite(loss))) or overflow_expected:
            return
        names = [self.job.train.filename(index) for batch in batches for index in batch.indices]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise TrainingError(
            f"stage {stage.name}, step {self.position.run_step + 1}: gradients are not finite (loss {loss.item():g}, "
            f"norm {math.nan if norm is None else float(norm):g}); the batch: {shown}",
            hint="a lower learning rate, --precision fp32, or look at these images; --resume goes on before this step",
        )

    def _report(self, stage: Stage, epoch: int, step: int, rates: LearningRates, meter: Meter) -> None:
        loss, accuracy, images, seconds = meter.read(self.accelerator)
        rate = images / seconds
        self._log("train", stage, lr=rates.largest, loss=loss, accuracy=accuracy, images_per_s=rate)
        left = sum(stage.epochs for stage in self.stages) * self.steps - self.position.run_step
        if self.accelerator.is_main_process:
            minutes, seconds_left = divmod(round(left * self.config.batch / rate), 60)  # without validations
            numbers = f"loss {loss:.3f} · acc {accuracy * 100:.1f} % · {rate:.3g} img/s"
            detail = f"{step}/{self.steps} · {numbers} · {minutes}:{seconds_left:02d} left"
            self.job.progress(Step(f"{stage.name} {epoch + 1}/{stage.epochs}", step / self.steps, detail))

    def _finish_epoch(self, stage: Stage) -> None:
        model = self.ema.module if self.ema is not None else self.accelerator.unwrap_model(self.model)
        job = self.job
        loss, accuracy = validate(model, job.val, job.spec.preprocess, job.config, self.processes, self.accelerator)
        outcome = Outcome(stage.name, self.position.run_epoch + 1, loss, accuracy)
        self._log("val", stage, lr=0.0, loss=loss, accuracy=accuracy, images_per_s=0.0)
        best = outcome.accuracy > self.position.best
        if best:
            self._advance(best=outcome.accuracy)
        if self.accelerator.is_main_process:
            self.job.saved(model, outcome, best)

    def _log(self, kind: Literal["train", "val"], stage: Stage, **numbers: float) -> None:
        if self.log is not None:
            at = self.position
            self.log.add(LogRow(kind=kind, stage=stage.name, epoch=at.run_epoch + 1, step=at.run_step, **numbers))
        self._advance(log_rows=self.position.log_rows + 1)

    def _advance(self, **changes: Any) -> None:
        self.position = replace(self.position, **changes)

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        self._advance(seconds=time.perf_counter() - self._began)
        state.save(
            self.job.folder / state.FOLDER,
            State(
                position=self.position,
                fingerprint=self.job.fingerprint,
                model=self.job.model.state_dict(),
                ema=self.ema.module.state_dict() if self.ema is not None else {},
                optimizer=state.optimizer_tensors(optimizer) if optimizer is not None else {},
                scaler=scaler.state_dict() if scaler is not None else {},
            ),
        )

    def _continue(self) -> None:
        """Take up the newest state, if there is one.

        Raises:
            TrainingError: it belongs to another run, or what it holds does not fit this one.
        """
        saved = state.latest(self.job.folder / state.FOLDER, self.job.fingerprint)
        if saved is None:
            return
        self._require_within(saved)
        averaged = self.ema.module if self.ema is not None else None
        for part, tensors, module in (("model", saved.model, self.model), ("ema", saved.ema, averaged)):
            if module is not None:
                weights = module.state_dict()
                shapes = {name: tensor.shape for name, tensor in weights.items()}
                state.require_tensors(tensors, shapes, f"the {part} in {saved.path}")
                module.load_state_dict(dict(tensors))
        self.position = saved.position
        if saved.optimizer:
            self._resumed = saved

    def _require_within(self, saved: State) -> None:
        """Hold where a state says the run was against the run's plan.

        Raises:
            TrainingError: there is no such place in it.
        """
        at = saved.position
        finished = at.stage == len(self.stages)
        epochs = 0 if at.stage >= len(self.stages) else self.stages[at.stage].epochs
        inside = at.stage < len(self.stages) and at.epoch < epochs and at.step < self.steps
        before = sum(stage.epochs for stage in self.stages[: at.stage]) + at.epoch
        agrees = (at.run_epoch, at.run_step) == (before, before * self.steps + at.step) and at.log_rows >= 2 * before
        if not ((inside or (finished and at.epoch == at.step == 0)) and agrees):
            raise TrainingError(
                f"{saved.path} is damaged: it is of stage {at.stage + 1}, epoch {at.epoch + 1}, step {at.step} and of "
                f"step {at.run_step} of the run, with {at.log_rows} rows of log, and this run has no such place",
                hint="--overwrite starts the run again; without this file it goes on from an older state",
            )


def ramped(keep_rate: float, progress: float, ramp: tuple[float, float]) -> float:
    """A keep rate that falls from 1 by a cosine, between two shares of a stage, when ``progress`` of it is done (EViT,
    section 4.1).
    """
    first, last = ramp
    through = min(max((progress - first) / (last - first), 0.0), 1.0) if last > first else float(progress >= last)
    return keep_rate + (1 - keep_rate) * 0.5 * (1 + math.cos(math.pi * through))


def _mixup(config: TrainConfig, classes: int) -> Mixup | None:
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes)
