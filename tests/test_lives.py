"""Lives in numpy: the twins of what the model computes, and the pictures' arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lifedeploy.evaluation.lives import PatchLives, alive_after, granted, lives, patch_grid
from lifedeploy.model.reducers import lives as torch_lives
from lifedeploy.schedule import Schedule
from lifedeploy.viz.lives import dimmed, spread

SCHEDULE = Schedule.from_keep_rate(196, 12, 0.7)


def test_lives_are_those_of_the_model():
    scores = np.random.default_rng(0).standard_normal((3, 196)).astype(np.float32) * 7
    expected = torch_lives(torch.from_numpy(scores), SCHEDULE).numpy()
    assert np.allclose(lives(scores, SCHEDULE), expected, atol=1e-4)
    assert np.allclose(lives(np.ones((2, 196)), SCHEDULE), SCHEDULE.mean_life)


def test_the_survivors_of_every_drop_are_a_prefix_of_the_order():
    order = np.random.default_rng(0).permutation(196)[None, :137]
    alive = alive_after(order, SCHEDULE)
    assert {layer: int(mask.sum()) for layer, mask in alive.items()} == {4: 137, 7: 96, 10: 67}
    assert set(np.flatnonzero(alive[10][0])) == set(order[0, :67])
    assert not (alive[10] & ~alive[7]).any() and not (alive[7] & ~alive[4]).any()


def test_what_a_schedule_grants_is_its_own_distribution():
    shares = granted(SCHEDULE)
    assert list(shares) == [4, 7, 10, 12]
    assert sum(shares.values()) == pytest.approx(1)
    assert sum(life * share for life, share in shares.items()) == pytest.approx(SCHEDULE.mean_life)
    assert granted(Schedule.dense(16, 4)) == {4: 1.0}


@pytest.mark.parametrize(("size", "patches", "grid"), [((224, 224), 196, (14, 14)), ((192, 256), 192, (12, 16))])
def test_grids(size, patches, grid):
    assert patch_grid(size, patches) == grid


def test_a_grid_that_cannot_be():
    with pytest.raises(ValueError, match="17 square patches do not tile 64 x 64 pixels"):
        patch_grid((64, 64), 17)


def test_dropped_patches_are_dark_and_the_others_as_they_were():
    generator = np.random.default_rng(1)
    pixels = generator.integers(60, 256, (24, 32, 3), dtype=np.uint8)
    alive = np.array([True, False, True, True, False, True, True, True, True, True, True, False])
    one = PatchLives("x", pixels, (3, 4), np.arange(12.0), {4: alive})
    picture = dimmed(one, 4)
    assert np.array_equal(picture[:8, :8], pixels[:8, :8])
    assert picture[:8, 8:16].max() <= 0.15 * 256
    assert picture[16:, 24:].max() <= 0.15 * 256
    assert np.array_equal(spread(one.life, one)[10, ::8], [4, 5, 6, 7])
