"""Requests whose images are shared among threads: the same answers, all of them or an error."""

from __future__ import annotations

import numpy as np
import pytest

from lifedeploy.calibration.quantize import write
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Lane
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.engines.onnxruntime_lanes import BoundLane, SharedLane, parted, shares
from tests.calibration.conftest import SIZE


def test_shares_are_equal_and_no_image_is_alone():
    assert {(threads, batch): shares(threads, batch) for threads in (1, 2, 4) for batch in (1, 2, 4, 7, 8)} == {
        **{(1, batch): 1 for batch in (1, 2, 4, 7, 8)},
        **{(2, 1): 1, (2, 2): 1, (2, 4): 2, (2, 7): 1, (2, 8): 2},
        **{(4, 1): 1, (4, 2): 1, (4, 4): 1, (4, 7): 1, (4, 8): 4},
    }


def test_parts_are_views_of_all_images():
    whole = np.arange(12).reshape(6, 2)
    parts = [part["x"] for part in parted({"x": whole}, 3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert all(np.shares_memory(part, whole) for part in parts)


class Ended(Lane):
    def __init__(self, error: Exception | None = None) -> None:
        super().__init__({}, {})
        self.error, self.ended = error, False

    def infer(self) -> None:
        self.ended = True
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_of_one_share_is_told_after_all_have_ended(failing):
    lanes = [Ended(ValueError(f"share {share}") if share == failing else None) for share in range(3)]
    with pytest.raises(ValueError, match=f"share {failing}"):
        SharedLane(lanes, {}, {}).infer()
    assert all(lane.ended for lane in lanes)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"precision": "int8", "threads": 2}, SharedLane),
        ({"precision": "int8", "threads": 1}, BoundLane),
        ({"precision": "int8", "threads": 2, "streams": 2}, BoundLane),
        ({"precision": "fp32", "threads": 2}, BoundLane),  # of whatever was opened: images may depend on each other
    ],
)
def test_a_lane_answers_what_run_does(prepared, tmp_path, options, kind):
    write(prepared(), tmp_path / "q.onnx")
    images = np.random.default_rng(1).standard_normal((4, 3, SIZE, SIZE), dtype=np.float32)
    with OnnxRuntime(tmp_path / "q.onnx", EngineOptions(**options)) as opened:
        lane = opened.lane(4)
        assert type(lane) is kind
        for order in (1, -1):
            lane.inputs["images"][...] = images[::order]
            lane.infer()
            answer = opened.run({"images": images[::order]})["logits"]
            np.testing.assert_allclose(lane.outputs["logits"], answer, atol=1e-4 * np.abs(answer).max())
        assert type(opened.lane(3)) is BoundLane
