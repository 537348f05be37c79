"""Batches whose every random draw is a function of the seed, the epoch and the image.

Nothing depends on how many workers or processes there are, nor on what was drawn before: a resumed run needs no
generator's state, and two processes see together what one would.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lifedeploy.children import as_worker
from lifedeploy.data.preprocess import normalise, to_pixels
from lifedeploy.data.sets import ImageSet
from lifedeploy.errors import ImageError, TrainingError, UsageError
from lifedeploy.machine import cores
from lifedeploy.processes import Processes
from lifedeploy.reading import foreign, reason
from lifedeploy.spec import PreprocessSpec
from lifedeploy.training.config import TrainConfig

Key = tuple[int, int]  # (epoch of the whole run, index of the image)


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of one process."""

    images: Tensor  # (b, 3, H, W), normalised
    targets: Tensor  # (b,)
    indices: tuple[int, ...]


def seed_of(*numbers: int) -> int:
    """One seed out of several numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every generator that timm's transforms draw from, set for the block and set back after it."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


class TrainingImages(Dataset[Any]):
    """Augmented images by (epoch, index)."""

    def __init__(self, images: ImageSet, preprocess: PreprocessSpec, config: TrainConfig) -> None:
        from PIL import Image

        self._images = images
        self._seed = config.seed
        with foreign("the augmentation", UsageError, hint="--auto-augment takes timm's words, e.g. rand-m9-mstd0.5"):
            self._transform: Any = create_transform(
                preprocess.image_size,
                is_training=True,
                scale=config.scale,
                ratio=config.ratio,
                hflip=config.hflip,
                vflip=config.vflip,
                color_jitter=config.color_jitter,
                auto_augment=config.auto_augment or None,
                re_prob=config.random_erasing,
                interpolation=preprocess.interpolation,
                mean=preprocess.mean,
                std=preprocess.std,
            )
            with seeded(0):  # some of what it cannot do it finds out when it does it
                self._transform(Image.new("RGB", (64, 64)))

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int] | str:
        epoch, index = key
        try:
            image = self._images.image(index)
            augmented = foreign(f"{self._images.filename(index)}, augmented,", ImageError)
            with augmented, seeded(seed_of(self._seed, epoch, index)):
                return self._transform(image), int(self._images.targets[index]), index
        except ImageError as error:  # as text: an exception raised in a worker arrives with its whole traceback
            return error.message


class ValidationImages(Dataset[Any]):
    """Images as a deployed engine sees them."""

    def __init__(self, images: ImageSet, preprocess: PreprocessSpec) -> None:
        self._images = images
        self._preprocess = preprocess

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | str:
        try:
            pixels = to_pixels(self._images.image(index), self._preprocess)
        except ImageError as error:
            return error.message
        return torch.from_numpy(normalise(pixels[None], self._preprocess)[0]), int(self._images.targets[index]), index


def steps_per_epoch(images: int, config: TrainConfig, world: int) -> int:
    """Full batches in an epoch.

    Raises:
        UsageError: there is none, or a batch cannot be divided.
    """
    parts = config.accumulate * world
    if config.batch % parts:
        raise UsageError(
            f"batch {config.batch} cannot be divided among {world} processes of {config.accumulate} micro-batches each"
        )
    if images < config.batch:
        raise UsageError(f"{images} training images do not fill one batch of {config.batch}", hint="a smaller --batch")
    return images // config.batch


def micro_batches(
    images: int, config: TrainConfig, processes: Processes, epoch: int, first_step: int = 0
) -> Sequence[list[Key]]:
    """What one process trains on in ``epoch``, from ``first_step`` on: ``accumulate`` lists of keys for every step."""
    order = np.random.default_rng([config.seed, epoch]).permutation(images)
    size = config.batch // (config.accumulate * processes.world)
    keys = []
    for step in range(first_step, steps_per_epoch(images, config, processes.world)):
        batch = order[step * config.batch : (step + 1) * config.batch]
        for part in range(config.accumulate):
            start = (part * processes.world + processes.rank) * size
            keys.append([(epoch, int(index)) for index in batch[start : start + size]])
    return keys


def batches(
    images: Dataset[Any], order: Sequence[Any], config: TrainConfig, device: torch.device
) -> Iterator[MicroBatch]:
    """Batches of ``images``, each by a list of their keys in ``order``.

    Raises:
        ImageError: an image cannot be decoded; it is named.
    """
    loader: Any = DataLoader(
        images,
        batch_sampler=order,
        num_workers=workers(config),
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=as_worker,
    )
    for loaded in _from_workers(loader):
        if isinstance(loaded, str):
            raise ImageError(loaded)
        pixels, targets, indices = loaded
        yield MicroBatch(pixels.to(device, non_blocking=True), targets.to(device, non_blocking=True), indices)


def validation_batches(
    images: ImageSet, preprocess: PreprocessSpec, config: TrainConfig, processes: Processes, device: torch.device
) -> Iterator[MicroBatch]:
    """Every image once, shared out among the processes.

    Raises:
        ImageError: an image cannot be decoded; it is named.
    """
    mine = list(range(processes.rank, len(images), processes.world))
    size = max(config.batch // (config.accumulate * processes.world), 1)
    order = [mine[start : start + size] for start in range(0, len(mine), size)]
    return batches(ValidationImages(images, preprocess), order, config, device)


def _from_workers(loader: Any) -> Iterator[Any]:
    """What the decoding processes send.

    Raises:
        TrainingError: one ended before its time, or could not be started.
    """
    try:
        yield from loader
    except (RuntimeError, OSError, MemoryError) as error:
        raise TrainingError(
            f"the images cannot be decoded any further: {reason(error)}",
            hint="fewer --workers need less memory and fewer files; with 0 this process decodes",
        ) from error


def _collate(items: list[Any]) -> Any:
    for item in items:
        if isinstance(item, str):
            return item
    pixels, targets, indices = zip(*items, strict=True)
    return torch.stack(pixels), torch.tensor(targets), tuple(indices)


def workers(config: TrainConfig) -> int:
    """Decoding processes: as asked, else one per spare core, at most eight."""
    return config.workers if config.workers >= 0 else min(cores() - 1, 8)
