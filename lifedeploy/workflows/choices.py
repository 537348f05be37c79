"""How right the contenders of ``bench`` are: baselines and slimmed models on labelled images, beside their speeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.bench.choices import Choice, ranked
from lifedeploy.bench.report import Row
from lifedeploy.data.images import ImageSet
from lifedeploy.errors import ImageError, UsageError
from lifedeploy.workflows.evaluate import EvaluateReport, EvaluateRequest, Progress, evaluate
from lifedeploy.workflows.progress import Say
from lifedeploy.workflows.teams import Team


@dataclass(frozen=True)
class Judgement:
    """An evaluation, and which of its rows, counted from 1, is whose: (team, method) → row."""

    report: EvaluateReport
    numbers: dict[tuple[str, str], int]
    first: str  # the team that the others are held against

    def choices(self, rows: Mapping[str, Sequence[Row]]) -> tuple[Choice, ...]:
        """The speeds of each team, with their accuracy."""
        return ranked(
            [
                self._choice(row, self.numbers[team, row.method])
                for team, own in rows.items()
                for row in own
                if (team, row.method) in self.numbers
            ]
        )

    def _choice(self, row: Row, number: int) -> Choice:
        accuracy = self.report.rows[number - 1].accuracy
        return Choice(
            model=row.model,
            method=row.method,
            engine=row.engine,
            precision=row.precision,
            mode=row.mode,
            streams=row.streams,
            batch=row.batch,
            copies=row.copies,
            images_per_s=row.images_per_s,
            base=row.base,
            over_base=row.over_base,
            over_base_low=row.over_base_low,
            over_base_high=row.over_base_high,
            images=accuracy.images,
            top1=accuracy.top1,
            standard_error=accuracy.standard_error,
            average_precision=accuracy.average_precision,
            same_top1=self._shared(number, methods.baseline().name, "agreement"),
            # Of the same method on the first engine; a baseline keeps everything, and has nothing in common there.
            kept_overlap=self._shared(number, row.method, "overlap"),
        )

    def _shared(self, number: int, method: str, fact: str) -> float | None:
        """What a row has in common with the first team's model of that method; nothing to tell of itself."""
        other = self.numbers.get((self.first, method))
        pair = next((pair for pair in self.report.pairs if {pair.first, pair.second} == {number, other}), None)
        return getattr(pair, fact) if pair else None


def judge(
    teams: Sequence[Team],
    request: EvaluateRequest,
    workspace: Workspace,
    images: ImageSet,
    say: Say,
    progress: Progress,
) -> Judgement:
    """Evaluate the baselines and slimmed models of all teams in one pass; ``request`` says how.

    Raises:
        UsageError: there are none, but a file of another tool.
        WeightsError, DataError, ImageError, EngineError: as :func:`evaluate`.
    """
    models = {
        (team.label, member.method): member.manifest
        for team in teams
        for member in team.members
        if methods.role_of(member.method) != methods.BOUND and member.manifest is not None
    }
    if not models:
        raise UsageError(
            f"{teams[0].model} has no manifest, so how images are prepared for it is unknown: no --data here",
            hint="lifedeploy evaluate takes it, beside a model of lifedeploy with the same input",
        )
    try:
        report = evaluate(replace(request, models=tuple(models.values())), workspace, say, progress, images)
    except ImageError as error:
        raise ImageError(error.message, hint="lifedeploy evaluate --on-error skip lists all broken images") from error
    return Judgement(report, {key: number for number, key in enumerate(models, start=1)}, teams[0].label)
