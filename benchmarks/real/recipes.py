"""The recipes that the grid trains by: what each is called in tables, and what ``lifedeploy train`` is asked for; and
budgets beyond keep rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lifedeploy.recipe import LIFEDEPLOY, PUBLISHED

UNSCALED = "unscaled"
_OURS, _TWO_STAGES = ("--recipe", LIFEDEPLOY), ("--recipe", LIFEDEPLOY, "--no-single-stage")


@dataclass(frozen=True)
class Recipe:
    """``title``: in tables; ``options``: of ``lifedeploy train``."""

    title: str
    options: tuple[str, ...]


# By the word that names of cells have. A name stands for what it asks for: other options are another recipe.
RECIPES: Mapping[str, Recipe] = {
    PUBLISHED: Recipe("published", ("--recipe", PUBLISHED)),
    # As EViT prints it: 2e-5, for a batch of 512.
    UNSCALED: Recipe("published, unscaled", ("--recipe", PUBLISHED, "--backbone-lr", "2e-5")),
    LIFEDEPLOY: Recipe("ours", _OURS),
    # Ours with a setting changed, for lives.
    "1e-5": Recipe("ours, 1e-5", (*_OURS, "--backbone-lr", "1e-5")),
    "5e-6": Recipe("ours, 5e-6", (*_OURS, "--backbone-lr", "5e-6")),
    # The keep rate falls from 1 as in EViT's recipe.
    "ramp": Recipe("ours, keep rate falling", (*_OURS, "--keep-ramp", "0.0333,0.3667")),
    "two-stages": Recipe("ours, two stages", _TWO_STAGES),
    "two-stages-3e-6": Recipe("ours, two stages, 3e-6", (*_TWO_STAGES, "--backbone-lr", "3e-6")),
}
TRIED = ("ramp", "1e-5", "two-stages", "two-stages-3e-6", "5e-6")

# Method → its options. Keep rates end for ToMe where lives begin to be faster; this merges about as many tokens as 0.5,
# most of them early, as its authors do for speed.
BUDGETS: Mapping[str, Mapping[str, Any]] = {"tome": {"r": "18", "inflect": -1.0}}


def budget_options(method: str) -> list[str]:
    """What a run in a method's budget beyond keep rates is asked for; nothing, where it has none."""
    return [f"--{name}={value}" for name, value in BUDGETS.get(method, {}).items()]
