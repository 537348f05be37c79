"""What the package knows of a method: the type of a row of :mod:`lifedeploy.methods`.

A method is data and one reducer. The data are here and need no framework; the reducer, which does, is named by its
place and imported when a model is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from lifedeploy.cost import Cost, Work
from lifedeploy.errors import LifedeployError, ScheduleError, UnsupportedModelError, UsageError
from lifedeploy.options import (
    NoOptions,
    Option,
    has_defaults,
    is_frozen,
    label,
    misnamed,
    option_fields,
    settle,
    without_budget,
)
from lifedeploy.published import Published
from lifedeploy.reading import reason
from lifedeploy.recipe import TrainingStage
from lifedeploy.schedule import PAPER_DROP_LAYERS, Schedule, default_drop_layers, require_keep_rate, require_layers
from lifedeploy.text import quoted, shortened
from lifedeploy.typed import LAST_BLOCKS, ORDERINGS, LastBlock, MethodName

Role = Literal["slimmed", "baseline", "bound"]
SLIMMED: Role = "slimmed"
BASELINE: Role = "baseline"
BOUND: Role = "bound"
ROLES = (SLIMMED, BASELINE, BOUND)
_OURS = "lifedeploy"
Counting = Callable[[int, int, float | None, Sequence[int], Any], Schedule]
Fate = Literal["dropped", "merged", "parked", "halted"]


def _by_keep_rate(
    patches: int, depth: int, keep_rate: float | None, drop_layers: Sequence[int], options: Any
) -> Schedule:
    assert keep_rate is not None  # it has no budget of its own
    return Schedule.from_keep_rate(patches, depth, keep_rate, drop_layers)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method.

    What it cannot do is data too, so that it is said before anything is made: :meth:`make_schedule`,
    :meth:`require_prefix` and :meth:`settle` refuse what does not fit.
    """

    name: str  # on the command line, in specs and manifests: "life"
    title: str  # in full, for people
    shown_by_title: bool = False  # in tables and pictures: its name alone would promise more than there is
    reducer: str  # MODULE:CLASS, a lifedeploy.model.reducers.base.Reducer
    role: Role = SLIMMED
    stem: str = "model"  # of its files in an export's folder
    # Whether the image decides which tokens stay. "once": by one ranking, so that those that are left after a later
    # drop are the first of those that are left after an earlier one.
    selection: Literal["none", "once", "every drop"] = "every drop"
    inside: bool = False  # whether tokens leave between attention and MLP of a drop layer, not behind it
    # What becomes of tokens that do not go on: they are gone, or part of others, or wait and come back, or are masked.
    fate: Fate = "dropped"
    predicts_lives: bool = False
    counts_lives: bool = False  # whether its scores are lives: in how many layers each patch took part
    # "prefix": behind the last layer it reads prefix tokens alone, as that layer's block makes them. So where the head
    # reads no others either, that block computes no others.
    last_block: LastBlock = "full"
    # Baseline and bound are made of its graph by taking its drops out; else each is traced. Its drops then are modules
    # of model/reducers/base.py: TakeOrdered called ``order.LAYER``, after that KeepPrefix called ``keep.LAYER``.
    derives: bool = False
    options: type[Any] = NoOptions  # a frozen dataclass of fields made by :func:`option`
    stages: tuple[TrainingStage, ...] = ()  # of its training, in order: one or two
    # Settings of its training as published (of training/config.py), where they are others than the usual ones.
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)
    work: Callable[[Schedule, Any, Cost], Work]  # schedule, options, backbone → tokens by place, MACs of its own
    schedule: Counting = _by_keep_rate  # patches, layers, keep rate, drop layers, options → token counts
    # What it does where no keep rate is asked for, in words; '': then it is asked for the usual one. Its schedule gets
    # None for that.
    own_budget: str = ""
    # Unless told otherwise: of twelve layers, taken over to the same depth of others; or what is made of their number.
    drop_layers: tuple[int, ...] | Callable[[int], tuple[int, ...]] = PAPER_DROP_LAYERS
    takes_counts: bool = True  # whether token counts can be given
    takes_keep_rate: bool = True  # whether a keep rate can
    prefix: int | None = None  # most prefix tokens that it protects; None: any
    published: Published = field(default_factory=Published)  # how files of weights are told that its authors wrote
    package: str = _OURS  # that it comes from, with its version

    def __post_init__(self) -> None:
        for what, wrong in (
            (f"its name {quoted(self.name)} is no lower-case word", not _is_name(self.name)),
            (f"its role {quoted(self.role)} is unknown", self.role not in ROLES),
            (f"its reducer {quoted(self.reducer)} is no MODULE:CLASS", self.reducer.count(":") != 1),
            ("its options are no frozen dataclass", not is_frozen(self.options)),
            ("an option of it has no default", is_frozen(self.options) and not has_defaults(self.options)),
            (f"it has {len(self.stages)} stages of training; expected 0 to 2", len(self.stages) > 2),
            ("a slimmed model's files are called model", self.role == SLIMMED and self.stem != "model"),
            (
                "only what ranks once, and drops behind a layer, has baselines in its graph",
                self.derives and (self.selection != "once" or self.inside),
            ),
            (
                f"its selection {quoted(self.selection)} is unknown",
                self.selection not in ("none", "once", "every drop"),
            ),
            ("a stage of it trains nothing, or is called what no file can be", not all(map(_is_stage, self.stages))),
            ("two stages of it have one name", len({stage.name for stage in self.stages}) < len(self.stages)),
            (f"its fate {quoted(self.fate)} is unknown", self.fate not in get_args(Fate)),
            (f"its last block {quoted(self.last_block)} is unknown", self.last_block not in LAST_BLOCKS),
            ("it takes no keep rate, and has no budget of its own", not (self.takes_keep_rate or self.own_budget)),
            (
                "it has a budget of its own, and no schedule that makes it",
                self.own_budget and self.schedule is _by_keep_rate,
            ),
            ("what it says of published files is no Published", not isinstance(self.published, Published)),
            ("its work or its schedule is no function", not (callable(self.work) and callable(self.schedule))),
        ):
            if wrong:
                raise UsageError(f"method {quoted(self.name)} cannot be: {what}")
        self._require_options()

    def _require_options(self) -> None:
        odd = misnamed(self.options)
        if odd:
            raise UsageError(f"method {quoted(self.name)} cannot be: an option cannot be called {quoted(odd)}")
        known = [item.name for item in fields(self.options)]
        odd = next((name for _, name in self.published.options if name not in known), "")
        if odd:
            raise UsageError(f"method {quoted(self.name)} cannot be: published files name an option {quoted(odd)}")
        with self.blamed("its options"):
            get_type_hints(self.options, include_extras=True)
        try:
            self.settle({item.name: item.default for item in fields(self.options)})
        except UsageError as error:
            raise UsageError(f"method {quoted(self.name)} cannot be: by default {error.message}") from error

    @property
    def orderings(self) -> tuple[str, ...]:
        """How its graph may order tokens, the usual way first: what chooses at every drop cannot order once."""
        return ORDERINGS[1:] if self.selection == "every drop" else ORDERINGS

    def default_drop_layers(self, depth: int) -> tuple[int, ...]:
        """Its drop layers on a backbone of so many layers, unless told otherwise."""
        if callable(self.drop_layers):
            with self.blamed("its drop_layers"):
                return tuple(self.drop_layers(depth))
        return default_drop_layers(depth, self.drop_layers)

    @contextmanager
    def blamed(self, what: str) -> Iterator[None]:
        """Around code of a method of another package: whatever it raises is said to be its, but for our own errors and
        a lack of memory.

        Raises:
            UsageError: instead.
        """
        try:
            yield
        except (LifedeployError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if self.package == _OURS:
                raise
            raise self.broken(f"{what} fails with {type(error).__name__}: {reason(error)}") from error

    @property
    def parks(self) -> bool:
        """Whether tokens that do not go on come back, so that at every drop it chooses from all."""
        return self.fate == "parked"

    def gives_lives(self, schedule: Schedule) -> bool:
        """Whether it says under a schedule how long patches live."""
        return self.predicts_lives and (self.counts_lives or schedule.prunes)

    @property
    def trains_reducer(self) -> bool:
        """Whether it has parameters of its own to train."""
        return any(stage.reducer for stage in self.stages)

    @property
    def has_parameters(self) -> bool:
        """Whether it has parameters of its own, trained here or by its authors."""
        return self.trains_reducer or bool(self.published.parameters)

    def reads_files_of(self, method: str) -> bool:
        """Whether files of weights of ``method`` are files of this one too."""
        return method in (self.name, *self.published.of)

    def keeps_schedule_of(self, other: Method | None) -> bool:
        """Whether weights of another method keep their schedule under this one: not where either has a budget of its
        own, which means nothing to the other."""
        return other is None or other.name == self.name or not (self.own_budget or other.own_budget)

    def without_budget(self, given: Mapping[str, Option]) -> dict[str, Option]:
        """Of its options ``given`` those that leave the number of tokens to a keep rate."""
        return without_budget(self.options, given)

    def gives_budget(self, options: Mapping[str, Option]) -> bool:
        """Whether options say how many tokens go on: those that can are others than the usual ones."""
        usual = self.plain_options({})
        budget = options.keys() - self.without_budget(options).keys()
        return any(options[name] != usual[name] for name in budget if name in usual)

    def options_beside(self, other: Method) -> dict[str, Option]:
        """Options of ``other`` where it stands beside this method: the bound cuts where this method drops."""
        return {"inside": self.inside} if other.role == BOUND else {}

    def require_ordering(self, ordering: str) -> None:
        """Make sure that its graph can order tokens in this way.

        Raises:
            UsageError: it cannot, or there is no such way.
        """
        if ordering not in ORDERINGS:
            raise UsageError(f"graph form {quoted(ordering)} is unknown; there are: {', '.join(ORDERINGS)}")
        if ordering not in self.orderings:
            raise UsageError(
                f"{self.name} chooses anew at every drop, so its graph cannot be {ordering}; expected "
                f"{self.orderings[0]}"
            )

    def make_schedule(
        self,
        patches: int,
        depth: int,
        *,
        keep_rate: float | None = None,
        counts: Sequence[int] | None = None,
        drop_layers: Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Schedule:
        """Token counts by ``counts``, or by what the method makes of ``keep_rate`` with its ``options``; without either
        by its own budget.

        Raises:
            ScheduleError: it cannot be, or the method takes no counts, or no keep rate.
            UsageError: the options cannot be.
        """
        layers = self.default_drop_layers(depth) if drop_layers is None else tuple(drop_layers)
        beyond = next((layer for layer in layers if layer >= depth), None)
        if beyond is not None and not self.inside:
            raise ScheduleError(
                f"drop layer {beyond} is out of range: {self.name} drops behind a layer, and behind the last of "
                f"{depth} there is none; 1 to {depth - 1} are allowed"
            )
        if self.inside:
            require_layers(layers, depth, depth)
        if counts is not None:
            if not self.takes_counts:
                hint = "--rho" if self.takes_keep_rate else "leave them out"
                raise ScheduleError(f"{self.name} takes no token counts: {self.own_budget or 'a keep rate'}", hint=hint)
            return Schedule.from_counts(patches, depth, counts, layers)
        if keep_rate is None:
            assert self.own_budget  # else whoever asks names a keep rate
        else:
            if not self.takes_keep_rate:
                raise ScheduleError(f"{self.name} takes no keep rate: {self.own_budget}", hint="leave it out")
            require_keep_rate(keep_rate)
        with self.blamed("its schedule"):
            schedule = self.schedule(patches, depth, keep_rate, layers, self.settle(options or {}))
        if not isinstance(schedule, Schedule) or (schedule.patches, schedule.depth) != (patches, depth):
            raise self.broken(
                f"its schedule is none of {patches} patches in {depth} layers: {shortened(repr(schedule))}"
            )
        return schedule

    def count_work(
        self, schedule: Schedule, options: Mapping[str, Any], cost: Cost, last_block: LastBlock = "full"
    ) -> Work:
        """What it computes under a schedule, checked; in the last block for all tokens, or for the prefix alone.

        Raises:
            UsageError: its ``work`` fails, or what that says cannot be.
        """
        schedule = schedule.under(last_block)
        with self.blamed("its work"):
            work = self.work(schedule, self.settle(options), cost)
        sound = isinstance(work, Work) and type(work.scoring) is int and work.scoring >= 0
        for tokens in (work.attention, work.attending, work.mlp) if sound else ():
            sound = sound and len(tokens) == schedule.depth
            sound = sound and all(type(count) is int and 0 <= count <= schedule.patches for count in tokens)
        if not sound:
            raise self.broken(
                f"its work is no Work of {schedule.depth} layers with 0 to {schedule.patches} tokens each: "
                f"{shortened(repr(work))}"
            )
        return work.with_prefix_block() if last_block == "prefix" else work

    def require_prefix(self, prefix: int, backbone: str) -> None:
        """Make sure that it protects all prefix tokens of a backbone.

        Raises:
            UnsupportedModelError: it protects fewer.
        """
        if self.prefix is not None and prefix > self.prefix:
            raise UnsupportedModelError(
                f"{self.name} protects {self.prefix} token{'s' * (self.prefix != 1)} in front of the patches, and "
                f"{backbone} has {prefix} (CLS, distillation, registers)"
            )

    def settle(self, given: Mapping[str, Any]) -> Any:
        """Its options: those ``given``, the others at their defaults.

        Raises:
            UsageError: one is unknown, of another type or out of range.
        """
        return settle(self.options, given, self.name)

    def plain_options(self, given: Mapping[str, Any]) -> dict[str, Option]:
        """All its options as plain data, those ``given`` and the others at their defaults."""
        return asdict(self.settle(given))

    @property
    def usual_options(self) -> dict[str, Option]:
        """Its options at their defaults, but for those that decide nothing but training."""
        return {name: item.default for name, (item, _) in self.option_fields(training=False).items()}

    def option_fields(self, *, training: bool) -> dict[str, tuple[Any, Any]]:
        """Name → field and type of its options; of those that decide nothing but training only if ``training``."""
        return option_fields(self.options, training=training)

    def label(self, options: Mapping[str, Any]) -> str:
        """What its options add to the name of an export: those that are not at their defaults."""
        return label(self.option_fields(training=False), options)

    def broken(self, why: str) -> UsageError:
        """The error that says that it cannot be used, and why."""
        return UsageError(f"method {self.name} of {self.package} cannot be used: {why}")


def _is_stage(stage: Any) -> bool:
    return isinstance(stage, TrainingStage) and _is_name(stage.name) and (stage.reducer or stage.backbone)


def _is_name(text: str) -> bool:
    try:
        msgspec.convert(text, MethodName)
    except msgspec.ValidationError:
        return False
    return True
