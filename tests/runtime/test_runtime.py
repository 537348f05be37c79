"""What was exported and built is asked where no framework is: the same answers, and one line of what needs more."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from shutil import copy

import pytest
from packaging.requirements import Requirement

from lifedeploy import optional
from lifedeploy.data.samples import photo_folder
from tests.conftest import TINY, Ended
from tests.runtime.conftest import ENVIRONMENT

PHOTOS = {"cat": "chelsea.jpg", "cup": "coffee.jpg", "rocket": "rocket.jpg"}
CAT = photo_folder() / PHOTOS["cat"]
NOT_THERE = (*optional.EXTRAS["export"], *optional.EXTRAS["train"], *optional.EXTRAS["plot"])
BROUGHT_BY_ONNX = "ml_dtypes"
MOST_MIB = 250
FINDING = "import sys; from importlib.util import find_spec; print(*(name for name in sys.argv[1:] if find_spec(name)))"


@pytest.fixture
def labelled(workspace: Path) -> Path:
    """A photograph of each class that the exported model knows."""
    root = workspace.parent / "labelled"
    for name, photo in PHOTOS.items():
        (root / name).mkdir(parents=True)
        copy(photo_folder() / photo, root / name)
    return root


def engine(folder: Path, name: str = "onnxruntime-fp32") -> Path:
    return folder / name / "model.json"


def closure(extra: str) -> dict[str, metadata.Distribution]:
    """What ``lifedeploy[extra]`` brings, by name, as the environment without torch has it."""
    site = next(ENVIRONMENT.glob("lib/python*/site-packages"))
    there = {plain(item.metadata["Name"]): item for item in metadata.distributions(path=[str(site)])}
    brought: dict[str, metadata.Distribution] = {}
    todo = [("lifedeploy", ("", extra))]
    while todo:
        name, extras = todo.pop()
        brought[name] = there[name]
        for line in there[name].requires or ():
            wanted = Requirement(line)
            asked = any(wanted.marker is None or wanted.marker.evaluate({"extra": extra}) for extra in extras)
            if asked and (plain(wanted.name) not in brought or wanted.extras):
                todo.append((plain(wanted.name), ("", *wanted.extras)))
    return brought


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_it_takes_on_the_disk(python, capsys):
    brought = closure("onnxruntime")
    sizes = {
        name: sum(path.stat().st_size for file in item.files or () if (path := Path(str(file.locate()))).is_file())
        for name, item in brought.items()
    }
    mib = {name: size / 1024**2 for name, size in sorted(sizes.items(), key=lambda pair: -pair[1])}
    with capsys.disabled():
        largest = ", ".join(f"{name} {brought[name].version} {mib[name]:.0f}" for name in list(mib)[:5])
        print(f"\nlifedeploy[onnxruntime]: {sum(mib.values()):.0f} MiB in {len(mib)} distributions ({largest})")
    assert {"lifedeploy", "numpy", "pillow", "msgspec", "typer", "rich", "onnxruntime", "onnx"} <= brought.keys()
    assert sum(mib.values()) <= MOST_MIB


def test_no_framework_is_there(python):
    found = subprocess.run([python, "-c", FINDING, *NOT_THERE], capture_output=True, text=True, check=True).stdout
    assert set(found.split()) <= {BROUGHT_BY_ONNX}


def test_predict_answers_the_same(bare, lifedeploy, folder):
    arguments = ("predict", CAT, photo_folder() / PHOTOS["cup"], "--model", engine(folder), "--json", "-")
    there, here = (json.loads(run(*arguments).out)["predictions"] for run in (bare, lifedeploy))
    assert len(there) == 2
    for mine, theirs in zip(there, here, strict=True):
        assert [guess["name"] for guess in mine["guesses"]] == [guess["name"] for guess in theirs["guesses"]]
        probabilities = [guess["probability"] for guess in theirs["guesses"]]
        assert [guess["probability"] for guess in mine["guesses"]] == pytest.approx(probabilities, abs=1e-6)


def test_evaluate_answers_the_same(bare, lifedeploy, folder, labelled):
    arguments = ("evaluate", folder, engine(folder), "--data", labelled, "--json", "-")
    there, here = (json.loads(run(*arguments).out) for run in (bare, lifedeploy))
    assert [row["engine"] for row in there["rows"]] == ["onnxruntime"] * 2
    for mine, theirs in zip(there["rows"], here["rows"], strict=True):
        loss = theirs["accuracy"].pop("loss")
        assert mine["accuracy"].pop("loss") == pytest.approx(loss, abs=1e-6)
        assert mine["accuracy"] == theirs["accuracy"]


def test_an_engine_is_held_against_the_export(bare, folder):
    ended = bare("verify", folder, engine(folder), "--json", "-")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["parity"]["passed"]


def test_bench_measures(bare, folder):
    ended = bare("bench", engine(folder), "--batch", "1", "--budget", "1", "--no-memory", "--json", "-")
    assert ended.code == 0, ended.err
    assert {row["method"] for row in json.loads(ended.out)["rows"]} == {"life", "dense", "first-k"}


def test_inspect_and_doctor_say_what_is_there(bare, lifedeploy, folder):
    there, here = (json.loads(run("inspect", folder, "--json", "-").out) for run in (bare, lifedeploy))
    assert there == here
    engines = {row["name"]: row for row in json.loads(bare("doctor", "--json", "-").out)["engines"]}
    assert engines["onnxruntime"]["availability"]["ok"]
    assert engines["torch"]["availability"]["hint"] == "pip install 'lifedeploy[export]'"


@pytest.mark.parametrize("server", ["triton", "docker"])
def test_an_engine_is_packaged(bare, folder, server):
    ended = bare("package", folder, "--for", server, "--engine", "onnxruntime", "--backend", "python", "-o", "package")
    if server == "docker":
        assert (ended.code, ended.lines[0]) == (2, "error: --backend is of Triton, and this is for docker")
        ended = bare("package", folder, "--for", server, "--engine", "onnxruntime", "-o", "package")
    assert ended.code == 0, ended.err
    found = json.loads(bare("inspect", "package", "--json", "-").out)["package"]
    assert (found["target"], found["engine"]) == (server, "onnxruntime")


def test_engines_that_compile_what_was_exported_are_built(bare, folder):
    ended = bare("build-engine", folder, "--engine", "onnxruntime", "--force")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("export", "--backbone", TINY, "--weights", "random"), "export"),
        (("train", "--data", "labelled"), "train"),
        (("calibrate", "{folder}", "--data", "labelled"), "export"),
        (("compare", "--backbone", TINY), "export"),
        (("build-engine", "{folder}", "--engine", "onnxruntime", "--attention", "operator"), "export"),
        (("visualize", "{folder}", CAT), "plot"),
        (("bench", "--plot", "speed.png"), "plot"),
        (("evaluate", "{folder}/weights.safetensors", "--data", "labelled"), "export"),
        (("inspect", "{folder}/weights.safetensors"), "export"),
        (("verify", "{folder}", "{folder}/weights.safetensors"), "export"),
        (("evaluate", "{folder}", "--data", "hfds/somebody/something"), "datasets"),
        (("verify", "{folder}", "grpc://127.0.0.1:1/model"), "serve"),
    ],
    ids=lambda value: " ".join(map(str, value[:1])) if isinstance(value, tuple) else value,
)
def test_what_needs_more_says_so_in_one_line_and_writes_nothing(bare, folder, labelled, command, extra):
    before = files(labelled.parent)
    ended = bare(*(str(word).format(folder=folder) for word in command))
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert re.search(r"^error: .*\b\w+ is not installed$", ended.err, flags=re.MULTILINE), ended.err
    assert ended.lines[-1] == f"hint: pip install 'lifedeploy[{extra}]'"
    assert files(labelled.parent) == before


def files(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def test_openvino_opens_what_it_built_where_there_is_no_onnx(without: Callable[..., Ended], folder, labelled):
    lacking = (*NOT_THERE, "onnx", "onnxruntime")
    built = engine(folder, "openvino-fp32")
    ended = without(lacking, "evaluate", built, "--data", labelled, "--json", "-")
    assert ended.code == 0, ended.err
    assert [row["engine"] for row in json.loads(ended.out)["rows"]] == ["openvino"]
    ended = without(lacking, "evaluate", folder, "--engine", "openvino", "--data", labelled)
    assert (ended.code, ended.lines[-2:]) == (
        1,
        ["error: onnx is not installed", "hint: pip install 'lifedeploy[onnxruntime]'"],
    )


def test_pictures_are_drawn_where_matplotlib_is(without: Callable[..., Ended], folder):
    lacking = set(NOT_THERE) - {*optional.EXTRAS["plot"], BROUGHT_BY_ONNX}
    ended = without(lacking, "visualize", folder, CAT, "-o", folder.parent / "lives.png")
    assert ended.code == 0, ended.err
    assert (folder.parent / "lives.png").stat().st_size > 10_000
