"""What users and their scripts hold on to: no option of a command and no key of a report goes away.

``interface.json`` holds them as they were at commit c09989b; what comes later is added by hand, with whatever adds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from lifedeploy import methods
from lifedeploy.cli.app import app
from lifedeploy.data.samples import photo_folder
from tests.conftest import TINY
from tests.workflows.test_evaluate import make_images

pytestmark = pytest.mark.usefixtures("traced_once", "quick_tuning")

KNOWN = json.loads((Path(__file__).parent / "interface.json").read_text())
CAT = photo_folder() / "chelsea.jpg"
QUICK = ("--budget", "0.1", "--no-memory", "--threads", "1", "--batch", "2")
# Command → lines that have all keys between them; words in capitals are the export's folder and the weights' file.
REPORTS = {
    "export": [("-b", TINY, "--weights", "WEIGHTS", "--img-size", "64", "--output", "other")],
    "build-engine": [("--engine", "onnxruntime", "--force"), ("--engine", "fake-device"), ("--engine", "openvino")],
    "bench": [
        ("--engine", "onnxruntime", "--profile", *QUICK),
        ("--engine", "fake-device", "--engine", "onnxruntime", "--data", "data", *QUICK),
    ],
    "compare": [
        (
            *("-b", TINY, "--weights", "WEIGHTS", "--img-size", "64", "--methods", "life,random", "--at", "speed"),
            *("--engine", "fake", "--data", "data", "--budget", "0.1", "--threads", "1", "--batch", "2"),
        )
    ],
    "tune": [
        ("--engine", "openvino:fp32", "--data", "data", "--base-layer", "2"),
        ("--engine", "fake", "--max-kl", "9", "--data", "data"),
    ],
    "inspect": [(), ("EXPORT/model.onnx",), ("EXPORT/openvino-fp32",)],
    "verify": [("EXPORT/weights.safetensors", "EXPORT/model.onnx")],
    "package": [("--for", "triton", "--engine", "openvino", "-o", "repo")],
    "predict": [(CAT,)],
    "score": [("EXPORT", "shown", "--out", "rows.csv")],
    "evaluate": [("--data", "data", "--batch", "4")],
    "calibrate": [("--data", "data", "--images", "8", "--check-images", "4"), ("--show-policy",)],
    "visualize": [("EXPORT", CAT), ("EXPORT", "--histogram", "--data", "data")],
    "train": [
        (
            *("--data", "data", "--backbone", TINY, "--weights", "random", "--img-size", "64", "--batch", "4"),
            *("--stage2-epochs", "0", "--val-share", "0.25", "--workers", "0"),
        )
    ],
    "doctor": [()],
}
# Keys below these are names: of classes, packages, operators, files, kernels, parts of a profile, types of numbers.
NAMES = (
    "probes",
    "fitted",
    "correlations",
    "classes",
    "versions",
    "operators",
    "files",
    "kernels",
    "launches",
    "precisions",
    "shares",
    "weight_types",
)


def options() -> dict[str, dict[str, list[str | None]]]:
    """Command → option or argument → its metavar and the default that is shown; with those of the usual method."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: dict(_parameters(name, command)) for name, command in sorted(commands.items())}


def _parameters(name: str, command: Any) -> Iterator[tuple[str, list[str | None]]]:
    context = command.make_context(name, [], resilient_parsing=True)
    for parameter in command.get_params(context):
        shown = re.search(r"\[default: (.*)\]", getattr(parameter, "help", None) or "")
        default = None if parameter.default is None or parameter.default is False else str(parameter.default)
        flags = [parameter.metavar] if parameter.param_type_name == "argument" else parameter.opts
        yield (
            " ".join((*flags, *parameter.secondary_opts)),
            [parameter.metavar, shown.group(1) if shown else default],
        )


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Every key of a report behind those above it; ``*`` for a place in a list, a method and other names."""
    if not isinstance(value, dict | list):
        return
    named = isinstance(value, list) or path.rpartition(".")[2] in NAMES or set(value) <= set(methods.names())
    for key, item in enumerate(value) if isinstance(value, list) else value.items():
        below = f"{path}.{'*' if named else key}".removeprefix(".")
        yield below
        yield from keys(item, below)


def test_every_option_is_still_there_and_has_its_metavar_and_default():
    now = options()
    assert {
        command: {flag: now[command].get(flag) for flag in flags} for command, flags in KNOWN["options"].items()
    } == (KNOWN["options"])


@pytest.mark.parametrize("command", REPORTS)
def test_every_key_of_a_report_is_still_there(command, workspace, lifedeploy, weights_file):
    make_images(Path("data"))
    Path("shown").mkdir()
    (Path("shown") / "cat.jpg").write_bytes(CAT.read_bytes())
    (Path("shown") / "none.jpg").touch()
    places = {"EXPORT": str(next(workspace.glob("*/model.json")).parent), "WEIGHTS": str(weights_file)}
    now: set[str] = set()
    for line in REPORTS[command]:
        arguments = [re.sub("EXPORT|WEIGHTS", lambda place: places[place.group()], str(word)) for word in line]
        ended = lifedeploy(command, *arguments, "--json", "-")
        assert ended.code == 0, ended.err
        now |= set(keys(json.loads(ended.out)))
    assert sorted(set(KNOWN["reports"][command]) - now) == []


def test_every_command_is_held():
    assert set(REPORTS) == set(KNOWN["reports"]) == set(KNOWN["options"]) == set(options())
