"""Images of several requests as one batch: each answer is the image's own, whatever was in the batch with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lifedeploy.errors import EngineError, EngineInputError
from lifedeploy.serving import batching
from lifedeploy.serving.batching import Batcher
from lifedeploy.serving.plan import Plan
from lifedeploy.targets.find import find
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target, target_of
from tests.serving.conftest import Packages

IMAGES = np.random.default_rng(3).standard_normal((16, 3, 64, 64)).astype(np.float32)


@pytest.fixture(params=["onnxruntime", "openvino"])
def target(packages: Packages, request: pytest.FixtureRequest) -> Target:
    return target_of(find(packages.engine(request.param)))


def expected(target: Target) -> np.ndarray:
    with Session(target) as session:
        return session.answer(IMAGES).logits


def test_every_number_of_images_is_answered_and_buffers_are_kept_of_few(target: Target) -> None:
    logits = expected(target)
    with Batcher(target, Plan(max_batch=16, preferred=(3, 16)), processors=1) as batcher:
        for count in range(1, 17):
            parts = [IMAGES[: count // 2], IMAGES[count // 2 : count]]
            answer = batcher.infer([part for part in parts if len(part)], ["logits"])["logits"]
            np.testing.assert_allclose(answer, logits[:count], rtol=1e-3, atol=1e-4)
        assert len(batcher._lanes) <= batching._LANES
        if target.engine.prefers_fixed_batch:
            assert sorted(batcher._sessions) == [1, 2, 3, 4, 8, 16]


def test_a_batch_that_is_fixed_or_has_a_least_is_filled_up(target: Target) -> None:
    logits, plan = expected(target), Plan(max_batch=4, preferred=(4,))
    with Batcher(replace(target, batch_size=4), plan) as batcher:
        answer = batcher.infer([IMAGES[:1]], ["logits"])["logits"]
        assert (answer.shape, list(batcher._lanes)) == ((1, 3), [4])
        np.testing.assert_allclose(answer, logits[:1], rtol=1e-3, atol=1e-4)
    if target.engine.prefers_fixed_batch:
        with Batcher(target, plan, smallest=4) as batcher:
            assert list(batcher._sessions) == [4]


def test_whose_fault_it_is_that_an_answer_is_no_number(target: Target) -> None:
    wrong = np.full_like(IMAGES[:1], np.nan)
    with Batcher(target, Plan(max_batch=1, preferred=(1,))) as batcher:
        logits = batcher.infer([IMAGES[:1]], ["logits"])["logits"]
        batcher.require_finite(logits, IMAGES[:1])
        with pytest.raises(EngineInputError, match="the images hold NaN or infinity"):
            batcher.require_finite(logits * np.nan, wrong)
        with pytest.raises(EngineError, match=rf"on {target.engine.name} fp32 gives NaN or infinity for image 0"):
            batcher.require_finite(logits * np.nan, IMAGES[:1])
