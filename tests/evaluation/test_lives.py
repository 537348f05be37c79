"""Lives in numpy: the twins of what the model computes, and the pictures' arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lifedeploy.evaluation.lives import PatchLives, alive, granted, group_means, lives, patch_grid
from lifedeploy.kept import NOTHING_KEPT, KeptTokens, is_kept_name, kept_layer, kept_name
from lifedeploy.model.lives import lives as torch_lives
from lifedeploy.schedule import Schedule
from lifedeploy.viz.panels import kept as drawn_kept
from lifedeploy.viz.panels import spread

SCHEDULE = Schedule.from_keep_rate(196, 12, 0.7)


def test_lives_are_those_of_the_model():
    scores = np.random.default_rng(0).standard_normal((3, 196)).astype(np.float32) * 7
    expected = torch_lives(torch.from_numpy(scores), SCHEDULE).numpy()
    assert np.allclose(lives(scores, SCHEDULE), expected, atol=1e-4)
    assert np.allclose(lives(np.ones((2, 196)), SCHEDULE), SCHEDULE.mean_life)


def test_counted_lives_are_taken_as_they_are():
    counts = np.array([[1, 12, 5, 7]], dtype=np.float32)
    assert lives(counts, Schedule.dense(4, 12), counted=True).tolist() == [[1.0, 12.0, 5.0, 7.0]]


def test_a_group_has_the_mean_colour_of_its_patches_wherever_they_are():
    colours = np.array([[0, 10, 20], [40, 30, 20], [100, 100, 100], [200, 0, 6]], dtype=np.uint8)
    pixels = colours.reshape(2, 2, 3).repeat(3, axis=0).repeat(4, axis=1)
    means = group_means(pixels, (2, 2), np.array([3, 1, 2, 3]))
    assert means.tolist() == [[100, 5, 13], [40, 30, 20], [100, 100, 100], [100, 5, 13]]


def test_where_one_ranking_tells_all_the_survivors_of_every_drop_are_a_prefix_of_it():
    order = np.random.default_rng(0).permutation(196)[None, :137]
    kept = KeptTokens.of(SCHEDULE, [4])
    assert (kept.taps, kept.last_tap) == (("kept_4",), ("kept_4",))
    after = {layer: alive(kept.after(layer, {"kept_4": order}), 196) for layer in SCHEDULE.drop_layers}
    assert {layer: int(mask.sum()) for layer, mask in after.items()} == {4: 137, 7: 96, 10: 67}
    assert set(np.flatnonzero(after[10][0])) == set(order[0, :67])
    assert not (after[10] & ~after[7]).any() and not (after[7] & ~after[4]).any()
    assert np.array_equal(kept.survivors({"kept_4": order}), order[:, :67])


def test_where_every_drop_chooses_anew_each_is_told_by_its_own_tensor():
    kept = KeptTokens.of(SCHEDULE, [10, 4, 7])
    answers = {kept_name(layer): np.full((2, SCHEDULE.after(layer)), layer) for layer in (4, 7, 10)}
    assert (kept.taps, kept.last_tap) == (("kept_4", "kept_7", "kept_10"), ("kept_10",))
    for layer in (4, 7, 10):
        assert kept.after(layer, answers) is not None
        assert np.array_equal(kept.after(layer, answers), answers[f"kept_{layer}"])
    assert np.array_equal(kept.survivors({"kept_10": answers["kept_10"]}), answers["kept_10"])


def test_before_the_first_choice_and_in_a_model_that_chooses_nothing_nothing_is_told():
    late = KeptTokens.of(SCHEDULE, [7])  # nothing leaves after layer 4
    assert late.counts == {7: 96, 10: 67}
    for nothing in (NOTHING_KEPT, KeptTokens.of(SCHEDULE, ()), KeptTokens.of(Schedule.dense(16, 4), ())):
        assert not nothing
        assert (nothing.taps, nothing.last_tap) == ((), ())
    assert late and not NOTHING_KEPT.counts


@pytest.mark.parametrize(
    ("name", "layer", "holds"),
    [
        ("kept_4", 4, True),
        ("kept_12", 12, True),
        ("life_order", None, True),  # as it was called when models ranked once
        ("kept_", None, False),
        ("kept_4_of_another_method", None, False),
        ("xkept_4", None, False),
        ("life_scores", None, False),
        ("logits", None, False),
    ],
)
def test_tensors_of_kept_tokens_are_known_by_their_names(name, layer, holds):
    assert (kept_layer(name), is_kept_name(name)) == (layer, holds)
    assert layer is None or kept_name(layer) == name


def test_who_is_alive_is_told_by_kept_tokens_and_a_fused_one_is_nobody():
    kept = np.array([[3, 0, -1], [1, 2, 4], [-1, -1, -1]])
    expected = [[True, False, False, True, False], [False, True, True, False, True], [False] * 5]
    assert alive(kept, 5).tolist() == expected
    assert alive(kept.astype(np.int32), 5).tolist() == expected


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
    one = PatchLives(name="x", pixels=pixels, grid=(3, 4), life=np.arange(12.0), alive={4: alive}, fused={4: 0})
    picture = drawn_kept(one, 4)
    assert np.array_equal(picture[:8, :8], pixels[:8, :8])
    assert picture[:8, 8:16].max() <= 0.15 * 256
    assert picture[16:, 24:].max() <= 0.15 * 256
    assert np.array_equal(spread(one.life, one)[10, ::8], [4, 5, 6, 7])
