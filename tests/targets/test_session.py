"""A session: logits of the engine as it ships, kept tokens of whoever may be asked for them, batches filled and cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lifedeploy.artifact import TensorSpec
from lifedeploy.engines.base import Engine, EngineOptions
from lifedeploy.errors import EngineError
from lifedeploy.kept import NOTHING_KEPT, KeptTokens
from lifedeploy.schedule import Schedule
from lifedeploy.spec import PreprocessSpec
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target

SCHEDULE = Schedule.from_counts(16, 4, (11, 6), (2, 3))
PREPROCESS = PreprocessSpec(
    image_size=(4, 4),
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    interpolation="bicubic",
    crop_pct=1.0,
    crop_mode="center",
)
ORDER, LATER = np.arange(11), np.arange(6) + 5


class Told(Engine):
    """An engine that notes what it is asked, and tells its taps; logits are the image's mean, twice."""

    name = "told"
    opened: list[Told]
    size: int | None = None
    broken = False

    @classmethod
    def availability(cls):
        raise NotImplementedError

    @classmethod
    def plan(cls, requested):
        raise NotImplementedError

    @classmethod
    def build(cls, job):
        raise NotImplementedError

    def _open(self):
        self.batches = []
        self.opened.append(self)
        taps = tuple(TensorSpec(tap, "int64", (None, 6)) for tap in self.options.taps)
        outputs = (TensorSpec("y", "float32", (self.size, 2)), *taps)
        return (TensorSpec("x", "float32", (self.size, 3, 4, 4)),), outputs

    def _close(self):
        self.opened.remove(self)

    def _lane(self, batch):
        raise NotImplementedError

    def _run(self, feeds):
        images = feeds["x"]
        self.batches.append(len(images))
        means = images.mean(axis=(1, 2, 3))
        logits = np.stack([means, means], axis=1).astype(np.float32)
        tokens = {"kept_2": ORDER, "kept_3": LATER}
        told = {tap: np.tile(tokens[tap], (len(images), 1)) for tap in self.options.taps}
        if self.broken:
            logits[1:] = np.nan
        return {"y": logits, **told}


@pytest.fixture
def target(tmp_path):
    """``target(layers, …)``: of a model that names its kept tokens after these layers."""

    def make(layers=(), **attributes):
        kind = type("Kind", (Told,), {"opened": [], **attributes})
        kept = KeptTokens.of(SCHEDULE, layers) if layers else NOTHING_KEPT
        return Target(name="m", path=tmp_path / "m", engine=kind, precision="fp32", kept=kept)

    return make


@pytest.mark.parametrize(("layers", "expected"), [((2,), ORDER[:6]), ((2, 3), LATER)])
def test_survivors_are_asked_of_a_probe_by_the_last_drop(target, layers, expected):
    model = target(layers, taps_change_plan=True)
    images = np.ones((1, 3, 4, 4), np.float32)
    with Session(model, "survivors") as session:
        engine, probe = model.engine.opened
        answer = session.answer(images)
        assert engine.options.taps == ()
        assert probe.options.taps == model.kept.last_tap
        assert engine.batches == probe.batches == [1]
    np.testing.assert_array_equal(answer.logits, [[1, 1]])
    np.testing.assert_array_equal(answer.kept, expected[None])
    assert model.engine.opened == []


def test_where_taps_change_nothing_one_engine_is_asked_once_unless_it_is_a_proof(target):
    model = target((2,), taps_change_plan=False)
    images = np.zeros((2, 3, 4, 4), np.float32)
    with Session(model, "drops") as session:
        assert session.answer(images).kept.shape == (2, 6)
        (engine,) = model.engine.opened
        assert engine.batches == [2]
    with Session(model, "drops", proof=True):
        assert [engine.options.taps for engine in model.engine.opened] == [(), ("kept_2",)]


def test_what_nobody_asks_for_or_the_model_does_not_tell_is_not_asked(target):
    images = np.zeros((1, 3, 4, 4), np.float32)
    for model, watched in ((target((2,)), "nothing"), (target(), "drops"), (target(), "lives")):
        with Session(model, watched, proof=True) as session:
            assert session.answer(images).kept is None
            assert len(model.engine.opened) == 1


def test_a_fixed_batch_is_filled_with_the_last_image_and_cut(target):
    model = target((2,), size=3, taps_change_plan=False)
    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 4, 4, 3), np.uint8)
    with Session(model, "survivors") as session:
        session.preprocess = PREPROCESS
        tensors = session.ask(pixels)
        assert model.engine.opened[0].batches == [3, 3]
        assert session.seconds > 0
    np.testing.assert_allclose(tensors["y"][:, 0] * 255, np.arange(5), rtol=1e-5)
    assert tensors["kept_2"].shape == (5, 11)


def test_what_is_no_number_is_told_by_the_images_name(target):
    model = target(broken=True)
    with Session(model) as session:
        session.preprocess = PREPROCESS
        with pytest.raises(EngineError, match=r"m on told fp32 gives NaN or infinity for b\.png"):
            session.ask(np.zeros((2, 4, 4, 3), np.uint8), ["a.png", "b.png"])


def test_what_fails_to_open_leaves_nothing_open(target, monkeypatch):
    model = target((2,), taps_change_plan=True)
    opens = model.engine._open

    def failing(engine):
        if engine.options.taps:
            raise EngineError("no room for the probe")
        return opens(engine)

    monkeypatch.setattr(model.engine, "_open", failing)
    with pytest.raises(EngineError, match="no room"):
        Session(model, "survivors").__enter__()
    assert model.engine.opened == []


def test_precision_taps_and_method_are_the_targets(target):
    model = replace(target(), precision="fp16", method="life", batch_size=4)
    session = Session(model, options=EngineOptions(threads=2, precision="fp32"))
    assert (session.options.precision, session.options.method, session.options.batch) == ("fp16", "life", 4)
    assert session.options.threads == 2
