"""The package's errors: one small tree, caught once, in :mod:`lifedeploy.cli.app`.

A message is one line that says what was wrong, what was found and what was expected; ``hint`` says what to do.
Errors of other libraries are turned into these at the module that calls that library, and go no further.
"""

from __future__ import annotations

from lifedeploy import text


class LifedeployError(Exception):
    """Something failed. Ends the command with ``exit_code``.

    Whatever ``message`` quotes of a file, a name or an option, it stays one line that a terminal only shows.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = text.message(message)
        super().__init__(self.message)
        self.hint = hint


class UsageError(LifedeployError):
    """What was asked for cannot be meant: the request has to change, not the machine."""

    exit_code = 2


class ScheduleError(UsageError):
    """A token schedule that cannot be."""


class UnsupportedModelError(UsageError):
    """A backbone that does not exist, or to which the method does not apply."""


class WeightsError(LifedeployError):
    """Weights that are missing, unreachable, damaged or of another shape."""


class ArtifactError(LifedeployError):
    """A file of the workspace that is missing, damaged, or not what its manifest says."""


class ExportError(LifedeployError):
    """The ONNX graph is not what was asked for."""


class ParityError(LifedeployError):
    """Two forms of one model do not compute the same thing."""


class EngineError(LifedeployError):
    """A runtime refused, or failed."""


class EngineUnavailableError(EngineError):
    """The runtime is not installed, or cannot run on this machine."""


class EngineInputError(EngineError):
    """An input that the engine does not take: wrong name, dtype or shape."""


class NotInstalledError(LifedeployError):
    """A library that one of our extras brings, and that this needs, is not installed, or does not import."""


class DataError(LifedeployError):
    """A data set that is missing, empty, or not laid out as expected."""


class TrainingError(LifedeployError):
    """A training run that cannot go on, or cannot be continued."""


class ImageError(LifedeployError):
    """A file that is no image."""
