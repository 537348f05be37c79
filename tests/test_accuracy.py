"""Counting right answers: against hand-made counts and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, log_loss

from lifedeploy.evaluation.accuracy import Agreement, Tally, average_precision


def random_answers(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, images)
    logits = generator.standard_normal((images, classes)).astype(np.float32)
    logits[np.arange(images), targets] += 1
    return logits, targets


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learns(ties):
    generator = np.random.default_rng(1)
    scores = generator.standard_normal(200)
    if ties:
        scores = scores.round(1)
    relevant = generator.random(200) < 0.2
    assert average_precision(scores, relevant) == pytest.approx(average_precision_score(relevant, scores))


def test_average_precision_of_nothing_is_no_number():
    with pytest.raises(ValueError, match="at least one relevant"):
        average_precision(np.arange(3.0), np.zeros(3, bool))


def test_a_tally_agrees_with_scikit_learn():
    logits, targets = random_answers(300, 7)
    tally = Tally(7)
    for start in range(0, 300, 64):
        tally.add(logits[start : start + 64], targets[start : start + 64])
    found = tally.result([f"c{index}" for index in range(7)])
    odds = np.exp(logits.astype(np.float64))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    assert found.images == 300
    assert found.top1 == pytest.approx(np.mean(logits.argmax(1) == targets))
    assert found.top1_standard_error == pytest.approx(np.sqrt(found.top1 * (1 - found.top1) / 300))
    ranks = (-logits).argsort(axis=1)[:, :5]
    assert found.top5 == pytest.approx(np.mean([target in row for target, row in zip(targets, ranks, strict=True)]))
    assert found.loss == pytest.approx(log_loss(targets, probabilities, labels=range(7)))
    assert np.array_equal(found.confusion, confusion_matrix(targets, logits.argmax(1), labels=range(7)))
    expected = [average_precision_score(targets == index, np.log(probabilities[:, index])) for index in range(7)]
    assert [one.average_precision for one in found.classes] == pytest.approx(expected, abs=1e-6)
    assert found.average_precision == pytest.approx(np.mean(expected), abs=1e-6)
    one = found.classes[2]
    assert (one.name, one.images) == ("c2", int((targets == 2).sum()))
    assert one.recall == pytest.approx(np.mean(logits.argmax(1)[targets == 2] == 2))
    assert one.precision == pytest.approx(np.mean(targets[logits.argmax(1) == 2] == 2))


def test_merged_tallies_are_one():
    logits, targets = random_answers(90, 3)
    whole, first, second = Tally(3), Tally(3), Tally(3)
    whole.add(logits, targets)
    first.add(logits[::2], targets[::2])
    second.add(logits[1::2], targets[1::2])
    first.merge(second)
    one, other = whole.result(()), first.result(())
    assert one.confusion == other.confusion and one.top1 == other.top1
    assert one.loss == pytest.approx(other.loss)
    assert one.average_precision == pytest.approx(other.average_precision)


def test_what_cannot_be_said_is_not_said():
    tally = Tally(3)
    tally.add(np.array([[2.0, 1.0, 0.0]]), np.array([0]))
    found = tally.result(())
    assert found.top5 is None  # three classes
    assert found.average_precision is None  # two of them have no image
    assert found.classes[1].recall is None and found.classes[1].precision is None
    assert found.classes[1].name == "class 1"
    with pytest.raises(ValueError, match="nothing was counted"):
        Tally(3).result(())


def test_many_classes_are_not_ranked():
    logits, targets = random_answers(30, 40)
    tally = Tally(40)
    tally.add(logits, targets)
    assert tally.result(()).average_precision is None
    assert tally._scores == []


def test_large_logits_do_not_overflow():
    tally = Tally(2)
    tally.add(np.array([[5000.0, -5000.0], [0.0, 5000.0]], dtype=np.float32), np.array([0, 0]))
    assert tally.result(()).loss == pytest.approx(2500)


def test_agreement_counts_answers_and_tokens():
    pair = Agreement("a", "b")
    kept = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    pair.add((np.array([0, 1]), np.array([0, 2])), (kept, np.array([[4, 3, 2, 1], [5, 6, 0, 1]])))
    found = pair.to_dict()
    assert (found["agreement"], found["overlap"], found["images"]) == (0.5, 0.75, 2)
    fewer = Agreement("a", "b")
    fewer.add((np.array([0]), np.array([0])), (kept[:1], np.array([[1, 9]])))
    assert fewer.to_dict()["overlap"] == 0.5  # of the smaller set
    none = Agreement("a", "b")
    none.add((np.array([0]), np.array([0])), (None, kept[:1]))
    assert none.to_dict()["overlap"] is None
