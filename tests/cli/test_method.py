"""``--method``: which one is meant, and the options that it brings with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Annotated

import pytest
from msgspec import Meta

from lifedeploy import methods
from lifedeploy.cli import method_options
from tests import plugins


@dataclass(frozen=True)
class Clashing:
    batch_size: Annotated[int, Meta(ge=1)] = methods.option(1, "A name that export has itself.")


@dataclass(frozen=True)
class Listed:
    layers: tuple[int, ...] = methods.option((4, 7), "A type that no option has.")


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch):
    """``other`` of tests.plugins, or what is made of it, as an installed method."""

    def install(**changes: object) -> None:
        entry = plugins.entry("tests.plugins:OTHER")
        monkeypatch.setattr(methods, "plugins", lambda: {"other": (entry,)})
        monkeypatch.setattr(methods, "_loaded", lambda entry: replace(plugins.OTHER, **changes))

    return install


def only_line(ended) -> str:
    assert (ended.code, ended.out) == (2, "")
    errors = [line for line in ended.lines if not line.startswith("hint: ")]
    assert len(errors) == 1
    return errors[0]


def test_help_shows_the_options_of_the_method_that_the_line_names(lifedeploy, other):
    other()
    usual = lifedeploy("train", "--help").out
    assert "Options of life" in usual and "--temperature" in usual and "U of eq. 7.  [default: 1.5]" in usual
    assert "--temperature" not in lifedeploy("export", "--help").out  # it decides nothing but training
    for line in (("--method", "other"), ("--method=other",), ("--method", "life", "--method", "other")):
        shown = lifedeploy("export", *line, "--help").out
        assert "Options of other" in shown and "--sharpness" not in shown
        assert "--fuse" in shown and "--no-fuse" in shown and "[default: on]" in shown
        assert "--merged" in shown and "1<=x<=64" in shown and "mean|max" in shown
    trained = lifedeploy("train", "--method", "other", "--help").out
    assert "--sharpness" in trained and "Must be in (0, 10]." in trained and "--temperature" not in trained


@pytest.mark.parametrize("command", ["export", "train"])
@pytest.mark.parametrize("name", methods.names(methods.SLIMMED))
def test_no_option_of_a_method_is_called_like_one_of_a_command(command, name, lifedeploy):
    ended = lifedeploy(command, "--method", name, "--help")
    assert (ended.code, ended.err) == (0, "")
    for option in methods.get(name).option_fields(training=command == "train"):
        assert f"-{option.replace('_', '-')} " in " ".join(ended.out.split()), option


@pytest.mark.parametrize("command", ["export", "train", "calibrate"])
def test_an_unknown_method_is_refused_with_near_names_and_the_list(command, lifedeploy):
    ended = lifedeploy(command, "--method", "lief")
    assert only_line(ended).startswith("error: method 'lief' is unknown; there are: life")
    assert ended.lines[1].startswith("hint: did you mean life?")


def test_what_every_export_holds_is_no_method_to_slim_by(lifedeploy):
    for name, role in (("dense", "baseline"), ("first-k", "bound")):
        said = only_line(lifedeploy("export", "--method", name))
        assert said == (
            f"error: {name} is no method to slim a model by, but the {role} that every export holds; "
            f"there are: {', '.join(methods.names(methods.SLIMMED))}"
        )
    assert "first-k" in only_line(lifedeploy("train", "--method", "first-k"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("export", "--method", "other", "--merged", "0"), "Invalid value for '--merged': 0 is not allowed"),
        (("export", "--method", "other", "--merged", "nan"), "Invalid value for '--merged': nan is not allowed"),
        (("export", "--method", "other", "--pooled-by", "sum"), "--pooled-by 'sum' is unknown; there are: mean, max"),
        (("export", "--method", "other", "--sharpness", "1"), "No such option: --sharpness"),
        (("train", "--method", "other", "--sharpness", "0"), "--sharpness': 0 is not allowed; it must be in (0, 10]"),
        (("export", "--no-fuse"), "life has no option --no-fuse; it is one of evit, other"),
        (("export", "--method", "topk", "--fuse"), "topk has no option --fuse; it is one of evit, other"),
        (("export", "--method", "topk", "--draw", "1"), "topk has no option --draw; it is one of random"),
        (("train", "--method", "dense", "--temperature=2"), "dense has no option --temperature; it is one of life"),
        (("export", "--temperature", "2"), "No such option: --temperature"),  # which export takes of no method
        (("export", "--spiral"), "No such option: --spiral"),
        (("export", "--method", "evitt"), "method 'evitt' is unknown; there are: life, evit, "),
        (("export", "--method", "random", "--draw", "-1"), "Invalid value for '--draw': -1 is not allowed"),
        (("export", "--method", "evit", "--graph", "order-once"), "evit chooses anew at every drop, so its graph"),
        (("export", "--method", "evit", "--counts", "9,5,1"), "evit keeps 1 patch token after layer 5, which would"),
        (
            ("export", "--method", "dynamicvit", "--rho", "0.1"),
            "keep rate 0.1 leaves 0 of 100 patch tokens after layer 4; at least 1 is needed",
        ),
        (("train", "--temperature", "0"), "Invalid value for '--temperature': 0 is not allowed"),
        (
            ("export", "--method", "other", "--counts", "8,4,2"),
            "other takes no token counts: a keep rate",
        ),
        (("export", "--method", "other", "--graph", "order-once"), "other chooses anew at every drop, so its graph"),
        (("export", "--method", "other", "--with-life"), "other predicts no lives, so its graph can give none"),
    ],
)
def test_what_a_method_does_not_take_is_refused_before_anything_is_written(
    line, said, lifedeploy, other, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    other()
    assert said in only_line(lifedeploy(*line, "--backbone", "test_vit", "--weights", "random"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", methods.names(methods.SLIMMED))
def test_a_backbone_without_cls_is_refused_whatever_the_method(method, lifedeploy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ("export", "--method", method, "--backbone", "vit_base_patch16_siglip_224", "--weights", "random")
    assert "has no CLS token (it pools by 'map'), and patches are scored against CLS" in only_line(lifedeploy(*line))
    assert list(tmp_path.iterdir()) == []


def test_an_option_of_another_method_is_said_with_where_it_is(lifedeploy):
    ended = lifedeploy("export", "--no-fuse")
    assert ended.lines == [
        "error: life has no option --no-fuse; it is one of evit",
        "hint: lifedeploy export --method evit --help",
    ]
    assert "--no-fuse" in lifedeploy("export", "--method", "evit", "--help").out


def test_options_of_a_method_that_cannot_be_used_are_not_looked_for(lifedeploy, monkeypatch):
    entries = {"broken": (plugins.entry("tests.plugins:NOTHING", "broken"),)}
    monkeypatch.setattr(methods, "plugins", lambda: entries)
    assert only_line(lifedeploy("export", "--no-fuse")) == "error: life has no option --no-fuse; it is one of evit"


def test_a_backbone_with_more_in_front_than_a_method_protects_is_refused(lifedeploy, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other(prefix=1)
    line = ("export", "--method", "other", "--backbone", "deit_tiny_distilled_patch16_224", "--weights", "random")
    said = only_line(lifedeploy(*line))
    assert "other protects 1 token in front of the patches, and deit_tiny_distilled_patch16_224 has 2" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "said"), [(Clashing, "an option --batch-size, which"), (Listed, "its option layers")])
def test_options_that_no_line_can_have_are_refused(kind, said, lifedeploy, other):
    other(options=kind)
    line = only_line(lifedeploy("export", "--method", "other"))
    assert said in line and "method other of" in line


def test_the_values_of_a_line_reach_the_request_and_none_of_an_earlier_line(lifedeploy, other, monkeypatch):
    other()
    seen = []
    monkeypatch.setattr("lifedeploy.workflows.export.export", lambda request, *rest: seen.append(request) or 1 / 0)
    lifedeploy("export", "--method", "other", "--no-fuse", "--merged", "3", "--pooled-by", "max")
    lifedeploy("export", "--method", "other", "--fuse")
    lifedeploy("export")
    assert [(request.model.method, dict(request.model.options)) for request in seen] == [
        ("other", {"fuse": False, "merged": 3, "pooled_by": "max"}),
        ("other", {"fuse": True}),
        ("life", {}),
    ]
    assert method_options.given() == {}


def test_options_of_a_file_and_of_the_line_go_together(lifedeploy, other, tmp_path, monkeypatch):
    other()
    seen = []
    monkeypatch.setattr("lifedeploy.workflows.train.train", lambda request, *rest: seen.append(request.config) or 1 / 0)
    (tmp_path / "c.toml").write_text('method = "other"\n[options]\nmerged = 5\nfuse = false\n')
    (tmp_path / "old.toml").write_text("temperature = 3.0\nkeep_rate = 0.6\n")
    config = tmp_path / "c.toml"
    lifedeploy("train", "--config", config, "--method", "other", "--merged", "6", "--data", tmp_path)
    lifedeploy("train", "--config", config, "--method", "life", "--temperature", "2", "--data", tmp_path)
    lifedeploy("train", "--config", tmp_path / "old.toml", "--data", tmp_path)
    lifedeploy("train", "--config", config, "--merged", "7", "--data", tmp_path)  # of the method that the file names
    assert [(config.method, config.options) for config in seen] == [
        ("other", {"merged": 6, "fuse": False}),
        ("life", {"temperature": 2.0}),
        ("life", {"temperature": 3.0}),
        ("other", {"merged": 7, "fuse": False}),
    ]


def test_calibrate_takes_the_newest_export_of_a_method_and_knows_its_old_words(lifedeploy, workspace, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lifedeploy.workflows.calibrate.calibrate", lambda request, *rest: seen.append(request) or 1 / 0
    )
    export = next(workspace.glob("*/model.json"))
    for line in (
        ("--ranges", "entropy"),
        ("--method", "percentile"),
        ("--method", "life"),
        (export.parent, "--method", "life"),
        (),
    ):
        lifedeploy("calibrate", *line, "--data", workspace)
    assert [(request.model, request.recipe.ranges) for request in seen] == [
        (None, "entropy"),
        (None, "percentile"),
        (export.relative_to(workspace.parent), "minmax"),
        (export.parent, "minmax"),
        (None, "minmax"),
    ]
    said = only_line(lifedeploy("calibrate", "--method", "percentile", "--ranges", "entropy", "--data", workspace))
    assert "--method percentile and --ranges entropy exclude each other" in said


def test_calibrate_of_a_method_that_was_not_exported_says_so(lifedeploy, workspace, other):
    other()
    ended = lifedeploy("calibrate", "--method", "other", "--data", workspace)
    assert ended.code == 1 and ended.lines[0] == "error: no exported model of other in artifacts/"
    assert ended.lines[1] == "hint: run: lifedeploy export --backbone deit_s --method other --rho 0.7"
    export = next(workspace.glob("*/model.json")).parent
    ended = lifedeploy("calibrate", export, "--method", "other", "--data", workspace)
    assert ended.code == 1 and "is an export of life, and --method is other" in ended.lines[0]


def test_doctor_lists_the_methods_and_says_what_is_wrong_with_one(lifedeploy, monkeypatch):
    entries = {"other": (plugins.entry("tests.plugins:NOTHING"),)}
    monkeypatch.setattr(methods, "plugins", lambda: entries)
    ended = lifedeploy("doctor", "--json", "-")
    listed = {method["name"]: method for method in json.loads(ended.out)["methods"]}
    assert listed["life"] == {"name": "life", "title": "LifeViT", "package": "lifedeploy", "problem": ""}
    assert "tests.plugins:NOTHING cannot be imported" in listed["other"]["problem"]
