"""IA-RED²'s scores by hand, of the tensors alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lifedeploy import methods
from lifedeploy.errors import UsageError
from lifedeploy.model.reducers import Plan, build_reducer
from lifedeploy.model.reducers.ia_red2 import Interpreter
from lifedeploy.schedule import Schedule
from tests.methods.test_by_hand import CLOSE, KEEP, behind_blocks, counted, require_same
from tests.model.conftest import images_for, slim, tiny_vit


def informative(interpreter: nn.Module, patches: Tensor, heads: int) -> list[float]:
    """IA-RED², eq. 1: I_i = mean over heads of σ(F_q(x_i) · F_k(p)), of patches (n, C)."""
    of = {name: tensor.double() for name, tensor in interpreter.state_dict().items()}
    policy = of["keys.weight"] @ of["policy"] + of["keys.bias"]
    scores = []
    for patch in patches:
        query = of["queries.weight"] @ patch + of["queries.bias"]
        logits = [float(q @ k) for q, k in zip(query.chunk(heads), policy.chunk(heads), strict=True)]
        scores.append(sum(1 / (1 + math.exp(-logit)) for logit in logits) / heads)
    return scores


@torch.no_grad()
def test_the_interpreters_of_ia_red2_decide_what_goes_on(family):
    vit = tiny_vit(family).double()
    images = images_for(vit).double()
    model = slim(vit, "ia-red2", counted(KEEP, vit.patch_embed.num_patches)).double()
    interpreters = dict(zip(KEEP, model.reducer.interpreters, strict=True))
    require_same(
        vit,
        images,
        model(images),
        lambda image: behind_blocks(
            vit, image, KEEP, lambda layer, patches: informative(interpreters[layer], patches, heads=3)
        ),
    )


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@torch.no_grad()
def test_a_score_is_the_mean_over_heads(heads):
    torch.manual_seed(0)
    interpreter = Interpreter(24, heads).double()
    patches = torch.randn(2, 5, 24).double() * 4
    found = interpreter(patches)
    for image in range(2):
        expected = torch.tensor(informative(interpreter, patches[image], heads), dtype=torch.float64)
        torch.testing.assert_close(found[image], expected, **CLOSE)
    assert found.gt(0).all() and found.lt(1).all() and found.std() > 0.01


def test_each_drop_layer_has_an_interpreter_of_its_own():
    reducer = slim(tiny_vit(), "ia-red2", Schedule.from_counts(16, 6, (16, 9, 5), (1, 3, 5))).reducer
    shapes = {name: tuple(tensor.shape) for name, tensor in reducer.state_dict().items()}
    assert shapes == {
        f"interpreters.{number}.{name}": shape
        for number in range(3)
        for name, shape in {
            "policy": (24,),
            **{f"{part}.weight": (24, 24) for part in ("queries", "keys")},
            **{f"{part}.bias": (24,) for part in ("queries", "keys")},
        }.items()
    }
    assert reducer.sorts == 2  # nothing leaves after the first layer, so nothing is scored there


def test_channels_that_heads_do_not_share_evenly_are_refused():
    row = methods.get("ia-red2")
    plan = Plan(schedule=Schedule.from_counts(16, 6, (9,), (3,)), width=26, heads=3, prefix=1, ordering="per-stage")
    with pytest.raises(UsageError) as refused:
        build_reducer(row, plan)
    assert refused.value.message == "ia-red2 shares 26 channels among 3 heads, which is not even"
