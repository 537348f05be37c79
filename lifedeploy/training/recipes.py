"""The settings of a run: those that are given, over those of a file, over those of a recipe, over the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lifedeploy import methods
from lifedeploy.errors import UsageError
from lifedeploy.method import Method
from lifedeploy.reading import read_toml
from lifedeploy.recipe import LIFEDEPLOY, LIFEDEPLOY_SETTINGS, LR_BASE_SIZE, NO_RECIPE, PUBLISHED
from lifedeploy.text import quoted
from lifedeploy.training.config import TrainConfig, with_options


def settled(settings: dict[str, Any], file: Path | None) -> TrainConfig:
    """The configuration of ``settings`` over those in ``file`` over the recipe's, which by default is the method's own.

    The head's rate, where nobody has set it, goes with the backbone's as in the recipe.

    Raises:
        UsageError: an unknown setting, or a value that cannot be; or a recipe that the method has not.
    """
    read = with_options(read_toml(file, UsageError)) if file else {}
    if read.keys() >= _OF_0_1:  # of a run, which says what it trains with: no recipe adds to that
        read.setdefault("recipe", NO_RECIPE)
    merged = read | settings
    merged.setdefault("recipe", PUBLISHED)
    merged |= _epochs(merged, settings)
    written, given = read.get("options"), settings.get("options")
    same = merged.get("method", methods.DEFAULT) == read.get("method", methods.DEFAULT)
    if not same:
        merged["options"] = given or {}  # the file's are another method's
    elif isinstance(written, dict) and isinstance(given, dict):
        merged["options"] = {**written, **given}  # of one method, option by option
    recipe = _recipe(merged)
    config = TrainConfig.from_dict({**recipe, **merged}, str(file) if file else "the command")
    if "head_lr" not in merged and ("backbone_lr" in merged or "head_lr" not in recipe):
        usual = recipe.get("backbone_lr") or 1.0
        config = config.but(head_lr=config.backbone_lr * (recipe.get("head_lr", usual) / usual))
    return config


_OF_A_RUN = {"backbone", "data", "dense", "method", "options", "recipe", "weights"}  # no recipe has a say in these
# The settings that every run of version 0.1 wrote down, and no hand would.
_OF_0_1 = {"accumulate", "backbone_lr", "clip_grad", "elastic_range", "epochs", "warmup", "weight_decay", "workers"}


def _epochs(merged: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What ``epochs`` mean to a method of two stages: those of both together, where these are one.

    Raises:
        UsageError: they are two, which have epochs of their own.
    """
    method = _method(merged)
    if "epochs" not in given or method is None or len(method.stages) < 2:
        return {}
    if merged.get("single_stage", _at_once(method, merged)):
        return {"stage1_epochs": given["epochs"], "stage2_epochs": 0}
    raise UsageError(
        f"{method.name} trains in two stages, and epochs are of one",
        hint="--stage1-epochs and --stage2-epochs, or --single-stage",
    )


def _recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe that is asked for says, of what makes sense beside the other ``settings``.

    Raises:
        UsageError: there is no such recipe for what is trained.
    """
    name, method = settings["recipe"], _method(settings)
    if method is None or name == NO_RECIPE:  # of no method: said where all settings are held against their types
        return {}
    if name == LIFEDEPLOY and method.role != methods.SLIMMED:
        raise UsageError(
            f"recipe {LIFEDEPLOY} teaches a slimmed model what the dense one knows, and {method.name} is that"
        )
    if name == LIFEDEPLOY:
        return {**LIFEDEPLOY_SETTINGS, **({"single_stage": True} if _at_once(method, settings) else {})}
    _require_sound(method)
    recipe = _for_batch(method.recipe, settings.get("batch", TrainConfig.batch))
    if not _at_once(method, settings):
        recipe.pop("single_stage", None)
    options = settings.get("options")
    budget = isinstance(options, dict) and method.gives_budget(options)
    if settings.get("counts") or settings.get("elastic") or budget:
        recipe.pop("keep_ramp", None)  # there is no single keep rate that could fall
    return recipe


def _at_once(method: Method, settings: Mapping[str, Any]) -> bool:
    """Whether a recipe trains both parts of a method in one stage.

    Ours does where lives are taught by where the dense model looks: for that no token needs to stay, so that they and a
    backbone whose tokens really leave train together. Other predictors learn only while all tokens stay: with ``hard``
    they have a stage of their own.
    """
    if settings["recipe"] == LIFEDEPLOY:
        taught = settings.get("distill", True) and settings.get("distill_lives", True)
        return len(method.stages) > 1 and method.predicts_lives and bool(taught)
    published = settings["recipe"] == PUBLISHED and method.recipe.get("single_stage")
    return bool(published) and not settings.get("hard")


def _for_batch(recipe: Mapping[str, Any], batch: object) -> dict[str, Any]:
    """A row's recipe as settings: its learning rates are those of this batch."""
    base = recipe.get(LR_BASE_SIZE)
    # A batch that is no number is refused where all settings are held against their types.
    share = batch / base if base and isinstance(batch, int) else 1
    return {
        name: value * share if name.endswith("_lr") else value for name, value in recipe.items() if name != LR_BASE_SIZE
    }


def _require_sound(method: Method) -> None:
    """Make sure that a method's recipe is one.

    Raises:
        UsageError: the method, which may be of another package, cannot be used.
    """
    known = {item.name for item in fields(TrainConfig)} - _OF_A_RUN
    settings = {name: value for name, value in method.recipe.items() if name != LR_BASE_SIZE}
    odd = next((setting for setting in settings if setting not in known), None)
    if odd is not None:
        raise method.broken(f"its recipe has {quoted(odd)}, which is no setting of training that a method has a say in")
    base = method.recipe.get(LR_BASE_SIZE, 1)
    if type(base) is not int or base < 1:
        raise method.broken(f"{LR_BASE_SIZE} of its recipe is {quoted(base)}, expected a number of images")
    try:
        TrainConfig.from_dict(settings | {"method": method.name} if settings else {})
    except UsageError as error:
        raise method.broken(f"its recipe cannot be: {error.message}") from error


def _method(settings: Mapping[str, Any]) -> Method | None:
    """What is trained, where that can be told."""
    if settings.get("dense") is True:
        return methods.baseline()
    name = settings.get("method", methods.DEFAULT)
    return methods.known(name) if isinstance(name, str) else None
