"""What a calibration made, and what has to be said of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lifedeploy import methods
from lifedeploy.calibration.batches import Draw
from lifedeploy.calibration.report import GraphReport
from lifedeploy.reading import read_json

REPORT, PLOT = "report.json", "report.png"


class _Written(msgspec.Struct):
    """What is read of a report."""

    settings: dict[str, Any]
    members: dict[str, GraphReport]
    warnings: tuple[str, ...]
    created: str


@dataclass(frozen=True, kw_only=True)
class CalibrateReport:
    """What was made, and what it cost."""

    folder: Path
    settings: dict[str, Any]  # the recipe, max_drop, and the images: all that decides the result
    policy: tuple[dict[str, Any], ...]
    members: dict[str, GraphReport]  # method → report
    warnings: tuple[str, ...]
    created: str
    reused: bool = False
    cached: bool = False  # whether the statistics were known
    left_out: tuple[str, ...] = ()  # of the images' source: what is not used, and why

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        members = {method: member.to_dict() for method, member in self.members.items()}
        return {"schema": 1, **vars(self), "folder": str(self.folder), "members": members}

    @classmethod
    def read(cls, folder: Path) -> CalibrateReport:
        """The report that was written into ``folder``, without its policy.

        Raises:
            ArtifactError: there is none, or it is damaged.
        """
        written = read_json(folder / REPORT, _Written)
        return cls(
            folder=folder,
            settings=written.settings,
            policy=(),
            members=written.members,
            warnings=written.warnings,
            created=written.created,
            reused=True,
            cached=True,
        )


def warnings_of(
    drawn: Draw, reports: dict[str, GraphReport], *, images: int, check_images: int, max_drop: float | None
) -> list[str]:
    """What has to be said of a calibration for which so many images were asked for."""
    calibrated, checked = len(drawn.calibration), len(drawn.check)
    warnings = []
    if calibrated < images:
        warnings.append(f"{images} images were asked for, and there are {calibrated}: all were taken")
    if drawn.shared:
        warnings.append("there were no images left to check on that were not calibrated on: the check is too kind")
    elif checked < check_images:
        warnings.append(f"{checked} images are left to check on, of {check_images} asked for")
    points = 100 / checked  # that one image is worth
    if max_drop and max_drop < points:
        warnings.append(f"--max-drop {max_drop:g} allows no image to be lost: one of {checked} is {points:.1f}")
    for method, report in reports.items():
        if report.overlap is not None and report.overlap < 0.95:
            warnings.append(f"{method}: only {report.overlap:.1%} of the kept tokens are those of the float graph")
        if methods.role_of(method) != methods.BOUND and report.same_top1 < 0.95:
            warnings.append(f"{method}: only {report.same_top1:.1%} of the answers are those of the float graph")
    return warnings
