"""The table of methods: what a row says and refuses, and how rows of other packages come into it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from lifedeploy import methods
from lifedeploy.cost import Cost, Work
from lifedeploy.errors import ScheduleError, UnsupportedModelError, UsageError
from lifedeploy.methods import BASELINE, BOUND, SLIMMED, Method, NoOptions, TrainingStage
from lifedeploy.schedule import Schedule
from tests.plugins import OTHER, AnotherEntry, OtherOptions, entry

Plug = Callable[..., None]
BUILT_IN = [methods.get(name) for name in methods.names() if methods.built_in(name)]
LIFE, DENSE, FIRST_K = (methods.get(name) for name in ("life", "dense", "first-k"))


def listed(*roles: str) -> str:
    """The built-in methods, or those of some roles, as messages list them."""
    return ", ".join(row.name for row in BUILT_IN if not roles or row.role in roles)


@pytest.fixture(autouse=True)
def plug(plugged: Plug) -> Plug:
    """Only what a test adds is there."""
    return plugged


def refusal(call: Callable[[], object], error: type[UsageError] = UsageError) -> UsageError:
    """The error of ``call``: one line that prints."""
    with pytest.raises(error) as refused:
        call()
    assert refused.value.message.isprintable() and len(refused.value.message) < 700
    assert refused.value.exit_code == 2
    return refused.value


# --- the table --------------------------------------------------------------------------------------------------


def test_the_built_in_methods_and_their_roles():
    slimmed = (
        *("life", "evit", "topk", "dynamicvit", "evo-vit", "tome", "avit", "avit-ranked", "ia-red2", "random", "plain"),
    )
    assert methods.names() == (*slimmed, "dense", "first-k")
    assert methods.ROLES == (SLIMMED, BASELINE, BOUND)
    assert [methods.names(role) for role in methods.ROLES] == [slimmed, ("dense",), ("first-k",)]
    assert methods.names(SLIMMED, BASELINE) == (*slimmed, "dense")
    assert all(methods.get(name).role == methods.role_of(name) for name in methods.names())
    assert methods.get(methods.DEFAULT) is LIFE
    assert (methods.baseline(), methods.bound()) == (DENSE, FIRST_K)


def test_an_export_of_a_method_holds_its_baseline_and_its_bound():
    assert methods.variants(LIFE) == (LIFE, DENSE, FIRST_K)
    assert [method.stem for method in methods.variants(OTHER)] == ["model", "dense", "first-k"]


def test_what_the_rows_of_the_built_in_methods_say():
    facts = {
        row.name: (row.selection, row.inside, row.predicts_lives, row.derives, [stage.name for stage in row.stages])
        for row in BUILT_IN
    }
    assert facts == {
        "life": ("once", False, True, True, ["predictor", "backbone"]),
        "evit": ("every drop", True, False, False, ["backbone"]),
        "topk": ("every drop", True, False, False, ["backbone"]),
        "dynamicvit": ("every drop", False, False, False, ["predictor", "backbone"]),
        "evo-vit": ("every drop", False, False, False, ["backbone"]),
        "tome": ("every drop", True, False, False, ["backbone"]),
        "avit": ("none", False, True, False, ["backbone"]),
        "avit-ranked": ("every drop", False, False, False, ["backbone"]),
        "ia-red2": ("every drop", False, False, False, ["interpreter", "backbone"]),
        "random": ("once", False, False, True, ["backbone"]),
        "plain": ("none", False, False, False, []),
        "dense": ("none", False, False, False, ["dense"]),
        "first-k": ("none", False, False, False, []),
    }
    assert [row.name for row in BUILT_IN if row.trains_reducer] == ["life", "dynamicvit", "ia-red2"]
    assert {row.package for row in BUILT_IN} == {"lifedeploy"}
    gate = {"gate_scale": 10.0, "gate_center": -1.0}
    gate |= {"ponder_weight": 5e-4, "prior_weight": 1e-3, "halting_depth": 2 / 3}
    assert {row.name: row.plain_options({}) for row in BUILT_IN if row.options is not NoOptions} == {
        "life": {"temperature": 1.5},
        "evit": {"fuse": True},
        "dynamicvit": {"ratio_weight": 2.0},
        "tome": {"r": "", "inflect": 0.0},
        "avit": gate,
        "avit-ranked": gate,
        "random": {"draw": 0},
        "first-k": {"inside": False},
    }
    assert {row.name: row.fate for row in BUILT_IN if row.fate != "dropped"} == {
        "evo-vit": "parked",
        "tome": "merged",
        "avit": "halted",
    }
    assert {row.name: (row.takes_keep_rate, row.takes_counts) for row in BUILT_IN if row.own_budget} == {
        "evo-vit": (False, False),
        "tome": (True, False),
        "avit": (False, False),
        "plain": (False, False),
    }
    assert [row.name for row in BUILT_IN if row.last_block == "full"] == ["evo-vit", "plain"]
    assert [row.name for row in BUILT_IN if row.has_parameters] == ["life", "dynamicvit", "ia-red2"]


def test_a_method_that_is_not_known_here_is_one_that_slims():
    assert methods.role_of("of-somebody") == SLIMMED
    assert (methods.title_of("life"), methods.title_of("of-somebody")) == ("LifeViT", "of-somebody")


# --- by name ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "roles", "hint"),
    [
        ("lief", (), "did you mean life?"),
        ("Dense", (), "did you mean dense?"),
        ("first_k", (), "did you mean first-k?"),
        ("denser", (SLIMMED,), None),  # what it is near to is of another role
        ("denser", (SLIMMED, BASELINE), "did you mean dense?"),
        ("sparse", (), None),
        ("", (), None),
        ("\x1b[31m", (), None),
        ("x" * 10**6, (), None),
    ],
    ids=lambda value: value[:10] if isinstance(value, str) else None,
)
def test_an_unknown_method_is_refused_with_those_there_are_and_near_names(name, roles, hint):
    error = refusal(lambda: methods.get(name, *roles))
    assert re.fullmatch(rf"method '.*' is unknown; there are: {listed(*roles)}", error.message)
    assert error.hint == hint
    assert len(name) > 100 or repr(name) in error.message


@pytest.mark.parametrize(
    ("name", "roles", "role"), [("dense", (SLIMMED,), "baseline"), ("first-k", (SLIMMED, BASELINE), "bound")]
)
def test_a_method_of_another_role_is_refused_with_those_of_this_one(name, roles, role):
    assert refusal(lambda: methods.get(name, *roles)).message == (
        f"{name} is no method to slim a model by, but the {role} that every export holds; there are: {listed(*roles)}"
    )


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({}, OtherOptions()),
        ({"merged": 64, "fuse": False}, OtherOptions(merged=64, fuse=False)),
        ({"pooled_by": "max", "sharpness": 10}, OtherOptions(pooled_by="max", sharpness=10.0)),
    ],
)
def test_options_are_those_given_and_else_the_usual_ones(given, settled):
    assert OTHER.settle(given) == settled
    assert OTHER.plain_options(given) == {
        "merged": settled.merged,
        "fuse": settled.fuse,
        "pooled_by": settled.pooled_by,
        "sharpness": settled.sharpness,
    }
    assert type(OTHER.settle(given).sharpness) is float


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        (OTHER, {"colour": 1}, "'colour' is no option of other; there are: merged, fuse, pooled_by, sharpness"),
        (LIFE, {"merged": 8}, "'merged' is no option of life; there are: temperature"),
        (DENSE, {"temperature": 1.5}, "'temperature' is no option of dense; it has none"),
        (OTHER, {"\x1b[31m": 1}, r"'\x1b[31m' is no option of other; there are: merged, fuse, pooled_by, sharpness"),
        (OTHER, {3: 1}, "3 is no option of other; there are: merged, fuse, pooled_by, sharpness"),
        (OTHER, {"merged": 0}, "merged is 0: expected int >= 1"),
        (OTHER, {"merged": 65}, "merged is 65: expected int <= 64"),
        (OTHER, {"merged": 8.5}, "merged is 8.5: expected int, got float"),
        (OTHER, {"merged": True}, "merged is True: expected int, got bool"),
        (OTHER, {"merged": "8"}, "merged is '8': expected int, got str"),
        (OTHER, {"merged": None}, "merged is None: expected int, got null"),
        (OTHER, {"merged": 10**5000}, "merged is a int: expected int <= 64"),
        (OTHER, {"merged": [1, 2]}, "merged is [1, 2]: expected int, got array"),
        (OTHER, {"fuse": 1}, "fuse is 1: expected bool, got int"),
        (OTHER, {"pooled_by": "sum"}, "pooled_by is 'sum': expected one of mean, max"),
        (OTHER, {"pooled_by": 1}, "pooled_by is 1: expected one of mean, max"),
        (OTHER, {"sharpness": 0}, "sharpness is 0: expected float > 0.0"),
        (OTHER, {"sharpness": float("inf")}, "sharpness is inf: expected float <= 10.0"),
        (LIFE, {"temperature": float("nan")}, "temperature is nan: expected float >= 0.001"),
        (LIFE, {"temperature": 1e4}, "temperature is 10000.0: expected float <= 1000.0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_what_is_expected(method, given, said):
    assert refusal(lambda: method.settle(given)).message == said
    assert refusal(lambda: method.plain_options(given)).message == said


def test_which_options_a_command_takes():
    assert list(OTHER.option_fields(training=True)) == ["merged", "fuse", "pooled_by", "sharpness"]
    assert list(OTHER.option_fields(training=False)) == ["merged", "fuse", "pooled_by"]
    assert list(LIFE.option_fields(training=False)) == list(DENSE.option_fields(training=True)) == []
    item, kind = OTHER.option_fields(training=True)["merged"]
    assert (item.default, item.metadata["help"], item.metadata["training"]) == (8, "Tokens merged in a layer.", False)
    assert kind.__metadata__[0].le == 64


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({}, ""),
        ({"merged": 8, "fuse": True, "pooled_by": "mean", "sharpness": 2.0}, ""),
        ({"merged": 16}, "merged16"),
        ({"fuse": False}, "no-fuse"),
        ({"pooled_by": "max"}, "pooled-bymax"),
        ({"sharpness": 9.0}, ""),  # nothing that the graph would show
        ({"fuse": False, "merged": 1, "sharpness": 9.0}, "merged1-no-fuse"),
    ],
)
def test_what_is_unusual_in_a_graph_is_in_its_label(options, label):
    assert OTHER.label(options) == label


def test_an_option_that_is_usually_off_is_named_where_it_is_on():
    @dataclass(frozen=True)
    class Options:
        hard: bool = methods.option(False, "Whether.")
        keep: float = methods.option(0.5, "How much.")

    row = replace(OTHER, options=Options)
    assert (row.label({"hard": True}), row.label({"keep": 0.25})) == ("hard", "keep0.25")


def test_the_bound_beside_a_method_cuts_where_the_method_drops():
    inside = replace(OTHER, inside=True)
    assert [LIFE.options_beside(other) for other in methods.variants(LIFE)] == [{}, {}, {"inside": False}]
    assert [inside.options_beside(other) for other in methods.variants(inside)] == [{}, {}, {"inside": True}]


# --- schedules --------------------------------------------------------------------------------------------------


def test_a_method_makes_its_schedule_of_a_rate_or_of_counts():
    assert LIFE.make_schedule(196, 12, keep_rate=0.7) == Schedule.from_keep_rate(196, 12, 0.7)
    assert LIFE.make_schedule(16, 6, counts=(9, 5), drop_layers=(1, 2)) == Schedule.from_counts(16, 6, (9, 5), (1, 2))
    assert LIFE.make_schedule(196, 24, counts=(9, 8, 7)).drop_layers == (8, 14, 20)


def test_a_method_may_have_a_budget_and_drop_layers_of_its_own():
    assert OTHER.make_schedule(196, 12, keep_rate=0.8) == Schedule.from_keep_rate(196, 12, 0.4, (3, 6, 9))
    assert OTHER.make_schedule(196, 24, keep_rate=0.8).drop_layers == (6, 12, 18)
    assert OTHER.make_schedule(196, 12, keep_rate=0.8, drop_layers=(5,)).tokens == (196,) * 5 + (78,) * 7
    assert OTHER.make_schedule(196, 12, keep_rate=0.8, options={"fuse": False}).keep_rate == 0.2
    assert replace(OTHER, takes_counts=True).make_schedule(16, 12, counts=(9, 5, 3)).drop_layers == (3, 6, 9)


def test_options_and_keep_rates_that_cannot_be_make_no_schedule():
    error = refusal(lambda: OTHER.make_schedule(196, 12, keep_rate=0.8, options={"fuse": 1}))
    assert error.message == "fuse is 1: expected bool, got int"
    # Before the method sees it: what it makes of a rate is its own business, which rates there are is not.
    for rate in (0.0, 1.5, -1.0, float("nan")):
        error = refusal(lambda rate=rate: OTHER.make_schedule(196, 12, keep_rate=rate), ScheduleError)
        assert error.message == f"keep rate {rate:g} is out of range: it must be in (0, 1]"


def test_counts_of_a_method_that_takes_none_are_refused():
    error = refusal(lambda: OTHER.make_schedule(196, 12, counts=(9, 5, 3)), ScheduleError)
    assert error.message == "other takes no token counts: a keep rate"
    assert error.hint == "--rho"
    half = replace(OTHER, own_budget="half of the patches")
    error = refusal(lambda: half.make_schedule(196, 12, counts=(9, 5, 3)), ScheduleError)
    assert (error.message, error.hint) == ("other takes no token counts: half of the patches", "--rho")
    error = refusal(lambda: replace(half, takes_keep_rate=False).make_schedule(196, 12, counts=(9,)), ScheduleError)
    assert error.hint == "leave them out"


def halved(patches, depth, keep_rate, drop_layers, options):
    return Schedule.from_counts(patches, depth, (patches // 2,) * len(drop_layers), drop_layers)


def test_a_keep_rate_of_a_method_that_takes_none_is_refused():
    half = replace(OTHER, own_budget="half of the patches", takes_keep_rate=False, schedule=halved)
    error = refusal(lambda: half.make_schedule(196, 12, keep_rate=0.7), ScheduleError)
    assert (error.message, error.hint) == ("other takes no keep rate: half of the patches", "leave it out")
    with pytest.raises(UsageError, match="it takes no keep rate, and has no budget of its own"):
        replace(OTHER, takes_keep_rate=False)
    with pytest.raises(UsageError, match="it has a budget of its own, and no schedule that makes it"):
        replace(LIFE, own_budget="half of the patches")
    assert half.make_schedule(196, 12).counts == (98, 98, 98)


def test_behind_the_last_layer_nothing_is_dropped_but_inside_it():
    error = refusal(lambda: LIFE.make_schedule(196, 12, keep_rate=0.7, drop_layers=(4, 12)), ScheduleError)
    assert error.message == (
        "drop layer 12 is out of range: life drops behind a layer, and behind the last of 12 there is none; 1 to 11 "
        "are allowed"
    )
    inside = methods.get("topk").make_schedule(196, 12, keep_rate=0.7, drop_layers=(4, 12))
    assert (inside.tokens, inside.last, inside.counts) == ((196,) * 4 + (137,) * 8, 96, (137, 96))
    error = refusal(
        lambda: methods.get("topk").make_schedule(196, 12, keep_rate=0.7, drop_layers=(4, 13)), ScheduleError
    )
    assert error.message == "drop layer 13 is out of range: this backbone has 12 layers, so 1 to 12 are allowed"


def test_a_fate_that_is_none_is_refused():
    with pytest.raises(UsageError, match="method 'other' cannot be: its fate 'burnt' is unknown"):
        replace(OTHER, fate="burnt")


def test_drop_layers_may_be_made_of_the_number_of_layers():
    every = replace(OTHER, drop_layers=lambda depth: range(1, depth))
    assert every.default_drop_layers(6) == (1, 2, 3, 4, 5)
    broken = replace(OTHER, drop_layers=lambda depth: 1 / 0, package="lifedeploy-other 1.2")
    assert "its drop_layers fails with ZeroDivisionError" in refusal(lambda: broken.default_drop_layers(6)).message


# --- what it applies to -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [None, 5, 2])
def test_prefix_tokens_that_a_method_protects_are_taken(most):
    row = replace(OTHER, prefix=most)
    for prefix in (0, 1, 2):
        row.require_prefix(prefix, "deit_s")


@pytest.mark.parametrize(
    ("most", "said"), [(1, "other protects 1 token in"), (2, "other protects 2 tokens in"), (0, "protects 0 tokens in")]
)
def test_more_prefix_tokens_than_a_method_protects_are_refused(most, said):
    error = refusal(lambda: replace(OTHER, prefix=most).require_prefix(5, "dinov2"), UnsupportedModelError)
    assert said in error.message
    assert error.message.endswith(" front of the patches, and dinov2 has 5 (CLS, distillation, registers)")


def test_which_orderings_a_graph_may_have():
    assert LIFE.orderings == DENSE.orderings == FIRST_K.orderings == ("order-once", "per-stage")
    assert OTHER.orderings == ("per-stage",)
    for form in LIFE.orderings:
        LIFE.require_ordering(form)
    OTHER.require_ordering("per-stage")


@pytest.mark.parametrize(
    ("method", "form", "said"),
    [
        (LIFE, "spiral", "graph form 'spiral' is unknown; there are: order-once, per-stage"),
        (OTHER, "spiral", "graph form 'spiral' is unknown; there are: order-once, per-stage"),
        (LIFE, "", "graph form '' is unknown; there are: order-once, per-stage"),
        (
            OTHER,
            "order-once",
            "other chooses anew at every drop, so its graph cannot be order-once; expected per-stage",
        ),
    ],
)
def test_a_form_that_a_graph_cannot_have_is_refused(method, form, said):
    assert refusal(lambda: method.require_ordering(form)).message == said


# --- rows that cannot be ----------------------------------------------------------------------------------------


@dataclass
class Thawed:
    """Not frozen."""

    merged: int = 1


@dataclass(frozen=True)
class Without:
    """Without a default."""

    merged: int


STAGE = TrainingStage("one", reducer=True, backbone=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Other Method"}, "method 'Other Method' cannot be: its name 'Other Method' is no lower-case word"),
        ({"name": "x" * 41}, "is no lower-case word"),
        ({"role": "winner"}, "method 'other' cannot be: its role 'winner' is unknown"),
        ({"reducer": "module.Class"}, "method 'other' cannot be: its reducer 'module.Class' is no MODULE:CLASS"),
        ({"options": Thawed}, "method 'other' cannot be: its options are no frozen dataclass"),
        ({"options": dict}, "method 'other' cannot be: its options are no frozen dataclass"),
        ({"options": Without}, "method 'other' cannot be: an option of it has no default"),
        ({"stages": (STAGE,) * 3}, "method 'other' cannot be: it has 3 stages of training; expected 0 to 2"),
        ({"stem": "other"}, "method 'other' cannot be: a slimmed model's files are called model"),
        ({"derives": True}, "cannot be: only what ranks once, and drops behind a layer, has baselines in its graph"),
        (
            {"derives": True, "selection": "once", "inside": True},
            "method 'other' cannot be: only what ranks once, and drops behind a layer, has baselines in its graph",
        ),
    ],
)
def test_a_row_that_cannot_be_is_refused(changes, said):
    assert said in refusal(lambda: replace(OTHER, **changes)).message


# --- methods of other packages ----------------------------------------------------------------------------------


def test_a_method_of_another_package_is_as_good_as_a_built_in_one(plug):
    plug(entry("tests.plugins:OTHER"))
    assert methods.names() == (*(row.name for row in BUILT_IN), "other")
    assert methods.names(SLIMMED) == (*(row.name for row in BUILT_IN if row.role == SLIMMED), "other")
    found = methods.get("other", SLIMMED)
    assert found == replace(OTHER, package="lifedeploy-other 1.2")
    assert methods.get("other") is found
    assert (methods.role_of("other"), methods.title_of("other")) == (SLIMMED, "Somebody's method")
    assert refusal(lambda: methods.get("othre")).hint == "did you mean other?"
    assert f"there are: {listed(SLIMMED)}, other" in refusal(lambda: methods.get("dense", SLIMMED)).message


def test_nothing_of_a_method_is_imported_before_it_is_asked_for(plug, tmp_path, monkeypatch):
    added(tmp_path, monkeypatch, "from tests.plugins import OTHER")
    plug(entry("added_method:OTHER"), entry("tests.nowhere:OTHER", "aardvark"))
    assert methods.names() == (*(row.name for row in BUILT_IN), "aardvark", "other")
    assert methods.role_of("other") == SLIMMED
    assert methods.get("life") is LIFE
    assert "added_method" not in sys.modules
    assert methods.get("other").title == "Somebody's method"
    assert "added_method" in sys.modules


def added(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A module ``added_method``, that is imported anew."""
    (folder / "added_method.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "added_method", None)
    monkeypatch.delitem(sys.modules, "added_method")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module_at_all", "cannot be imported: No module named 'no_such_module_at_all'"),
        ("raise ImportError('libfast.so: cannot open')", "cannot be imported: libfast.so: cannot open"),
        ("raise SystemExit(3)", "cannot be imported: 3"),
        ("raise SystemExit", "cannot be imported: SystemExit"),
        ("1 / 0", "cannot be imported: division by zero"),
        ("OTHER = (", "cannot be imported: '(' was never closed"),
        ("raise ValueError('two\\nlines\\x1b[31m')", "cannot be imported: two"),
        ("", "cannot be imported: module 'added_method' has no attribute 'OTHER'"),
    ],
)
def test_a_method_whose_import_fails_is_one_line(plug, tmp_path, monkeypatch, code, said):
    added(tmp_path, monkeypatch, code)
    plug(entry("added_method:OTHER"))
    error = refusal(lambda: methods.get("other"))
    assert error.message.startswith(
        f"method 'other' of lifedeploy-other 1.2 cannot be used: added_method:OTHER {said}"
    ), error.message
    assert methods.get("life") is LIFE  # the others are as they were
    assert methods.title_of("other") == "other"


