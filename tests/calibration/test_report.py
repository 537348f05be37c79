"""What is reported is what happened: per tensor, per layer, per image; and a cache that is asked first."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from lifedeploy.calibration import compare, qdq, sensitivity
from lifedeploy.calibration.collect import cached, collect
from lifedeploy.calibration.quantize import Recipe, write
from lifedeploy.calibration.report import GraphReport, Noise, decibels, together
from lifedeploy.errors import ParityError


def test_noise_is_counted_by_hand():
    grid = qdq.GRIDS["int8"]
    total = Noise()
    for values in ([0.4, 10.0, 200.0], [-3.3, 127.4, -127.6]):
        total.add(np.array([values], np.float32), np.float32(1), grid)
    signal = 0.4**2 + 10**2 + 200**2 + 3.3**2 + 127.4**2 + 127.6**2
    error = 0.4**2 + 0 + 73**2 + 0.3**2 + 0.4**2 + 0.6**2
    reported = total.report("x", "activation", np.float32(1))
    assert reported.sqnr_db == pytest.approx(10 * np.log10(signal / error), abs=1e-3)
    assert reported.saturated == pytest.approx(2 / 6)


def test_what_still_rounds_to_the_largest_number_is_not_beyond_it():
    total = Noise()
    total.add(np.array([[448, 463, 465, -500]], np.float32), np.float32(1), qdq.GRIDS["fp8"])
    assert total.beyond == 2


def test_decibels():
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(1.0, 0.0) == 200
    assert decibels(float("nan"), float("nan")) == decibels(1.0, float("inf")) == -200  # JSON has no word for them
    assert together([20, 20]) == pytest.approx(20 - 10 * np.log10(2))


def test_layers_and_images_come_worst_first(prepared, check, tmp_path):
    made = prepared(Recipe(smoothing=0))
    write(made, tmp_path / "q.onnx")
    report = compare.report(made, tmp_path / "q.onnx", check)
    assert len(report.layers) == 16
    ratios = [layer.sqnr_db for layer in report.layers]
    assert ratios == sorted(ratios)
    assert report.layers[0].name == "blocks.1.attn.qkv/MatMul"  # the one with the hard channel
    assert {tensor.kind for tensor in report.layers[0].tensors} == {"activation", "weight"}
    errors = [image.error for image in report.per_image if not image.changed]
    assert errors == sorted(errors, reverse=True)
    assert [image.changed for image in report.per_image] == sorted((i.changed for i in report.per_image), reverse=True)
    assert len(report.per_image) == len(check.batches)
    assert 0.5 < report.overlap <= 1
    assert report.drop == pytest.approx((1 - report.same_top1) * 100)
    assert report.size_mib < report.size_float_mib
    again = msgspec.convert(json.loads(json.dumps(report.to_dict())), GraphReport)
    assert again == report


def test_labels_turn_the_drop_into_one_of_accuracy(prepared, check, tmp_path):
    made = prepared()
    write(made, tmp_path / "q.onnx")
    theirs = check.ask(tmp_path / "q.onnx", check.batches)
    labels = theirs.logits.argmax(axis=1)  # as if 8 bits were always right
    report = compare.report(made, tmp_path / "q.onnx", compare.Check(**{**vars(check), "labels": labels}))
    assert report.accuracy == 1
    assert report.accuracy_float == pytest.approx(report.same_top1)
    assert report.drop <= 0


def test_statistics_are_made_once(life, batches, tmp_path):
    made = []

    def make():
        made.append(1)
        return collect(life[0], ["blocks.0.mlp.act/Gelu_output_0"], batches.first(3))

    first, known = cached({"model": "a"}, make, tmp_path)
    again, known_again = cached({"model": "a"}, make, tmp_path)
    assert (known, known_again, len(made)) == (False, True, 1)
    assert {name: item.to_dict() for name, item in first.items()} == {n: item.to_dict() for n, item in again.items()}
    assert not cached({"model": "b"}, make, tmp_path)[1]
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    assert not cached({"model": "a"}, make, tmp_path)[1]
    assert len(made) == 3


def test_the_cache_knows_other_smoothing_apart(prepared):
    assert not prepared(Recipe(smoothing=0.5)).cached
    assert prepared(Recipe(smoothing=0.5)).cached
    assert prepared(Recipe(smoothing=0.5, ranges="percentile", per_channel=False)).cached
    assert not prepared(Recipe(smoothing=0.6)).cached


def test_a_scan_finds_the_layer_that_suffers_and_restoring_it_helps(prepared, check, tmp_path):
    made = prepared(Recipe(smoothing=0))
    noises = sensitivity.scan(made, check, tmp_path)
    assert next(iter(noises)) == "blocks.1.attn.qkv/MatMul"
    assert list(noises.values()) == sorted(noises.values(), reverse=True)
    assert set(noises) == set(made.names)
    lost = []
    for leave in ((), list(noises)[-4:], list(noises)[:4]):
        write(made, tmp_path / "q.onnx", leave=leave)
        lost.append(compare.noise(check.answers, check.ask(tmp_path / "q.onnx", check.batches)))
    everything, least, worst = lost
    assert worst < least
    assert worst < 0.8 * everything
    assert 0.3 < sum(noises.values()) / everything < 3  # errors of single layers add up, near enough


def test_layers_are_restored_until_the_drop_is_small_enough(prepared, check, tmp_path, monkeypatch):
    made = prepared(Recipe(smoothing=0))
    drops = iter([3.0, 2.0, 0.9])
    monkeypatch.setattr(sensitivity, "report", lambda *a, **k: Told(next(drops), compare.report(*a, **k)))
    report = sensitivity.restore(made, check, tmp_path / "q.onnx", tmp_path, 1.0).inner
    assert len(report.restored) == 4
    assert sum(not layer.quantized for layer in report.layers) == 4
    assert all(layer.noise is not None for layer in report.layers)


def test_a_drop_that_cannot_be_had_is_an_error(prepared, check, tmp_path, monkeypatch):
    monkeypatch.setattr(sensitivity, "report", lambda *a, **k: Told(5.0, None))
    with pytest.raises(ParityError, match=r"drops by 5\.00 points with 8 of 16 layers in floating point, allowed 1"):
        sensitivity.restore(prepared(), check, tmp_path / "q.onnx", tmp_path, 1.0)


class Told:
    """A report whose drop is what the test says."""

    def __init__(self, drop, inner):
        self.drop, self.inner = drop, inner
