"""What dropping loses: held against the model itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lifedeploy.schedule import Schedule
from lifedeploy.spec import PreprocessSpec
from lifedeploy.tuning.expected import ATTENTION, SINGLE_CUTS
from lifedeploy.tuning.losses import Images, expected_losses, lost_attention, single_cuts
from tests.conftest import make_tiny

COUNTS = (16, 11, 6, 1)


def pixels(count=5):
    return np.random.default_rng(4).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def images():
    return Images(pixels(), PreprocessSpec(image_size=(32, 32)))


def kl(model, images, schedule):
    """Of the hard forward over the dense one."""
    batch = torch.cat(list(images))
    with torch.inference_mode():
        said = model(batch, schedule=schedule).logits.double().log_softmax(1)
        dense = make_tiny(method="dense")[0](batch).logits.double().log_softmax(1)
    return float((dense.exp() * (dense - said)).sum(1).mean())


@pytest.mark.parametrize("method", ["life", "random"])
def test_a_single_cut_is_what_the_model_loses_by_it(images, method):
    model, _ = make_tiny(method=method)
    table = single_cuts(model, images, 2, COUNTS, lambda many: None)
    assert (table[:2] == 0).all() and (table[:, 0] == 0).all()
    for count, place in ((11, 1), (6, 2), (1, 3)):
        here = Schedule.from_counts(16, 4, (count,), (2,))
        assert table[2:, place].sum() == pytest.approx(kl(model, images, here), rel=1e-4, abs=1e-9)
        if method == "life":  # which orders after its first drop layer, whether any leave there or not
            later = Schedule.from_counts(16, 4, (16, count), (2, 3))
            assert table[3:, place].sum() == pytest.approx(kl(model, images, later), rel=1e-4, abs=1e-9)


def test_attention_that_is_lost_is_that_of_the_shortest_lives(images):
    model, _ = make_tiny()
    told = []
    lost = lost_attention(model, images, [1, 2], told.append)
    assert sum(told) == 5
    for base, table in lost.items():
        assert table.shape == (4, 17) and (table[:base] == 0).all()
        np.testing.assert_allclose(table[base:, 0], 0.25)  # all of it, of four layers
        np.testing.assert_allclose(table[:, 16], 0, atol=1e-12)
        assert (np.diff(table, axis=1) <= 1e-12).all()
    # By hand: layer 3, the model ranking after layer 2.
    view, batch = model.adapted, torch.cat(list(images))
    with torch.inference_mode():
        rows = []
        tokens = view.embed(batch)
        for layer in (1, 2):
            tokens = view.run_block(layer, tokens, None)
        view.run_block(3, tokens, lambda kept, attention: (rows.append(attention.cls_row()[:, 1:]), kept)[1])
        kept = model(batch).kept[2]  # 11 of 16
    share = rows[0].gather(1, kept).sum(1) / rows[0].sum(1)
    assert lost[2][2, 11] == pytest.approx(float((1 - share).mean()) / 4, rel=1e-5)


def test_both_proxies_come_together_or_one_alone(images):
    model, spec = make_tiny()
    steps = []
    both = expected_losses(model, images, [2], cuts=True, progress=steps.append)
    assert both.cut_counts[0] == 16 and both.cut_counts[-1] == 1
    assert set(both.of(spec.schedule)) == {ATTENTION, SINGLE_CUTS}
    assert steps[-1].share == 1 and all(0 <= step.share <= 1 for step in steps)
    alone = expected_losses(model, images, [1, 2, 3], cuts=False)
    assert alone.cuts is None and set(alone.attention) == {1, 2, 3}


def test_some_images_are_taken_evenly():
    images = Images(pixels(20), PreprocessSpec(image_size=(32, 32)))
    assert len(images.some(4)) == 4 and (images.some(4).pixels == images.pixels[[0, 5, 10, 15]]).all()
    assert images.some(99) is images and [len(batch) for batch in images] == [8, 8, 4]
