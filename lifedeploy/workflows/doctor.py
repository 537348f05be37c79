"""``doctor``: what is installed, which engines run here, and why the others do not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lifedeploy import methods
from lifedeploy.engines import registry
from lifedeploy.engines.base import Availability, Engine
from lifedeploy.errors import EngineUnavailableError, UsageError
from lifedeploy.machine import describe
from lifedeploy.spec import PRECISIONS, QUANTIZED


@dataclass(frozen=True)
class EngineHealth:
    """Whether an engine runs and builds here, and in which precisions."""

    name: str
    availability: Availability
    builds: Availability  # some build where they cannot run
    precisions: dict[str, str]  # asked for → what runs


@dataclass(frozen=True)
class MethodHealth:
    """One method to slim by."""

    name: str
    title: str
    package: str  # that it comes from
    problem: str  # why it cannot be used; '' where it can


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    """The machine, its engines, and the methods."""

    machine: dict[str, Any]
    engines: tuple[EngineHealth, ...]
    auto: str  # what `auto` would take; '' where nothing runs
    problems: tuple[str, ...]
    methods: tuple[MethodHealth, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"schema": 1, **asdict(self)}


def doctor() -> DoctorReport:
    """What is installed here, and what of it works."""
    machine = describe()
    engines = []
    for name, availability in registry.survey().items():
        builds = registry.examine(registry.get(name), to_build=True)
        precisions = {}
        if availability.ok or builds.ok:
            precisions = {wanted: _run_as(registry.get(name), wanted) for wanted in PRECISIONS}
        engines.append(EngineHealth(name, availability, builds, precisions))
    try:
        auto = registry.resolve(registry.AUTO).name
    except EngineUnavailableError:
        auto = ""
    return DoctorReport(
        machine=machine,
        engines=tuple(engines),
        auto=auto,
        problems=_problems(machine["versions"]),
        methods=tuple(_examined(name) for name in methods.names(methods.SLIMMED)),
    )


def _run_as(engine: type[Engine], wanted: str) -> str:
    """The precision that comes of asking for ``wanted``; '–' where a quantised graph is refused."""
    return "–" if wanted in QUANTIZED and wanted not in engine.quantized else engine.plan(wanted).precision


def _examined(name: str) -> MethodHealth:
    try:
        method = methods.get(name)
        if methods.built_in(name) is None:  # code of others: all of it is tried
            from lifedeploy.model.reducers import load_reducer

            load_reducer(method)
    except UsageError as error:
        return MethodHealth(name, "", "", error.message)
    return MethodHealth(name, method.title, method.package, "")


def _problems(versions: dict[str, str]) -> tuple[str, ...]:
    if not {"onnxruntime", "onnxruntime-gpu"} <= versions.keys():
        return ()
    return (
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
        "pip uninstall -y onnxruntime onnxruntime-gpu, then install lifedeploy[cpu] or lifedeploy[gpu]",
    )
