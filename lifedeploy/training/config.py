"""What a training run is made of: one frozen dataclass, the same as a TOML file."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from lifedeploy import methods
from lifedeploy.errors import UsageError
from lifedeploy.recipe import NO_RECIPE, RecipeName
from lifedeploy.schedule import Schedule
from lifedeploy.text import quoted
from lifedeploy.typed import Extent, Share
from lifedeploy.typed import Rate as Part

# Ranges: what a run can have a use for, with room to spare, and what everything accepts that is given the number.
Text = Annotated[str, Meta(max_length=4096)]
Epochs = Annotated[int, Meta(ge=0, le=100_000)]
Batch = Annotated[int, Meta(ge=1, le=1_000_000)]
Steps = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Rate = Annotated[float, Meta(ge=0, le=1000)]  # of learning, of decay
Weight = Annotated[float, Meta(ge=0, le=1_000_000)]  # of a term of the loss
PartialShare = Annotated[float, Meta(ge=0, lt=1)]
Aspect = Annotated[float, Meta(ge=0.01, le=100)]
Counts = Annotated[tuple[Annotated[int, Meta(ge=1, le=1_000_000)], ...], Meta(max_length=1000)]
# timm's policies: words with a number each, e.g. rand-m9-mstd0.5.
Policy = Annotated[str, Meta(max_length=100, pattern=r"^([a-z0-9]+(-[a-z]+([0-9]+(\.[0-9]+)?[a-z]*)?)*)?$(?!\n)")]
Names = Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(max_length=1000)]

WITHOUT_EFFECT = ("recipe", "workers", "checkpoint_every", "log_every", "tensorboard")  # settings that change no result

_MODEL = "The model"
_STAGES = "Stages"
_BEYOND = "Beyond the paper"
_OPTIMISER = "Optimiser"
_AUGMENTATION = "Regularisation and augmentation"
_RUN = "The run"


def _option(default: Any, panel: str, help: str = "", **more: str) -> Any:
    """A setting that is an option of the command line too: ``panel`` and ``help`` are where and how it is shown.

    ``more``: its ``flag`` where that is not the field's name, its ``metavar``, the default in words (``usual``), the
    sentence that refuses a value (``said``), and ``negated`` where a recipe may say yes, and the command line no.
    """
    return field(default=default, metadata={"panel": panel, "help": help, **more})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the result of a run. Empty tuples and strings mean: the usual, as said beside them.

    The two learning rates are the paper's, exchanged: as printed (1e-5 for the predictor, 1e-3 for the backbone) the
    predictor does not move and the backbone is wrecked (benchmarks/real).
    """

    # The model.
    backbone: Annotated[str, Meta(max_length=200)] = _option("deit_s", _MODEL, "Any timm ViT.", metavar="NAME")
    weights: Text = _option(
        "auto",
        _MODEL,
        "Where to start.",
        metavar="auto|pretrained|random|FILE",
        usual="auto: the dense model fine-tuned on these classes, else pretrained",
    )
    method: Annotated[str, Meta(max_length=40)] = _option(
        methods.DEFAULT, _MODEL, "How tokens are dropped; its own options come with it.", metavar="NAME"
    )
    options: dict[str, methods.Option] = field(default_factory=dict)  # of the method; its usual ones where not given
    dense: bool = _option(False, _MODEL, "Fine-tune the unslimmed model instead.")
    keep_rate: Part = _option(0.7, _MODEL, "Keep rate at each drop.", flag="--rho")
    counts: Counts = _option((), _MODEL, "Patch tokens after each drop, instead of --rho.")
    drop_layers: Counts = _option((), _MODEL, usual="4,7,10 of 12")
    image_size: Annotated[tuple[Extent, ...], Meta(max_length=2)] = _option(
        (), _MODEL, flag="--img-size", usual="the backbone's own"
    )
    # The data.
    data: Text = _option("", "", "Folder of class folders, wds/DIR or hfds/NAME.", metavar="DIR")
    # The stages (Algorithm 1).
    recipe: RecipeName = _option(  # a note of where settings are from: they themselves stand beside it
        NO_RECIPE, _STAGES, "Whose settings are taken where none are given.", usual="published: the method's authors'"
    )
    epochs: Epochs = _option(
        3, _STAGES, "Of a dense run, or a method of one stage.", usual="3 of a dense run, 2 of a method"
    )
    stage1_epochs: Epochs = _option(1, _STAGES, "The method's own parameters alone.")
    stage2_epochs: Epochs = _option(1, _STAGES, "Backbone alone.")
    single_stage: bool = _option(False, _STAGES, "Both at once, for the epochs of both.", negated="yes")
    # Beyond the paper.
    hard: bool = _option(
        False, _BEYOND, "Where the backbone trains, tokens really leave, as when deployed.", negated="yes"
    )
    distill: bool = _option(
        False, _BEYOND, "The dense model it starts from is the teacher: of logits, tokens, lives.", negated="yes"
    )
    distill_labels: Weight = 0.0  # weight of the labels beside it
    distill_logits: Weight = 1.0  # weight of the divergence from its answers
    distill_tokens: Weight = 0.5  # weight of the squared distance of the surviving tokens
    distill_lives: Weight = 1.0  # weight of the distance of the lives from where its later layers look
    elastic: bool = _option(False, _BEYOND, "Another keep rate in every step: one checkpoint for all.")
    elastic_range: tuple[Part, Part] = (0.4, 0.95)
    keep_ramp: tuple[Share, Share] = _option(
        (0.0, 0.0), _BEYOND, "The keep rate falls from 1, LOW to HIGH of a stage.", usual="the recipe's, else none"
    )
    # The optimiser: AdamW, linear warm-up, cosine decay, in every stage anew.
    predictor_lr: Rate = _option(1e-3, _OPTIMISER)
    backbone_lr: Rate = _option(1e-5, _OPTIMISER, usual="the recipe's, else 1e-5")
    head_lr: Rate = _option(1e-5, _OPTIMISER, usual="the backbone's; ten times it with --dense")
    batch: Batch = _option(128, _OPTIMISER, "Images per step, over all processes.")  # and micro-batches
    accumulate: Batch = _option(1, _OPTIMISER, "Micro-batches that a batch is made of.")
    weight_decay: Rate = _option(0.05, _OPTIMISER, usual="the recipe's, else 0.05")
    warmup: PartialShare = _option(0.1, _OPTIMISER, "Share of a stage.", usual="the recipe's, else 0.1")
    lr_min: Share = _option(0.0, _OPTIMISER, "Share of a rate that its decay ends at.", usual="the recipe's, else 0")
    backbone_delay: PartialShare = 0.0  # share of a stage before the backbone moves
    # "capped": the backbone has its rate until that of the method's own parameters falls below it.
    backbone_curve: Literal["cosine", "capped"] = "cosine"
    frozen: Names = ()  # parameters of the backbone that stay as they are: "pos_embed"
    clip_grad: Annotated[float, Meta(ge=0, le=1e9)] = _option(1.0, _OPTIMISER, "0: never.")  # largest norm
    ema: PartialShare = _option(0.0, _OPTIMISER, "Decay of averaged weights.", usual="none")
    # Regularisation and augmentation, as timm names them.
    label_smoothing: PartialShare = _option(0.0, _AUGMENTATION)
    mixup: Rate = _option(0.0, _AUGMENTATION)
    cutmix: Rate = _option(0.0, _AUGMENTATION)
    drop_path: PartialShare = _option(0.0, _AUGMENTATION)
    scale: tuple[Part, Part] = _option((0.6, 1.0), _AUGMENTATION, "Area of the random crop.")
    ratio: tuple[Aspect, Aspect] = _option((0.75, 1.3333), _AUGMENTATION, "Its aspect.")
    hflip: Share = _option(0.5, _AUGMENTATION)
    vflip: Share = _option(0.0, _AUGMENTATION)
    color_jitter: Annotated[float, Meta(ge=0, le=10)] = _option(0.0, _AUGMENTATION)
    auto_augment: Policy = _option(
        "", _AUGMENTATION, "timm's policy, e.g. rand-m9-mstd0.5.", metavar="POLICY", usual="none"
    )
    random_erasing: Share = _option(0.0, _AUGMENTATION)
    # The run.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _option(
        "auto", _RUN, usual="auto: bf16 where it is fast", said="precision is {bare}, expected one of {words}"
    )
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = _option(0, _RUN)
    val_share: PartialShare = _option(
        0.1,
        _RUN,
        "Held out where no validation images are given.",
        said="a share of {value} cannot be held out; it must be {interval}",
    )
    workers: Annotated[int, Meta(ge=-1, le=256)] = _option(-1, _RUN, "Decoding processes; -1: by cores.")
    checkpoint_every: Steps = _option(200, _RUN, "Steps, besides every epoch's end.")
    log_every: Steps = _option(10, _RUN, "Steps.")
    tensorboard: bool = _option(False, _RUN, "Also log for TensorBoard.")

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            _require(name, getattr(self, name), kind)
        for name in ("scale", "ratio", "elastic_range", "keep_ramp"):
            low, high = getattr(self, name)
            if low > high:
                raise UsageError(f"{name} is {low:g}, {high:g}; expected the smaller number first")
        if len(self.image_size) == 1:
            raise UsageError(f"image_size is {self.image_size[0]} alone; expected height and width")
        if any(float(number) > 100 for number in re.findall(r"[0-9]+(?:\.[0-9]+)?", self.auto_augment)):
            raise UsageError(f"auto_augment is {self.auto_augment}; expected numbers of at most 100 in it")
        self._require_method()
        if self.keep_ramp[1] and (self.counts or self.elastic or self.has_own_budget or not self.slims):
            raise UsageError("--keep-ramp lets one keep rate fall: not with --dense, --elastic, counts or own budgets")
        if self.total_epochs == 0:
            raise UsageError("0 epochs in all: there is nothing to train")

    def _require_method(self) -> None:
        asked = methods.get(self.method, methods.SLIMMED, methods.BASELINE)
        asked.settle(self.options)
        clash = next((item.name for item in fields(asked.options) if item.name in _kinds()), None)
        if clash is not None:  # in a run's configuration one would hide the other
            raise asked.broken(f"its option {clash} is called like a setting of training")
        if self.dense and self.method not in (methods.DEFAULT, methods.baseline().name):
            raise UsageError(f"--dense and --method {self.method} exclude each other: dense drops nothing")
        if not self.slims and (self.hard or self.distill or self.elastic or self.single_stage):
            raise UsageError(
                "--dense fine-tunes the unslimmed model: --single-stage, --hard, --distill and --elastic slim one"
            )
        stages = len(self.trained_method.stages)
        if not stages:
            raise UsageError(f"{self.method} says of no stage what it trains: it is used as it is")
        if self.single_stage and stages == 1:
            raise UsageError(f"{self.method} trains in one stage as it is, without --single-stage")
        if self.single_stage and self.hard and not self.teaches_lives:
            raise UsageError(
                f"--single-stage --hard leaves nothing that teaches {self.method} which tokens are to go: those that "
                "are gone have no gradient",
                hint="--distill teaches lives; other methods have a stage for that, without --single-stage",
            )

    @property
    def trained_method(self) -> methods.Method:
        """What is trained: the method, or the baseline."""
        return methods.baseline() if self.dense else methods.get(self.method)

    @property
    def slims(self) -> bool:
        """Whether a model that drops tokens is trained, not the baseline."""
        return self.trained_method.role == methods.SLIMMED

    @property
    def teaches_lives(self) -> bool:
        """Whether lives are taught by where the dense model looks, for which no token needs to stay."""
        return self.distill and bool(self.distill_lives) and self.trained_method.predicts_lives

    @property
    def model_options(self) -> dict[str, methods.Option]:
        """All options of what is trained."""
        return self.trained_method.plain_options({} if self.dense else self.options)

    @property
    def has_own_budget(self) -> bool:
        """Whether the method's options say how many tokens go on, or it takes no keep rate."""
        method = self.trained_method
        return not method.takes_keep_rate or method.gives_budget(self.options)

    def schedule_at(self, keep_rate: float, schedule: Schedule) -> Schedule:
        """The schedule of another keep rate, at the drop layers of a model's own ``schedule``."""
        return self.trained_method.make_schedule(
            schedule.patches,
            schedule.depth,
            keep_rate=keep_rate,
            drop_layers=schedule.drop_layers,
            options=self.model_options,
        )

    @property
    def stage_epochs(self) -> tuple[int, ...]:
        """Epochs of each stage of what is trained."""
        return (self.epochs,) if len(self.trained_method.stages) == 1 else (self.stage1_epochs, self.stage2_epochs)

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return sum(self.stage_epochs)

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

    def decisive(self) -> dict[str, Any]:
        """All that decides the result, as plain types: for the fingerprint by which a run is continued.

        Options stand among the settings, and the usual method goes without saying, as it was before there were others:
        what was begun then can be continued.
        """
        facts = self.to_dict()
        for name in WITHOUT_EFFECT:
            del facts[name]
        for item in fields(self):
            if item.name in _LATER and getattr(self, item.name) == item.default:
                del facts[item.name]
        if facts["distill_labels"] == _rest(facts["distill_logits"]):
            del facts["distill_labels"]
        asked = methods.get(self.method)
        facts |= asked.plain_options({}) | facts.pop("options")  # as they were given: 2 is written otherwise than 2.0
        if asked.name == methods.DEFAULT:
            del facts["method"]
        return facts

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
        known = _kinds()
        data = _with_labels(with_options(data))
        unknown = next((name for name in data if name not in known), None)
        if unknown is not None:
            names = ", ".join(sorted(known))
            raise UsageError(f"{where} has {quoted(unknown)}, which is no setting of training; there are: {names}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)


# Settings that there were not in version 0.1, whose defaults are what was done then: they go without saying in a
# fingerprint.
_LATER = ("keep_ramp", "lr_min", "backbone_delay", "backbone_curve", "frozen")


def _rest(logits: float) -> float:
    """What labels counted in version 0.1: what the teacher's answers left of 1."""
    return max(1 - logits, 0.0)


def _with_labels(data: dict[str, Any]) -> dict[str, Any]:
    """Settings that say what a teacher's answers count, and of labels nothing, as version 0.1 understood them."""
    logits = data.get("distill_logits")
    if isinstance(logits, (int, float)) and "distill_labels" not in data and 0 <= logits <= 1:
        return data | {"distill_labels": _rest(logits)}
    return data


def with_options(data: dict[str, Any]) -> dict[str, Any]:
    """Settings as they were called before methods had options, as they are called now: U of eq. 7 stood by itself."""
    if "temperature" not in data:
        return data
    options = data.get("options", {})
    if isinstance(options, dict):  # else it is refused as it is
        options = {"temperature": data["temperature"], **options}
    return {name: value for name, value in data.items() if name != "temperature"} | {"options": options}


@cache
def _kinds() -> dict[str, Any]:
    hints = get_type_hints(TrainConfig, include_extras=True)
    return {item.name: hints[item.name] for item in fields(TrainConfig)}


def _require(name: str, value: Any, kind: Any) -> None:
    """Hold a value against its type and range, and text against what a TOML file can hold."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said = str(error).replace("`", "")
        expected = f"expected one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else said
        raise UsageError(f"{name} is {quoted(value)}: {expected[0].lower()}{expected[1:]}") from error
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{name} is {value}, which is no UTF-8, and the run's configuration, a TOML file, could not hold it",
                hint="rename the file or folder",
            ) from error
