"""Where what a comparison is about is made, where it is missing, and contests are held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.comparison import said_of
from lifedeploy.bench.contests import Contest, Contests
from lifedeploy.bench.measure import Stop
from lifedeploy.engines import registry
from lifedeploy.engines.base import BuildOptions, EngineOptions
from lifedeploy.errors import ParityError, UsageError
from lifedeploy.machine import cores
from lifedeploy.model.request import ModelRequest
from lifedeploy.model.weights import POLICIES
from lifedeploy.progress import Progress, Say
from lifedeploy.spec import QUANTIZED
from lifedeploy.targets.contest import Rules
from lifedeploy.targets.evidence import prove
from lifedeploy.targets.held import held
from lifedeploy.targets.reuse import exported_as, exports_like, weights_of
from lifedeploy.targets.select import Variants, WantedEngine, variants_of
from lifedeploy.targets.target import Target
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.calibrate import CalibrateRequest, calibrate
from lifedeploy.workflows.compare.request import CompareRequest
from lifedeploy.workflows.export import ExportRequest, export

FOLDER = "comparisons"  # of the workspace: contests that are over


class Workshop:
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
        self._contests = Contests(workspace.root / FOLDER)
        self._flag = "--checkpoints" if request.checkpoints else "--methods"  # what names those that take part

    def warn(self, message: str) -> None:
        """Note down what the report has to say, once."""
        if message and message not in self.warnings:
            self.warnings.append(message)

    def exported(self, wanted: ModelRequest, name: str) -> Artifact:
        """The export of what is ``wanted``: one that there is, or a new one, beside those of other weights. ``name`` is
        what it is called here.
        """
        known = exported_as(wanted, self.workspace)
        if known is not None:
            return known
        self._require_images(f"{name} is not exported and")
        others, output = exports_like(wanted, self.workspace), None
        if others:
            weights = weights_of(wanted, self.workspace)
            usual = min((other.folder.name for other in others), key=len)
            output = self.workspace.root / f"{usual}-{weights if weights in POLICIES else weights[:8]}"
        at = "" if wanted.keep_rate is None else f" at keep rate {wanted.keep_rate:g}"

        def say(what: str) -> None:
            self.say(f"exporting {name}{at}: {what}")

        with said_of(name, self._flag):
            report = export(ExportRequest(model=wanted, output=output), self.workspace, say)
        self.warn(report.warning)
        for note in report.notes:
            self.warn(f"{name}: {note}")
        return Artifact.read(report.folder / "model.json")

    def variants(
        self, exports: Mapping[str, Artifact], engines: Sequence[WantedEngine], base: Artifact | None = None
    ) -> list[Variants]:
        """All exports on each engine, built and proven where they were not, as the variants of one model.

        Each goes by its name. Baseline and bound are those of the export ``base``, or else of the first one. What a
        parity gate refuses takes no part on that engine, if that is asked for; baseline and first export have to.

        Raises:
            EngineError, ParityError: as :func:`build`, with the model's name in front.
        """
        if len({known.manifest.spec.provenance.weights for known in exports.values()}) > 1:
            each = ", ".join(f"{name} {known.manifest.spec.provenance.weights}" for name, known in exports.items())
            self.warn(f"the weights are not of one kind ({each}): accuracy is of these too, not of the methods alone")
        everyone = ({methods.baseline().name: base} if base is not None else {}) | dict(exports)
        for precision in {engine.plan.precision for engine in engines} & set(QUANTIZED):
            for name, known in everyone.items():
                with said_of(name, self._flag):
                    self._calibrated(known, precision)
        chosen, first = [], next(iter(exports))
        for engine in engines:
            targets: list[Target] = []
            for name, known in everyone.items():
                optional = self.request.skip_refused and known is not base and name != first
                proven = self._proven(name, known, engine, optional=optional)
                if proven is None:
                    continue
                built = variants_of(proven).targets
                beside = {methods.BASELINE} | ({methods.BOUND} if self.request.takes_bound else set())
                taken = (set() if known is base else {methods.SLIMMED}) | (set() if targets else beside)
                targets += [_called(target, name) for target in built if methods.role_of(target.method) in taken]
            chosen.append(Variants(exports[first].manifest.spec.backbone, tuple(targets)))
        return chosen

    def _proven(self, name: str, known: Artifact, engine: WantedEngine, *, optional: bool) -> Artifact | None:
        """The engine of an export; None of an ``optional`` one that does not compute what it should, which is said."""
        try:
            with said_of(name, self._flag):
                return prove(self._built(known, engine))
        except ParityError as error:
            if not optional:
                raise
            self.warn(f"without {error.message}")
            return None

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
        self, chosen: Sequence[Variants], like: str, setting: tuple[str, int], stop: Stop, progress: Progress
    ) -> tuple[Contest, bool]:
        """A contest in one setting (mode, batch size), all held against ``like`` too; whether it was held before."""
        how, (mode, batch) = self.request.bench, setting
        rules = Rules(
            stop=stop,
            options=EngineOptions(threads=how.threads, cuda_binding=how.cuda_binding),
            threads=how.threads or cores(),
            copies=how.copies,
            memory=how.memory,
            like=like,
            twin=True,
        )
        asked = mode, batch, how.streams if mode == "throughput" else 1
        fresh = self.request.fresh
        return held(chosen, asked, rules, self._contests, fresh=fresh, say=self.say, progress=progress)


def _called(target: Target, name: str) -> Target:
    """A slimmed model under the name that it has here, where that is not its method's."""
    slimmed = methods.role_of(target.method) == methods.SLIMMED
    return replace(target, alias=name) if slimmed and name != target.method else target