def test_a_row_of_another_package_that_cannot_be_is_said_with_whose_it_is(plug, tmp_path, monkeypatch):
    added(
        tmp_path,
        monkeypatch,
        "from dataclasses import replace\nfrom tests import plugins\nOTHER = replace(plugins.OTHER, stem='x')",
    )
    plug(entry("added_method:OTHER"))
    assert refusal(lambda: methods.get("other")).message == (
        "method 'other' of lifedeploy-other 1.2 cannot be used: method 'other' cannot be: a slimmed model's files are "
        "called model"
    )


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("tests.plugins:NO_METHOD", "tests.plugins:NO_METHOD is a dict; expected a lifedeploy.methods.Method"),
        ("tests.plugins:OtherOptions", "tests.plugins:OtherOptions is a type; expected a lifedeploy.methods.Method"),
        ("tests.plugins", "tests.plugins is a module; expected a lifedeploy.methods.Method"),
        ("tests.plugins:LIFE", "its row is called 'life'"),
        ("tests.plugins:BASELINE", "its role is baseline; expected slimmed"),
    ],
)
def test_what_is_no_method_to_slim_by_under_its_own_name_is_refused(plug, place, said):
    plug(entry(place))
    assert refusal(lambda: methods.get("other")).message == (
        f"method 'other' of lifedeploy-other 1.2 cannot be used: {said}"
    )


