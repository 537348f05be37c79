"""What a training run is made of: one frozen dataclass, the same as a TOML file."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lifedeploy.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a run. Empty tuples and strings mean: the usual, as said beside them.

    The two learning rates are the paper's, exchanged: as printed (1e-5 for the predictor, 1e-3 for the backbone) the
    predictor does not move and the backbone is wrecked (benchmarks/real).
    """

    # The model.
    backbone: str = "deit_s"
    weights: str = "auto"  # auto, pretrained, random, or a file
    dense: bool = False  # fine-tune the unslimmed model instead
    keep_rate: float = 0.7
    counts: tuple[int, ...] = ()  # instead of keep_rate
    drop_layers: tuple[int, ...] = ()  # 4, 7, 10 of 12
    image_size: tuple[int, ...] = ()  # the backbone's own
    temperature: float = 1.5  # U of eq. 7
    # The data.
    data: str = ""
    val_share: float = 0.1  # held out where the data have no validation half
    # The stages (Algorithm 1).
    epochs: int = 3  # of a dense run
    stage1_epochs: int = 1
    stage2_epochs: int = 1
    single_stage: bool = False  # everything at once for as many epochs as both stages have: the paper's ablation
    # Beyond the paper.
    hard: bool = False  # in the backbone's stage tokens really leave, as in the deployed model
    distill: bool = False  # the model it starts from is the teacher
    distill_logits: float = 1.0  # how much its answers count, of 1; the labels have the rest
    distill_tokens: float = 0.5  # weight of the squared distance of the surviving tokens
    distill_lives: float = 1.0  # weight of the distance of the lives from where its later layers look
    elastic: bool = False  # another keep rate in every step of the backbone's stage
    elastic_range: tuple[float, float] = (0.4, 0.95)
    # The optimiser: AdamW, linear warm-up, cosine decay, in every stage anew.
    predictor_lr: float = 1e-3
    backbone_lr: float = 1e-5
    head_lr: float = 1e-5
    batch: int = 128  # images per step, over all processes and micro-batches
    accumulate: int = 1  # micro-batches per step
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of a stage's steps
    clip_grad: float = 1.0  # largest norm of the gradient; 0: any
    ema: float = 0.0  # decay of the averaged weights; 0: none
    # Regularisation and augmentation, as timm names them.
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    scale: tuple[float, float] = (0.6, 1.0)  # area of the random crop
    ratio: tuple[float, float] = (0.75, 1.3333)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.0
    auto_augment: str = ""  # e.g. rand-m9-mstd0.5
    random_erasing: float = 0.0
    # The run.
    precision: str = "auto"  # bf16 where the processor has it, else fp32
    seed: int = 0
    workers: int = -1  # processes that decode images; -1: by the number of cores
    checkpoint_every: int = 200  # steps, besides the end of every epoch
    log_every: int = 10  # steps
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name), field.default)
        self._check_ranges()

    def _check_ranges(self) -> None:
        positive = ("batch", "accumulate", "checkpoint_every", "log_every", "temperature")
        rates = ("predictor_lr", "backbone_lr", "head_lr", "weight_decay", "clip_grad", "mixup", "cutmix")
        shares = ("warmup", "ema", "label_smoothing", "drop_path", "hflip", "vflip", "random_erasing")
        epochs = ("epochs", "stage1_epochs", "stage2_epochs")
        for name in positive:
            _require(name, getattr(self, name), getattr(self, name) > 0, "greater than 0")
        for name in (*rates, *epochs, "color_jitter", "distill_tokens", "distill_lives"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or greater")
        for name in shares:
            value, closed = getattr(self, name), name in ("hflip", "vflip", "random_erasing")
            good = 0 <= value < 1 or (closed and value == 1)
            _require(name, value, good, "in [0, 1]" if closed else "in [0, 1)")
        _require("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        for name in ("scale", "ratio", "elastic_range"):
            low_high = getattr(self, name)
            good = len(low_high) == 2 and 0 < low_high[0] <= low_high[1]
            _require(name, low_high, good, "two numbers, the smaller first")
        _require("distill_logits", self.distill_logits, 0 <= self.distill_logits <= 1, "in [0, 1]")
        _require("scale", self.scale, self.scale[1] <= 1, "shares of the image's area, at most 1")
        _require("elastic_range", self.elastic_range, self.elastic_range[1] <= 1, "keep rates, at most 1")
        _require("image_size", self.image_size, len(self.image_size) in (0, 2), "height and width")
        if self.total_epochs == 0:
            raise UsageError("0 epochs in all: there is nothing to train")
        if self.dense and (self.hard or self.distill or self.elastic or self.single_stage):
            raise UsageError(
                "--dense fine-tunes the unslimmed model: --single-stage, --hard, --distill and --elastic need lives"
            )

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return self.epochs if self.dense else self.stage1_epochs + self.stage2_epochs

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels; None: the backbone's own."""
        return (int(self.image_size[0]), int(self.image_size[1])) if self.image_size else None

    def but(self, **changes: Any) -> TrainConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON and TOML types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def to_toml(self) -> str:
        """As a TOML file."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "the configuration") -> TrainConfig:
        """The inverse of :meth:`to_dict`; what is not said keeps its default.

        Raises:
            UsageError: an unknown name, or a value of another kind or out of range.
        """
        known = {field.name for field in fields(cls)}
        unknown = [name for name in data if name not in known]
        if unknown:
            raise UsageError(f"{where} has {unknown[0]!r}, which is no setting of training; there are: {_list(known)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)

    @classmethod
    def from_toml(cls, path: Path) -> TrainConfig:
        """Read a TOML file.

        Raises:
            UsageError: missing, no TOML, or not a configuration.
        """
        return cls.from_dict(read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, unchecked.

    Raises:
        UsageError: missing, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML file: {error}") from error


def _check(name: str, value: Any, default: Any) -> None:
    """A value has to be of its default's kind; whole numbers pass as fractions."""
    wanted: Any = type(default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UsageError(f"{name} is {value!r}, expected {_KINDS[wanted]}")
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise UsageError(f"{name} is {number}, expected a finite number")
        if isinstance(value, tuple) and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise UsageError(f"{name} holds {number!r}, expected numbers")


def _require(name: str, value: Any, good: bool, expected: str) -> None:
    if not good:
        raise UsageError(f"{name} is {value}, expected {expected}")


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list of numbers"}
