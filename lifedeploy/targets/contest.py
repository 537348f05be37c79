"""Targets against each other: all methods on all engines take turns, in one setting at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from lifedeploy import methods
from lifedeploy.artifact import TensorSpec
from lifedeploy.bench import trtexec
from lifedeploy.bench.measure import Contender, Samples, Stop, measure
from lifedeploy.bench.memory import peak_memory_mib
from lifedeploy.bench.report import Row, Setting, Subject, contender_name, make_rows
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import DeviceLane, Lane, WithoutCopies
from lifedeploy.errors import EngineError
from lifedeploy.progress import Progress, Say
from lifedeploy.targets.select import Variants
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target

_TWIN = ", again"  # behind the name of what takes turns with itself


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What holds for every contest of a benchmark."""

    stop: Stop
    options: EngineOptions  # how engines are opened, apart from batch and streams
    threads: int  # as the rows name them
    copies: tuple[bool, ...]  # on a device: with copies to and from it, without, or both
    memory: bool  # measure peak memory, in a process of its own
    like: str = ""  # a method that the others are held against, beside the baseline
    twin: bool = False  # open the very first target once more, last of all, and let it take turns with itself

    def options_of(self, target: Target, *, batch: int, streams: int = 1) -> EngineOptions:
        """How a target is opened; a manifest, where there is one, is asked in any case."""
        trust = self.options.trust and target.artifact is None
        return replace(self.options, batch=batch, streams=streams, trust=trust)


@dataclass(frozen=True)
class _Entry:
    """An open target, with its lanes."""

    variants: Variants
    session: Session
    ways: dict[bool | None, tuple[Lane, ...]]  # with copies, without, or on no device that would need them

    def name(self, copies: bool | None) -> str:
        """What its contender is called."""
        return contender_name(self.variants.label, self.session.target.shown_method, copies)

    @property
    def subject(self) -> Subject:
        """What its rows are about."""
        target = self.session.target
        manifest = target.artifact.manifest if target.artifact else None
        spec = manifest.spec if manifest else None
        lane = next(iter(self.ways.values()))[0]
        return Subject(
            model=target.name,
            method=target.method or target.shown_method,
            name=target.alias,
            engine=target.engine.name,
            precision=self.session.engine.precision,
            mac_ratio=manifest.macs.speedup_bound if manifest else None,
            weights=target.weights,
            parity=manifest.parity.summary() if manifest and manifest.parity else None,
            note="; ".join(filter(None, (target.note, lane.note))),
            gmacs=manifest.macs.total / 1e9 if manifest else None,
            over_plain=manifest.macs.over_plain if manifest else None,
            tokens=spec.stages if spec else None,
            keep_rate=spec.schedule.keep_rate if spec and spec.drops else None,
        )

    @property
    def is_plain(self) -> bool:
        """Whether it computes what timm's own model computes: every token in every layer."""
        artifact = self.session.target.artifact
        macs = artifact.manifest.macs if artifact else None
        return macs is not None and macs.plain is not None and macs.total == macs.plain

    @property
    def places(self) -> tuple[object, ...] | None:
        """Tokens in attention and MLP of each layer, which a bound has in common with what it is a bound of."""
        artifact = self.session.target.artifact
        macs = artifact.manifest.macs if artifact else None
        return (macs.attention_tokens, macs.query_tokens, macs.mlp_tokens) if macs else None


