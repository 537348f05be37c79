"""``compare``: a backbone and methods in, or checkpoints; all of them, exported, built and in one contest, out."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.comparison import AS_TRAINED, Compared, CompareReport, Measured, Trial, inequality
from lifedeploy.bench.report import BenchReport, Row
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.files import now
from lifedeploy.machine import describe
from lifedeploy.progress import Progress, Say, Step, silent, unwatched
from lifedeploy.targets import select
from lifedeploy.workflows.bench import Accuracy, evaluation_of
from lifedeploy.workflows.compare.budgets import budgets_of, exports_of
from lifedeploy.workflows.compare.checkpoints import trained
from lifedeploy.workflows.compare.request import CompareRequest
from lifedeploy.workflows.compare.workshop import FOLDER, Workshop
from lifedeploy.workflows.evaluate import listed

__all__ = ["FOLDER", "CompareRequest", "compare"]

_WITHOUT_BASE = (
    "no dense checkpoint is among them, so {baseline} is {first} without its drops: its speed is right, and its "
    "accuracy is not that of a dense model"
)


def compare(
    request: CompareRequest, workspace: Workspace, say: Say = silent, progress: Progress = unwatched
) -> CompareReport:
    """Export and build what is missing of each method, or of each checkpoint, and let all of them take turns in one
    contest per setting.

    Every method has its usual drop layers and options; baseline and bound are those of the first. Checkpoints are as
    they were trained, and the baseline is the dense one among them. A contest that was held on this machine, in these
    versions of everything, on the same engines and among at least these models, is taken as it was found.

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
    models = trained(request.checkpoints) if request.checkpoints else None
    shop = Workshop(request, workspace, selection.engines, say, progress)
    base: Artifact | None = None
    trials: tuple[Trial, ...] = ()
    if models is None:
        budgets, trials = budgets_of(request, shop)
        exports = exports_of(request, shop, budgets)
    else:
        exports = {name: shop.exported(wanted, name) for name, wanted in models.slimmed.items()}
        if models.base is not None:
            base = shop.exported(models.base, methods.baseline().name)
        else:
            shop.warn(_WITHOUT_BASE.format(baseline=methods.baseline().name, first=next(iter(exports))))
    chosen, like = shop.variants(exports, selection.engines, base), next(iter(exports))
    accuracy = None
    if evaluation is not None and images is not None:
        accuracy = Accuracy(chosen, evaluation, workspace, images, say, progress)

    settings = list(product(request.bench.modes, request.bench.batches))
    rows: dict[str, list[Row]] = {variants.label: [] for variants in chosen}
    contests = []
    for number, (mode, batch) in enumerate(settings):

        def overall(step: Step, number: int = number) -> None:
            progress(replace(step, share=(number + step.share) / len(settings)))

        ended, kept = shop.contest(chosen, like, (mode, batch), request.bench.stop, overall)
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
    # On each engine the same ones, but for those that were refused there.
    taking_part = {target.shown_method: target for variants in chosen[::-1] for target in variants.targets}
    return CompareReport(
        bench=bench,
        backbone=chosen[0].model,
        at=AS_TRAINED if request.checkpoints else request.at,
        like=like,
        models=tuple(
            Compared.of(artifact, name) for name, target in taking_part.items() if (artifact := target.artifact)
        ),
        contests=tuple(contests),
        trials=trials,
    )