@pytest.mark.parametrize(
    ("entries", "name", "owners"),
    [
        (
            (entry("tests.plugins:OTHER"), entry("tests.nowhere:X", kind=AnotherEntry)),
            "other",
            "of lifedeploy-other 1.2 and of lifedeploy-another 0.3",
        ),
        ((entry("tests.plugins:LIFE", "life"),), "life", "of lifedeploy itself and of lifedeploy-other 1.2"),
        ((entry("tests.plugins:BASELINE", "dense"),), "dense", "of lifedeploy itself and of lifedeploy-other 1.2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_name_that_is_there_twice_is_refused_with_both_owners(plug, entries, name, owners):
    plug(*entries)
    error = refusal(lambda: methods.get(name))
    assert error.message == f"method '{name}' is there more than once: {owners}"
    assert error.hint == "uninstall a package that adds it"
    assert methods.names().count(name) == 1


def test_an_entry_of_no_package_goes_by_its_place(plug):
    plug(entry("tests.plugins:OTHER", kind=EntryPoint))
    assert methods.get("other").package == "tests.plugins:OTHER"


def test_work_of_a_method_is_made_of_its_options():
    cost = Cost(
        embed=1, keys=(1,) * 4, queries=(0,) * 4, pairs=(1,) * 4, mlp=(1,) * 4, head=1, prefix=1, width=10, heads=2
    )
    schedule = Schedule.from_counts(16, 4, (11,), (2,))
    assert OTHER.work(schedule, OTHER.settle({"merged": 3}), cost) == Work.of(schedule, 30)
    assert LIFE.work(schedule, LIFE.settle({}), cost) == Work.of(schedule, 10 * 10 + 10 * 16)
    assert FIRST_K.work(schedule, FIRST_K.settle({}), cost) == Work.of(schedule)
    inside = FIRST_K.work(schedule, FIRST_K.settle({"inside": True}), cost)
    assert inside == Work((16, 16, 11, 11), (16, 11, 11, 11))
    assert DENSE.work(schedule, NoOptions(), cost) == Work.dense(schedule)


def test_a_broken_method_says_whose_it_is():
    row: Any = replace(OTHER, package="lifedeploy-other 1.2")
    assert row.broken("it is old").message == "method other of lifedeploy-other 1.2 cannot be used: it is old"
    assert isinstance(row, Method)


COST = Cost(
    embed=1, keys=(1,) * 12, queries=(0,) * 12, pairs=(1,) * 12, mlp=(1,) * 12, head=1, prefix=1, width=4, heads=2
)

# --- what a row of another package may get wrong ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("cosine", "pooled-bycosine"),
        ("../../x", "pooled-by-"),
        ("a/b", "pooled-by-"),
        ("é" * 200, "pooled-by-"),
        ("x" * 33, "pooled-by-"),
        ("", "pooled-by-"),
    ],
)
def test_an_option_in_the_name_of_a_folder_is_one_short_plain_word(value, word):
    label = OTHER.label({"pooled_by": value})
    assert re.fullmatch(r"[A-Za-z0-9.-]{1,60}", label)
    assert re.fullmatch(word if word[-1] != "-" else word + "[0-9a-f]{8}", label)


@dataclass(frozen=True)
class OutOfRange:
    merged: Annotated[int, Meta(ge=5)] = methods.option(1, "A default that it does not take itself.")


@dataclass(frozen=True)
class Hidden:
    debug: bool = methods.option(False, "A flag of every command.")


@dataclass(frozen=True)
class Ambiguous:
    fuse: bool = methods.option(True, "Its opposite is --no-fuse.")
    no_fuse: bool = methods.option(False, "And so is this.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"selection": "sometimes"}, "its selection 'sometimes' is unknown"),
        ({"stages": (replace(STAGE, name="../x"),)}, "a stage of it trains nothing, or is called what no file can be"),
        ({"stages": (replace(STAGE, reducer=False, backbone=False),)}, "a stage of it trains nothing"),
        ({"stages": (STAGE, STAGE)}, "two stages of it have one name"),
        ({"work": None}, "its work or its schedule is no function"),
        ({"derives": True, "selection": "once", "inside": True}, "only what ranks once, and drops behind a layer"),
        ({"options": OutOfRange}, "by default merged is 1: expected int >= 5"),
        ({"options": Hidden}, "an option cannot be called 'debug'"),
        ({"options": Ambiguous}, "an option cannot be called 'no_fuse'"),
    ],
)
def test_a_row_that_nothing_could_be_made_of_is_refused(changes, said):
    assert said in refusal(lambda: replace(OTHER, **changes)).message