def contest(
    chosen: Sequence[Variants], mode: str, batch: int, streams: int, rules: Rules, say: Say, progress: Progress
) -> dict[str, list[Row]]:
    """All methods on all engines take turns in one mode at one batch size: the engine's label → rows.

    Raises:
        EngineError, EngineInputError: an engine refused, or is fixed to another batch.
    """
    who = chosen[0].label if len(chosen) == 1 else f"{len(chosen)} engines"
    label = f"{who}, {mode}, batch {batch}"
    with ExitStack() as stack:
        entries = []
        for variants in chosen:
            say(f"opening {variants.label}, {mode}, batch {batch}")
            for target in variants.targets:
                options = rules.options_of(target, batch=batch, streams=streams)
                session = stack.enter_context(Session(target, options=options))
                lanes = tuple(session.lane(batch, number) for number in range(streams))
                entries.append(_Entry(variants, session, dict(_ways(lanes, rules.copies))))
        contenders = [contender for entry in entries for contender in _contenders(entry, entries, batch, rules.like)]
        if rules.twin:
            twin = stack.enter_context(Session(entries[0].session.target, options=entries[0].session.options))
            lanes = tuple(twin.lane(batch, number) for number in range(streams))
            again = next(way for _, way in _ways(lanes, rules.copies))
            contenders.append(replace(contenders[0], name=f"{contenders[0].name}{_TWIN}", lanes=again))
        samples = measure(
            contenders,
            replace(rules.stop, budget_s=rules.stop.budget_s * len(chosen)),
            progress=lambda step: progress(replace(step, what=label)),
        )
        subjects = [entry.subject for entry in entries]
        inputs = [entry.session.engine.inputs for entry in entries]
        places = [entry.places for entry in entries]
    rows: dict[str, list[Row]] = {}
    for variants in chosen:
        numbers = [number for number, entry in enumerate(entries) if entry.variants is variants]
        compared = [entries[number] for number in numbers]
        bounds = [places[number] for number in numbers if subjects[number].method == methods.bound().name]
        unbounded = {subjects[number].shown for number in numbers if places[number] not in bounds}
        memory = {}
        for entry in compared if rules.memory else ():
            target = entry.session.target
            method = target.shown_method
            say(f"measuring the memory of {method}, {variants.label}, {mode}, batch {batch}")
            memory[method] = peak_memory_mib(target.engine.name, target.path, entry.session.options, batch)
        rows[variants.label] = []
        for copies in compared[0].ways:
            setting = Setting(mode=mode, batch=batch, streams=streams, threads=rules.threads, copies=copies)
            measured = make_rows(
                variants.label,
                [subjects[number] for number in numbers],
                setting,
                samples,
                base=_base(entries, copies),
                memory_mib=memory,
                unbounded=unbounded,
                like=rules.like,
            )
            if copies is False and streams == 1:
                # One slimmed model's plan is enough: what is held against the tool is our runtime.
                asked = next((place for place, row in enumerate(measured) if row.subject.shown == rules.like), -1)
                number = numbers[asked]
                measured[asked] = _asked_trtexec(
                    measured[asked], entries[number].session.target.path, inputs[number], say
                )
            rows[variants.label] += measured
    return {label: _beside_twin(of_engine, contenders[0].name, samples) for label, of_engine in rows.items()}


def _beside_twin(rows: Sequence[Row], first: str, samples: Samples) -> list[Row]:
    """Rows with how equal equals were in their contest, where that was measured."""
    if f"{first}{_TWIN}" not in samples.turns:
        return list(rows)
    equal = samples.ratio(f"{first}{_TWIN}", first)
    return [replace(row, twin=equal.median, twin_low=equal.low, twin_high=equal.high) for row in rows]


def _ways(lanes: tuple[Lane, ...], copies: Sequence[bool]) -> Iterator[tuple[bool | None, tuple[Lane, ...]]]:
    """The lanes with copies and without, where that makes a difference."""
    on_device = [lane for lane in lanes if isinstance(lane, DeviceLane)]
    if not on_device:
        yield None, lanes
        return
    for with_copies in copies:
        yield with_copies, lanes if with_copies else tuple(WithoutCopies(lane) for lane in on_device)


def _contenders(entry: _Entry, entries: Sequence[_Entry], batch: int, like: str) -> Iterator[Contender]:
    variants = [other for other in entries if other.variants is entry.variants]
    baseline = variants[0]
    alike = next((other for other in variants if other.session.target.shown_method == like), None)
    for copies, lanes in entry.ways.items():
        yield Contender(
            name=entry.name(copies),
            batch=batch,
            lanes=lanes,
            against=baseline.name(copies),
            base=_base(entries, copies) or "",
            like=alike.name(copies) if alike is not None else "",
            team=entry.variants.label,
        )


def _base(entries: Sequence[_Entry], copies: bool | None) -> str | None:
    """The contender that all are held against, with copies or without as they are: the first engine's model as timm
    computes it, where that takes part, else its dense model.

    Where it knows no such difference, or was not asked for it, it is taken as it is.
    """
    first = next((entry for entry in entries if entry.variants is entries[0].variants and entry.is_plain), entries[0])
    if first is entries[0] and methods.role_of(first.session.target.method) != methods.BASELINE:
        return None
    return first.name(copies if copies in first.ways else next(iter(first.ways)))


def _asked_trtexec(row: Row, plan: Path, inputs: Sequence[TensorSpec], say: Say) -> Row:
    """The row with what NVIDIA's own tool measures of the same plan, or why it does not; as it is without the tool."""
    subject, batch = row.subject, row.setting.batch
    tool = trtexec.find(subject.engine)
    if tool is None:
        return row
    say(f"asking {Path(tool).name} about {subject.method}, {subject.label}, batch {batch}")
    try:
        opinion = trtexec.measure(tool, plan, inputs, batch)
    except EngineError as error:
        note = "; ".join(filter(None, (subject.note, error.message)))
        return replace(row, subject=replace(subject, note=note))
    facts = {"images_per_s": opinion.images_per_s, "gpu_ms": opinion.gpu_ms}
    return replace(row, trtexec=facts | {"share": row.images_per_s / opinion.images_per_s})
