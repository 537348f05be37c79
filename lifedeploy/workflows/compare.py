"""``compare``: a backbone and methods in; all of them, exported, built and in one contest, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.comparison import Compared, CompareReport, Measured, Trial, inequality, said_of
from lifedeploy.bench.contests import Contest, Contests
from lifedeploy.bench.measure import Stop
from lifedeploy.bench.report import BenchReport, Row
from lifedeploy.budget import Budget, Sized, at_keep_rate, at_macs, nearer
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.engines import registry
from lifedeploy.engines.base import BuildOptions, EngineOptions
from lifedeploy.errors import UsageError
from lifedeploy.files import now
from lifedeploy.machine import cores, describe
from lifedeploy.method import Method
from lifedeploy.model import backbones
from lifedeploy.model.request import require_possible
from lifedeploy.model.weights import POLICIES, ModelRequest
from lifedeploy.progress import Progress, Say, Step, silent, unwatched
from lifedeploy.schedule import DEFAULT_KEEP_RATE
from lifedeploy.spec import QUANTIZED
from lifedeploy.targets import select
from lifedeploy.targets.contest import Rules
from lifedeploy.targets.evidence import prove
from lifedeploy.targets.held import held
from lifedeploy.targets.reuse import exported_as, exports_like, weights_of
from lifedeploy.targets.select import Variants, WantedEngine, variants_of
from lifedeploy.targets.target import Target
from lifedeploy.text import quoted
from lifedeploy.typed import COMPARED_AT
from lifedeploy.workflows.bench import Accuracy, BenchRequest, evaluation_of
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.calibrate import CalibrateRequest, calibrate
from lifedeploy.workflows.evaluate import listed
from lifedeploy.workflows.export import ExportRequest, export

FOLDER = "comparisons"  # of the workspace: contests that are over
_AS_FAST = 0.02  # a method is as fast as another if it is within this share of it
_MOST_TRIALS = 4  # of one method, on the way to equal speed
_TRIAL_S = 30.0  # for each contest on that way, at most
_OFF = 0.02  # share of the work asked for that a method may miss without a word


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """Which methods, brought to the same what, and how they are measured."""

    model: ModelRequest = field(default_factory=lambda: ModelRequest(backbone="deit_s"))  # whatever its method
    methods: tuple[str, ...] = ()  # none: all there are; what they are compared with is always among them
    at: str = COMPARED_AT[0]
    bench: BenchRequest = field(default_factory=lambda: BenchRequest(memory=False))  # its engines, settings and data
    calibration_data: str = ""  # images to calibrate for INT8 and FP8 with, where that has not been done
    fresh: bool = False  # measure again what was measured here before
    allow_unfused: bool = False  # keep engines whose attention is not fused, and say so

    def __post_init__(self) -> None:
        quantised = [name for name in self.bench.engines if name.rpartition(":")[2] in QUANTIZED]
        if self.calibration_data and self.bench.engines and not quantised:
            raise UsageError(
                f"--calibration-data is for INT8 and FP8, and no engine of {', '.join(self.bench.engines)} has them",
                hint="--engine NAME:int8",
            )
        if self.at not in COMPARED_AT:
            raise UsageError(
                f"methods cannot be compared at the same {quoted(self.at)}; there are: {', '.join(COMPARED_AT)}"
            )
        twice = next((name for name in self.methods if self.methods.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"method {quoted(twice)} is named twice: it would take turns with itself")
        if not self.slimmed:
            raise UsageError(
                f"no method of {', '.join(self.methods)} drops tokens by a choice, so there is nothing to compare; "
                f"there are: {', '.join(methods.names(methods.SLIMMED))}"
            )

    @property
    def slimmed(self) -> tuple[Method, ...]:
        """The methods to compare, in order.

        Raises:
            UsageError: there is none of that name, or it cannot be used.
        """
        named = map(methods.get, self.methods or methods.names())
        return tuple(method for method in named if method.role == methods.SLIMMED)

    @property
    def takes_bound(self) -> bool:
        """Whether the bound takes part."""
        return not self.methods or methods.bound().name in self.methods


def compare(
    request: CompareRequest, workspace: Workspace, say: Say = silent, progress: Progress = unwatched
) -> CompareReport:
    """Export and build what is missing of each method, and let all of them take turns in one contest per setting.

    Every method has its usual drop layers and options; baseline and bound are those of the first. A contest that was
    held on this machine, in these versions of everything, on the same engines and among at least these methods, is
    taken as it was found.

    Raises:
        LifedeployError: the request cannot be meant; or as ``export``, ``build``, ``bench`` and ``evaluate``.
    """
    selection = select.for_comparison(request.bench.engines)
    for line in selection.warnings:
        say(line)
    evaluation = evaluation_of(request.bench) if request.bench.data else None
    images = listed(evaluation, say) if evaluation else None
    if request.calibration_data:
        read_unlabelled(request.calibration_data)  # found out to be none before anything is made
    shop = _Workshop(request, workspace, selection.engines, say, progress)
    budgets, trials = _budgets(request, shop)
    chosen = shop.variants(budgets, selection.engines)
    accuracy = None
    if evaluation is not None and images is not None:
        accuracy = Accuracy(chosen, evaluation, workspace, images, say, progress)

    settings = list(product(request.bench.modes, request.bench.batches))
    rows: dict[str, list[Row]] = {variants.label: [] for variants in chosen}
    contests = []
    for number, (mode, batch) in enumerate(settings):

        def overall(step: Step, number: int = number) -> None:
            progress(replace(step, share=(number + step.share) / len(settings)))

        ended, kept = shop.contest(chosen, mode, batch, request.bench.stop, overall)
        for row in ended.rows:
            rows[row.subject.label].append(row)
        contests.append(Measured.of(ended, kept=kept))
        shop.warn(inequality(ended.rows, f"{mode}, batch {batch}"))
    bench = BenchReport(
        machine=describe(threads=request.bench.threads),
        rows=tuple(row for measured in rows.values() for row in measured),
        created=now(),
        command=request.bench.command,
        choices=accuracy.choices(rows) if accuracy else (),
        images=accuracy.report.data if accuracy else None,
        warnings=(*selection.warnings, *shop.warnings, *(accuracy.report.warnings if accuracy else ())),
    )
    return CompareReport(
        bench=bench,
        backbone=request.model.backbone,
        at=request.at,
        like=request.slimmed[0].name,
        models=tuple(Compared.of(artifact) for target in chosen[0].targets if (artifact := target.artifact)),
        contests=tuple(contests),
        trials=trials,
    )


def _budgets(request: CompareRequest, shop: _Workshop) -> tuple[dict[str, Budget], tuple[Trial, ...]]:
    """Each method's keep rate; and what was measured to find it.

    Raises:
        ScheduleError, UsageError: a method can have none.
    """
    first, *others = request.slimmed
    rate = request.model.keep_rate or DEFAULT_KEEP_RATE
    asked = request.model
    backbone = backbones.sized(asked.backbone, image_size=asked.image_size, num_classes=asked.num_classes)
    for method in request.slimmed:  # refused before anything is made
        require_possible(method, rate, backbone, asked.backbone)
    spec = shop.exported(first, None if first.own_budget else rate).manifest.spec
    if spec.image_size != asked.image_size or spec.num_classes != asked.num_classes:  # the weights have their own
        backbone = backbones.sized(spec.timm_name, image_size=spec.image_size, num_classes=spec.num_classes)
    budgets = {first.name: at_keep_rate(first, rate, backbone)}
    macs = budgets[first.name].macs
    for method in others:
        same = request.at == "keep-rate" or not method.takes_keep_rate
        budgets[method.name] = at_keep_rate(method, rate, backbone) if same else at_macs(method, macs, backbone)
        if budgets[method.name].keep_rate is None:
            shop.warn(f"{method.name} has a budget of its own, whatever the others are brought to: {method.own_budget}")
        elif request.at == "macs" and abs(budgets[method.name].macs / macs - 1) > _OFF:
            nearest, wanted = budgets[method.name].macs / 1e9, macs / 1e9
            shop.warn(f"{method.name} comes no nearer to {first.name}'s {wanted:.3g} GMACs than {nearest:.3g}")
    if request.at != "speed":
        return budgets, ()
    return _at_speed(request, shop, budgets, backbone)


def _at_speed(
    request: CompareRequest, shop: _Workshop, budgets: dict[str, Budget], backbone: Sized
) -> tuple[dict[str, Budget], tuple[Trial, ...]]:
    """Keep rates under which all methods are as fast as the first one, on the first engine in the first setting."""
    first = request.slimmed[0].name
    mode, batch = request.bench.modes[0], request.bench.batches[0]
    stop = replace(request.bench.stop, budget_s=min(_TRIAL_S, request.bench.stop.budget_s))
    moving = [method for method in request.slimmed[1:] if method.takes_keep_rate]
    tried: dict[str, list[tuple[Budget, float]]] = {method.name: [] for method in moving}
    trials = []
    for _ in range(_MOST_TRIALS):
        if not moving:
            break
        now_tried = {first: budgets[first]} | {method.name: budgets[method.name] for method in moving}
        chosen = shop.variants(now_tried, shop.engines[:1])
        ended, _ = shop.contest(chosen, mode, batch, stop, shop.progress)
        copies = ended.rows[0].setting.copies
        speeds = {row.subject.method: row.over_like or 1.0 for row in ended.rows if row.setting.copies is copies}
        for method in tuple(moving):
            budget, speed = budgets[method.name], speeds[method.name]
            assert budget.keep_rate is not None  # it takes one
            trials.append(Trial(method=method.name, keep_rate=budget.keep_rate, gmacs=budget.macs / 1e9, speed=speed))
            known = tried[method.name]
            known.append((budget, speed))
            target = nearer([budget.macs for budget, _ in known], [speed for _, speed in known])
            budgets[method.name] = at_macs(method, target, backbone)
            again = budgets[method.name].macs in [budget.macs for budget, _ in known]
            if abs(speed - 1) <= _AS_FAST or again:
                moving.remove(method)
    for name, known in tried.items():
        budgets[name], speed = min(known, key=lambda trial: abs(trial[1] - 1))
        if abs(speed - 1) > _AS_FAST:
            shop.warn(f"{name} comes no nearer to the speed of {first} than {speed:.3g} of it")
    return budgets, tuple(trials)


class _Workshop:
    """Makes what is missing, and holds contests."""

    def __init__(
        self,
        request: CompareRequest,
        workspace: Workspace,
        engines: Sequence[WantedEngine],
        say: Say,
        progress: Progress,
    ) -> None:
        self.request, self.workspace, self.engines = request, workspace, engines
        self.say, self.progress = say, progress
        self.warnings: list[str] = []
        self._depth = backbones.sized(request.model.backbone).depth
        self._contests = Contests(workspace.root / FOLDER)

    def warn(self, message: str) -> None:
        """Note down what the report has to say, once."""
        if message and message not in self.warnings:
            self.warnings.append(message)

    def exported(self, method: Method, keep_rate: float | None) -> Artifact:
        """The export of a method at a keep rate: one that there is, or a new one, beside those of other weights."""
        wanted = replace(
            self.request.model,
            method=method.name,
            keep_rate=keep_rate,
            drop_layers=method.default_drop_layers(self._depth),
            options=method.usual_options,
        )
        known = exported_as(wanted, self.workspace)
        if known is not None:
            return known
        self._require_images(f"{method.name} is not exported and")
        others, output = exports_like(wanted, self.workspace), None
        if others:
            weights = weights_of(wanted, self.workspace)
            usual = min((other.folder.name for other in others), key=len)
            output = self.workspace.root / f"{usual}-{weights if weights in POLICIES else weights[:8]}"
        at = "" if keep_rate is None else f" at keep rate {keep_rate:g}"

        def say(what: str) -> None:
            self.say(f"exporting {method.name}{at}: {what}")

        with said_of(method.name):
            report = export(ExportRequest(model=wanted, output=output), self.workspace, say)
        self.warn(report.warning)
        for note in report.notes:
            self.warn(f"{method.name}: {note}")
        return Artifact.read(report.folder / "model.json")

    def variants(self, budgets: Mapping[str, Budget], engines: Sequence[WantedEngine]) -> list[Variants]:
        """All methods on each engine, built and proven where they were not, as the variants of one model."""
        exports = [self.exported(methods.get(name), budget.keep_rate) for name, budget in budgets.items()]
        if len({known.manifest.spec.provenance.weights for known in exports}) > 1:
            each = ", ".join(f"{known.method} {known.manifest.spec.provenance.weights}" for known in exports)
            self.warn(f"the weights are not of one kind ({each}): accuracy is of these too, not of the methods alone")
        for precision in {engine.plan.precision for engine in engines} & set(QUANTIZED):
            for known in exports:
                with said_of(known.method):
                    self._calibrated(known, precision)
        chosen = []
        for engine in engines:
            targets: list[Target] = []
            for known in exports:
                with said_of(known.method):
                    built = variants_of(prove(self._built(known, engine))).targets
                beside = {methods.BASELINE} | ({methods.BOUND} if self.request.takes_bound else set())
                taken = {methods.SLIMMED} | (set() if targets else beside)
                targets += [target for target in built if methods.role_of(target.method) in taken]
            chosen.append(Variants(self.request.model.backbone, tuple(targets)))
        return chosen

    def _built(self, known: Artifact, engine: WantedEngine) -> Artifact:
        name = f"{known.name}, {engine.engine} {engine.plan.precision}"
        asked = self.request.allow_unfused and "allow_unfused" in registry.get(engine.engine).takes
        how = BuildOptions(allow_unfused=asked)
        request = BuildRequest(model=known.manifest_path, engine=engine.engine, precision=engine.precision, options=how)
        built = build(request, self.workspace, lambda what: self.say(f"{name}: {what}"), self.progress)
        self.warn(built.fusion_note and f"{name}: {built.fusion_note}")
        return built.engine

    def _calibrated(self, known: Artifact, precision: str) -> None:
        """Calibrate an export, if that has not been done.

        Raises:
            UsageError: there are no images to do it with.
        """
        data = self.request.calibration_data
        if not data and (known.folder / precision / "model.json").is_file():
            return
        self._require_images(f"{known.name} is not")
        recipe = replace(CalibrateRequest().recipe, precision=precision)
        request = CalibrateRequest(model=known.manifest_path, data=data, recipe=recipe)
        calibrate(request, self.workspace, lambda what: self.say(f"{known.name}: {what}"), self.progress)

    def _require_images(self, what: str) -> None:
        """Make sure that whatever is made can be calibrated, before it is made.

        Raises:
            UsageError: there are no images to do it with.
        """
        precisions = {engine.plan.precision for engine in self.engines} & set(QUANTIZED)
        if precisions and not self.request.calibration_data:
            names = " and ".join(sorted(precisions)).upper()
            raise UsageError(
                f"{what} calibrated for {names}, and there are no images to do it with", hint="--calibration-data DIR"
            )

    def contest(
        self, chosen: Sequence[Variants], mode: str, batch: int, stop: Stop, progress: Progress
    ) -> tuple[Contest, bool]:
        """A contest in one setting, and whether it was held before."""
        how, like = self.request.bench, self.request.slimmed[0].name
        rules = Rules(
            stop=stop,
            options=EngineOptions(threads=how.threads, cuda_binding=how.cuda_binding),
            threads=how.threads or cores(),
            copies=how.copies,
            memory=how.memory,
            like=like,
            twin=True,
        )
        setting = mode, batch, how.streams if mode == "throughput" else 1
        fresh = self.request.fresh
        return held(chosen, setting, rules, self._contests, fresh=fresh, say=self.say, progress=progress)
