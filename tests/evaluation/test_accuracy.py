"""Accuracy against hand-made numbers and against scikit-learn, and tallies that merge to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, log_loss, precision_score, recall_score

from lifedeploy.errors import DataError, EngineError
from lifedeploy.evaluation.accuracy import Tally, agreement, average_precision, map_classes


def answers(images: int = 200, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, images)
    logits = generator.standard_normal((images, classes)).astype(np.float32)
    logits[np.arange(images), targets] += 1
    return logits, targets


def tally(logits: np.ndarray, targets: np.ndarray, batch: int = 32) -> Tally:
    made = Tally(logits.shape[1])
    for start in range(0, len(targets), batch):
        made.add(logits[start : start + batch], targets[start : start + batch])
    return made


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits.astype(np.float64))
    return raised / raised.sum(axis=1, keepdims=True)


def test_numbers_made_by_hand():
    logits = np.array([[2, 1, 0], [0, 3, 1], [5, 1, 1], [0, 0, 4]], dtype=np.float32)
    found = tally(logits, np.array([0, 1, 1, 2])).result(["cat", "cup", "rocket"])
    assert found.confusion == ((1, 0, 0), (1, 1, 0), (0, 0, 1))
    assert (found.images, found.top1, found.top5) == (4, 0.75, None)
    assert found.standard_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    cat, cup, rocket = found.per_class
    assert (cat.name, cat.images, cat.recall, cat.precision) == ("cat", 1, 1.0, 0.5)
    assert (cup.name, cup.images, cup.recall, cup.precision) == ("cup", 2, 0.5, 1.0)
    assert rocket.average_precision == 1.0


@pytest.mark.parametrize("classes", [2, 4, 20])
def test_what_scikit_learn_says(classes):
    logits, targets = answers(classes=classes)
    found = tally(logits, targets).result()
    probabilities, predicted = softmax(logits), logits.argmax(axis=1)
    truth = np.eye(classes)[targets]
    each = average_precision_score(truth, probabilities, average=None)
    assert [entry.average_precision for entry in found.per_class] == pytest.approx(each)
    assert found.average_precision == pytest.approx(average_precision_score(truth, probabilities, average="macro"))
    assert found.loss == pytest.approx(log_loss(targets, probabilities), rel=1e-6)
    assert np.array_equal(found.confusion, confusion_matrix(targets, predicted))
    assert [entry.recall for entry in found.per_class] == pytest.approx(
        recall_score(targets, predicted, average=None, zero_division=0)
    )
    assert [entry.precision for entry in found.per_class if entry.precision is not None] == pytest.approx(
        precision_score(targets, predicted, average=None, zero_division=np.nan)
    )


def test_average_precision_of_ties_does_not_depend_on_their_order():
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    for positive in ([1, 1, 0, 0, 1], [1, 0, 0, 1, 1]):
        given = np.array(positive, dtype=bool)
        assert average_precision(given, scores) == pytest.approx(average_precision_score(given, scores))


def test_logits_that_saturate_the_softmax_still_rank():
    logits = np.array([[300, 0], [200, 0], [100, 0]], dtype=np.float32)
    found = tally(logits, np.array([0, 1, 1])).result()
    assert found.per_class[0].average_precision == 1.0
    assert found.loss == pytest.approx(100)


def test_merged_tallies_are_what_one_would_have_been():
    logits, targets = answers()
    parts = [tally(logits[rank::3], targets[rank::3], batch=7) for rank in range(3)]
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    assert parts[2].result() == tally(logits, targets).result()


def test_top5_counts_from_six_classes_on_and_a_constant_earns_its_share_only():
    logits, targets = answers(images=600, classes=10)
    order = np.argsort(-logits, axis=1)[:, :5]
    assert tally(logits, targets).result().top5 == (order == targets[:, None]).any(axis=1).mean()
    assert tally(*answers(classes=5)).result().top5 is None
    constant = tally(np.zeros((10, 10), dtype=np.float32), np.arange(10)).result()
    assert (constant.top1, constant.top5) == (0.1, 0.5)


def test_many_classes_give_no_matrix_and_list_those_that_occur():
    logits, targets = answers(images=30, classes=150)
    found = tally(logits, targets).result()
    assert (found.confusion, found.average_precision) == (None, None)
    assert {entry.index for entry in found.per_class} == set(targets) | set(logits.argmax(axis=1))
    assert all(entry.recall is None for entry in found.per_class if not entry.images)


def test_a_tally_refuses_other_shapes_and_emptiness():
    with pytest.raises(EngineError, match=r"the output is \(2, 4\), expected \(2, 3\)"):
        Tally(3).add(np.zeros((2, 4)), np.zeros(2, dtype=np.int64))
    with pytest.raises(DataError, match="no image was evaluated"):
        Tally(3).result()


def test_agreement_goes_by_name():
    first = tally(np.eye(3, dtype=np.float32), np.arange(3))
    second = tally(np.eye(3, dtype=np.float32)[[2, 0, 1]], np.arange(3))
    assert agreement(first, second, (tuple("abc"), tuple("abc"))) == 0
    assert agreement(first, second, (tuple("abc"), tuple("bca"))) == 1


def maps(found, names, classes):
    return map_classes(found, names, classes, source="data", model="m.onnx")


def test_classes_are_matched_by_name_then_by_position():
    by_name = maps(["cat", "rocket"], ["rocket", "cup", "cat"], 3)
    assert (by_name.indices.tolist(), by_name.by) == ([2, 0], "name")
    by_position = maps(["n01", "n02"], ["cat", "cup"], 2)
    assert (by_position.indices.tolist(), by_position.by) == ([0, 1], "position")
    assert (by_name.names, by_position.names) == (("rocket", "cup", "cat"), ("n01", "n02"))
    assert maps(["a", "b"], [], 2).by == "position"
    assert by_name.warning == ""
    assert "'n01' for 'cat', 'n02' for 'cup' are taken" in by_position.warning
    many = maps([str(index) for index in range(10)], [], 10).warning
    assert "'0' for class 0, '1' for class 1, …, '9' for class 9 are taken" in many


def test_names_of_classes_are_shown_in_a_line():
    warning = maps(["\x1b[31m" + "x" * 5000, "b"], [], 2).warning
    assert "\x1b" not in warning and "\\x1b[31mxxx" in warning
    assert len(warning) < 700


@pytest.mark.parametrize(
    ("found", "names", "classes", "said"),
    [
        (["a", "b"], [], 3, "data has 2 classes, and m.onnx has 3"),
        (["cat", "dog"], ["cat", "cup"], 2, "data has 2 classes, and 1 of them are none of the 2 of m.onnx: dog"),
        (["crane"], ["crane", "crane"], 2, "class 'crane' of data is the name of several classes"),
    ],
)
def test_classes_that_cannot_be_matched(found, names, classes, said):
    with pytest.raises(DataError, match=said):
        maps(found, names, classes)
