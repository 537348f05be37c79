"""Every option of every command has a range, a length or a list, and says so in a line before anything is loaded."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import typer

from lifedeploy.cli import paths, values
from lifedeploy.cli.app import app
from lifedeploy.cli.options import require_apart
from lifedeploy.errors import UsageError

REQUIRED = {
    "evaluate": ("--data", "nowhere"),
    "verify": ("a.onnx", "b.onnx"),
    "predict": ("nowhere.jpg",),
    "visualize": ("nowhere",),
}
LONG = "9" * 10_000
NO_NUMBERS = ("nan", "inf", "-inf", "1e400", "²", "٣", "1_000", " 5 ", "0x10", "", "1,", "\x1b[31m5", "5\n", LONG)


def declared() -> list[tuple[str, str, object, values.Value | None]]:
    """(command, parameter, default, what reads it) of all parameters that are no flags."""
    parameters = []
    for command in app.registered_commands:
        function = command.callback
        name = command.name or function.__name__.replace("_", "-")
        hints = typing.get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            kind = hints[parameter.name]
            if kind is typer.Context:  # nothing that a line has
                continue
            info = kind.__metadata__[0]
            if bool in (kind.__origin__, *typing.get_args(kind.__origin__)):
                continue
            parameters.append((name, parameter.name, parameter.default, info.parser))
    return parameters


ALL = declared()
NUMBERS = [case for case in ALL if isinstance(case[3], (values.WholeRange, values.RealRange))]
OUTPUTS = [case for case in ALL if isinstance(case[3], paths.Output)]


def named(case: tuple[str, str, object, object]) -> str:
    return f"{case[0]} {case[1]}"


def ends(value: values.Value) -> list[tuple[float, bool]]:
    """The bounds of a range, and whether each is outside of it."""
    return [(value.low, getattr(value, "above", False)), (value.high, getattr(value, "below", False))]


def written(value: values.Value, number: float) -> str:
    """The number as a line has it: as often as the value takes numbers."""
    return ",".join([repr(number)] * (value.length if isinstance(value, values.RealList) else 1))


def refused(lifedeploy, command: str, *arguments: str) -> str:
    """The one line that a command says when it refuses its arguments."""
    ended = lifedeploy(command, *arguments, *REQUIRED.get(command, ()))
    assert ended.code == 2, ended.err
    assert ended.out == ""
    assert len([line for line in ended.lines if not line.startswith("hint: ")]) == 1
    assert ended.lines[0].startswith("error: ")
    assert len(ended.lines[0]) < 700
    assert all(character.isprintable() for line in ended.lines for character in line)
    return ended.lines[0]


def test_every_parameter_is_read_by_one_of_ours():
    assert len(ALL) > 100
    assert [named(case) for case in ALL if not isinstance(case[3], values.Value)] == []


@pytest.mark.parametrize("case", NUMBERS, ids=named)
def test_every_number_has_two_finite_bounds_and_a_default_within_them(case):
    _, _, default, value = case
    assert math.isfinite(value.low) and math.isfinite(value.high)
    assert value.low < value.high
    for number in default if isinstance(default, tuple) else [default]:
        assert number is None or value.low <= number <= value.high


@pytest.mark.parametrize("case", NUMBERS, ids=named)
def test_what_is_no_number_in_the_range_is_refused(case, lifedeploy, tmp_path, monkeypatch):
    command, _, _, value = case
    monkeypatch.chdir(tmp_path)
    above = math.nextafter(value.high, math.inf) if isinstance(value, values.RealRange) else value.high + 1
    below = math.nextafter(value.low, -math.inf) if isinstance(value, values.RealRange) else value.low - 1
    beyond = [written(value, number) for number in (above, below)]
    for text in (*NO_NUMBERS, str(2**64), "1e26", *beyond, "-1e9"):
        with pytest.raises(UsageError):
            value(text)
    for bound, open_ in ends(value):
        if open_:
            with pytest.raises(UsageError):
                value(written(value, bound))
    said = refused(lifedeploy, command, value.flag, "nan")
    assert "nan" in said
    refused(lifedeploy, command, value.flag, LONG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", NUMBERS, ids=named)
def test_the_bounds_themselves_are_read(case):
    value = case[3]
    for bound, open_ in ends(value):
        if not open_:
            read = value(written(value, bound))
            assert read == bound or set(read) == {bound}


@pytest.mark.parametrize("case", [case for case in ALL if case not in NUMBERS], ids=named)
@pytest.mark.parametrize("text", ["", "a\0b", "x" * 1_000_000, "\ud800"], ids=["empty", "null", "long", "surrogate"])
def test_every_text_has_a_length_and_can_be_a_name(case, text):
    with pytest.raises(UsageError) as caught:
        case[3](text)
    assert len(caught.value.message) < 700
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("case", OUTPUTS, ids=named)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(case, lifedeploy, tmp_path, monkeypatch):
    command, _, _, value = case
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    for place in ("no/such/folder/x.png", "folder.png", "x" * 300 + ".png"):
        assert "cannot be written" in refused(lifedeploy, command, value.flag, place)
    if value.endings:
        assert "is no plot file" in refused(lifedeploy, command, value.flag, "x.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_every_output_is_known():
    flags = {(case[0], case[3].flag) for case in OUTPUTS}
    commands = {case[0] for case in ALL}
    assert {(command, "--json") for command in commands} <= flags
    assert {("bench", "--csv"), ("bench", "--plot"), ("calibrate", "--plot"), ("visualize", "--output")} <= flags


def test_folders_to_write_are_looked_at_before_the_work(lifedeploy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for command, flag in (("export", "--output"), ("export", "--workspace"), ("train", "--workspace")):
        for place in ("file", "file/below", "x" * 300):
            assert "cannot be written" in refused(lifedeploy, command, flag, place)
    assert "is a file, and --workspace takes a folder" in refused(lifedeploy, "inspect", "--workspace", "file")


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("export", "--graph"),
        ("evaluate", "--on-error"),
        ("calibrate", "--ranges"),
        ("calibrate", "--method"),
        ("export", "--method"),
        ("train", "--method"),
        ("bench", "--mode"),
        ("bench", "--copies"),
        ("bench", "--cuda-binding"),
        ("bench", "--engine"),
        ("build-engine", "--engine"),
        ("evaluate", "--engine"),
        ("build-engine", "--remainder"),
        ("build-engine", "--attention"),
        ("build-engine", "--target"),
        ("train", "--precision"),
        ("train", "--name"),
    ],
)
def test_unknown_words_are_refused(command, flag, lifedeploy):
    for text in ("no/such", "a\nb", "", "y" * 100_000):
        refused(lifedeploy, command, flag, text)


def test_words_are_those_of_the_library():
    from lifedeploy.calibration import ranges
    from lifedeploy.cli.commands import build_engine, calibrate
    from lifedeploy.engines import registry
    from lifedeploy.typed import ATTENTIONS
    from lifedeploy.viz import style
    from lifedeploy.workflows import evaluate

    readers = {(case[0], case[1]): case[3] for case in ALL}
    assert tuple(ranges.THRESHOLDS) == calibrate._RANGES
    assert set(readers["evaluate", "on_error"].words) == set(evaluate.ON_ERROR)
    assert set(readers["build-engine", "attention"].words) == set(ATTENTIONS)
    assert paths.PICTURES == style.FORMATS
    help = typing.get_type_hints(build_engine.build_engine, include_extras=True)["engine"].__metadata__[0].help
    assert help.rstrip(".").replace(" or ", ", ").split(", ") == [registry.AUTO, *registry.names()]
    assert readers["train", "precision"].words == ("auto", "fp32", "bf16", "fp16")


def test_ranges_of_training_are_those_of_its_configuration():
    from lifedeploy.training.config import TrainConfig

    for command, name, _, value in NUMBERS:
        if command != "train" or name in ("max_pixels", "image_size", "counts", "drop_layers"):
            continue
        for bound, open_ in ends(value):
            if not open_:
                TrainConfig.from_dict({name: value(written(value, bound))})


@pytest.mark.parametrize("flag", ["--scale", "--ratio", "--keep-ramp"])
def test_a_list_of_two_takes_two(flag, lifedeploy):
    said = refused(lifedeploy, "train", flag, "0.75")
    assert said == f"error: {flag} 0.75 has 1 of its 2 numbers; expected as in 0.6,1"
    said = refused(lifedeploy, "train", flag, "0.8,0.9,1")
    assert said == f"error: {flag} has 3 numbers; at most 2 are allowed"


def test_numbers_are_refused_before_anything_heavy_is_loaded():
    script = (
        "import sys\nfrom lifedeploy.cli.app import main\n"
        "sys.argv = ['lifedeploy', 'export', '--batch-size', '1e26']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert ended.code == 2\n"
        "print([name for name in ('torch', 'numpy', 'onnx', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_two_outputs_are_two_files(tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "report.json")
    with pytest.raises(UsageError, match="--json and --csv are one file"):
        require_apart({"--json": tmp_path / "report.json", "--csv": link})
    require_apart({"--json": Path("/dev/null"), "--csv": Path("/dev/null"), "--plot": None})
    require_apart({"--json": Path("-"), "--csv": tmp_path / "report.csv"})


def test_what_is_read_is_not_written(tmp_path):
    for name in ("photo.png", "model.onnx", "model.json", "report.json", "list.txt"):
        (tmp_path / name).touch()
    require_apart({"--json": tmp_path / "report.json"}, [tmp_path])
    for name, given in (("photo.png", "photo.png"), ("list.txt", "list.txt")):
        with pytest.raises(UsageError, match="is read too, and would be replaced"):
            require_apart({"--plot": tmp_path / name}, [None, tmp_path / given])
    for name in ("photo.png", "model.onnx", "model.json"):
        with pytest.raises(UsageError, match="is a file of a model or of the data, and would be replaced"):
            require_apart({"--plot": tmp_path / name}, [tmp_path])
    with pytest.raises(UsageError, match="is a file of a model"):
        require_apart({"--json": tmp_path / "model.json"})


def test_a_report_does_not_take_the_place_of_its_model(workspace, lifedeploy):
    graph = next(workspace.glob("*/model.onnx"))
    for target in (graph, graph.with_suffix(".json")):
        before = target.read_bytes()
        assert "would be replaced" in refused(lifedeploy, "bench", str(graph.parent), "--json", str(target))
        assert target.read_bytes() == before