def made(schedule: Schedule) -> Callable[..., Schedule]:
    return lambda *given: schedule


@pytest.mark.parametrize(
    "schedule",
    [
        made(Schedule.dense(25, 12)),
        made(Schedule.dense(16, 11)),
        lambda *given: None,
        lambda *given: 1 / 0,
        lambda *given: sys.exit(7),
    ],
)
def test_a_schedule_that_is_none_of_this_backbone_is_the_methods_fault(schedule):
    other = replace(OTHER, schedule=schedule, package="lifedeploy-other 1.2")
    said = refusal(lambda: other.make_schedule(16, 12, keep_rate=0.7)).message
    assert said.startswith("method other of lifedeploy-other 1.2 cannot be used: its schedule ")


@pytest.mark.parametrize(
    "work",
    [
        lambda *given: Work((16,) * 11, (16,) * 12),
        lambda *given: Work((16,) * 12, (17,) * 12),
        lambda *given: Work((16,) * 12, (-1,) * 12),
        lambda *given: Work((16.0,) * 12, (16,) * 12),
        lambda *given: Work((16,) * 12, (16,) * 12, scoring=-5),
        lambda *given: 3,
        lambda *given: 1 / 0,
    ],
)
def test_work_that_cannot_be_is_the_methods_fault(work):
    other, schedule = replace(OTHER, work=work, package="lifedeploy-other 1.2"), Schedule.dense(16, 12)
    said = refusal(lambda: other.count_work(schedule, {}, COST)).message
    assert said.startswith("method other of lifedeploy-other 1.2 cannot be used: its work ")


def test_what_goes_wrong_in_our_own_methods_is_our_fault():
    with pytest.raises(ZeroDivisionError), LIFE.blamed("its work"):
        _ = 1 / 0


def test_drop_layers_may_be_made_of_the_depth():
    every = replace(OTHER, drop_layers=lambda depth: tuple(range(1, depth)))
    assert every.default_drop_layers(6) == (1, 2, 3, 4, 5)
    assert every.make_schedule(196, 6, keep_rate=1.0).drop_layers == (1, 2, 3, 4, 5)
