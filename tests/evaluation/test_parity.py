"""The parity gate catches what it is there to catch."""

from __future__ import annotations

import numpy as np
import pytest

from lifedeploy.data.samples import Sample, parity_samples
from lifedeploy.errors import ArtifactError, ParityError
from lifedeploy.evaluation import parity
from lifedeploy.evaluation.parity import Answer
from lifedeploy.spec import PreprocessSpec

SAMPLES = [Sample("photographs", np.zeros((3, 8, 8, 3), np.uint8))]
LOGITS = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, -1.0], [1.0, 0.9, 0.0]])
KEPT = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 4, 6]])


def compare(logits=LOGITS, kept=KEPT, precision="fp32", **options):
    return parity.compare([Answer(LOGITS, KEPT)], [Answer(logits, kept)], SAMPLES, precision, **options)


def test_equal_answers_pass():
    result = compare()
    assert result.passed
    assert (result.max_abs, result.max_rel, result.top1, result.overlap) == (0.0, 0.0, 1.0, 1.0)


def test_the_order_of_kept_tokens_does_not_matter():
    assert compare(kept=KEPT[:, ::-1]).passed


def test_an_error_beyond_the_tolerance_fails_and_says_where():
    logits = LOGITS.copy()
    logits[1, 2] += 0.1
    result = compare(logits)
    assert result.failures == ("photographs, batch 3: relative error 0.033, allowed 0.001",)
    with pytest.raises(ParityError, match=r"model\.onnx does not compute what PyTorch does: photographs, batch 3"):
        result.require("model.onnx")


def test_other_tokens_kept_fail_even_where_the_classes_agree():
    kept = KEPT.copy()
    kept[0] = [8, 9, 10, 11]
    result = compare(kept=kept)
    assert result.cases[0].overlap == pytest.approx(2 / 3)
    assert "kept-token overlap 0.667, at least 0.99 needed" in result.failures[0]


def test_of_fused_tokens_as_many_are_the_same_as_both_keep():
    ours = np.array([[0, 1, -1], [4, -1, -1], [-1, -1, -1]])
    assert parity.overlap(ours, ours) == 1.0
    assert parity.overlap(ours, np.array([[0, 2, -1], [-1, 7, 4], [5, 6, 7]])) == pytest.approx((2 + 2 + 0) / 9)
    assert parity.overlap(ours, np.array([[2, 3, -1], [-1, 7, 8], [-1, -1, -1]])) == pytest.approx((1 + 1 + 3) / 9)


@pytest.mark.parametrize(
    ("precision", "changed", "passed"), [("bf16", 3, True), ("bf16", 4, False), ("fp16", 3, False)]
)
def test_of_merged_tokens_more_may_differ_in_coarse_arithmetic(precision, changed, passed):
    # Of twelve 9 are the same, or 8: 0.75 are needed where tokens are merged, 0.85 (BF16) and 0.95 (FP16) elsewhere.
    kept = KEPT.copy()
    kept.flat[:changed] = 90 + np.arange(changed)
    assert compare(kept=kept, precision=precision, merges=True).passed == passed
    assert not compare(kept=kept, precision=precision).passed


def swapped(images=1):
    """As kept, but for the last token of some images."""
    kept = KEPT.copy()
    kept[:images, -1] = 9
    return kept


def test_in_half_precision_one_token_of_a_batch_may_fall_to_the_other_side_of_the_cut():
    assert compare(kept=swapped(), precision="fp16").passed  # 11 of 12 are the same
    assert not compare(kept=swapped()).passed
    failures = compare(kept=swapped(2), precision="fp16").failures
    assert failures == ("photographs, batch 3: kept-token overlap 0.833, at least 0.917 needed",)


def test_what_another_token_changes_is_no_error_of_arithmetic():
    logits = LOGITS.copy()
    logits[0, 2] += 0.6  # a fifth of the largest logit, in the image that kept another token
    result = compare(logits, swapped(), "fp16")
    assert result.passed
    assert result.cases[0].max_rel == pytest.approx(0.2)
    assert result.cases[0].max_rel_same == 0
    assert "relative error 0.2" in compare(logits, precision="fp16").failures[0]  # and in one that kept the same
    others = compare(logits, swapped(3), "fp16")  # where none did, a quarter of their tokens may change a quarter
    assert others.cases[0].max_rel_same == 0 and others.failures == (
        "photographs, batch 3: kept-token overlap 0.750, at least 0.917 needed",
    )
    logits[0, 2] += 0.6
    more = compare(logits, swapped(3), "fp16")
    assert more.cases[0].max_rel_same == pytest.approx(0.15)
    assert "relative error 0.15" in more.failures[0]


def test_a_reference_that_is_no_number_proves_nothing():
    for bad in (np.nan, np.inf):
        given = LOGITS.copy()
        given[1, 1] = bad
        for other in (given, LOGITS):
            found = parity.compare([Answer(given, KEPT)], [Answer(other, KEPT)], SAMPLES, "fp32")
            assert found.failures == ("photographs, batch 3: the reference itself is not finite",)


def test_infinities_and_nans_fail():
    for bad in (np.nan, np.inf):
        logits = LOGITS.copy()
        logits[0, 0] = bad
        assert "not finite" in compare(logits).failures[0]


def test_a_changed_top1_counts_only_where_the_reference_was_decided():
    close, wide = LOGITS.copy(), LOGITS.copy()
    close[2] = [0.95, 1.0, 0.0]  # the reference had 1.0 against 0.9
    assert compare(close, precision="bf16").passed
    assert compare(close, precision="bf16").cases[0].top1 == pytest.approx(2 / 3)
    wide[0] = [1.5, 1.6, 0.0]  # the reference had 3 against 1
    assert not compare(wide, precision="bf16").passed


def test_another_shape_is_an_error():
    with pytest.raises(ParityError, match=r"the output is \(3, 2\), expected \(3, 3\)"):
        compare(LOGITS[:, :2])


def test_recorded_answers_come_back_for_their_inputs_only(tmp_path):
    images = [np.full((1, 2), 1.0, np.float32), np.full((1, 2), 2.0, np.float32)]
    answers = [Answer(LOGITS, KEPT), Answer(LOGITS + 1, None)]
    path = tmp_path / "reference.npz"
    parity.record(path, {"life": answers}, images)
    back = parity.recorded(path, "life", images[::-1])
    np.testing.assert_array_equal(back[0].logits, LOGITS + 1)
    assert back[0].kept is None
    np.testing.assert_array_equal(back[1].kept, KEPT)
    with pytest.raises(ArtifactError, match="holds no answer of life to these samples"):
        parity.recorded(path, "life", [images[0] + 5])
    path.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(ArtifactError, match="cannot be read"):
        parity.recorded(path, "life", images)


def test_samples_are_photographs_and_noise_at_two_batch_sizes_and_always_the_same():
    spec = PreprocessSpec(image_size=(32, 48))
    samples = parity_samples(spec)
    assert [(sample.kind, sample.batch) for sample in samples] == [
        ("photographs", 1),
        ("noise", 1),
        ("photographs", 3),
        ("noise", 3),
    ]
    assert all(sample.pixels.shape[1:] == (32, 48, 3) for sample in samples)
    for one, other in zip(samples, parity_samples(spec), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
    photographs = samples[2].pixels
    assert len({photo.tobytes() for photo in photographs}) == 3
    assert [sample.batch for sample in parity_samples(spec, batch_size=5)] == [5, 5]
