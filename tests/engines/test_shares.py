"""A batch's images shared among threads, in engines on CPUs."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest

from lifedeploy.engines import onnxruntime as engine
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.engines.openvino import OpenVino
from lifedeploy.engines.openvino_lane import infer_all
from lifedeploy.engines.shares import WHOLE, Crew, bounds, cut, is_shared
from lifedeploy.errors import EngineError
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from tests.conftest import make_tiny


@pytest.mark.parametrize(
    ("batch", "threads", "begins"),
    [
        (8, 2, (0, 4, 8)),
        (8, 4, (0, 2, 4, 6, 8)),
        (4, 4, (0, 1, 2, 3, 4)),
        (33, 2, (0, 16, 33)),  # 17 of 16.5
        (128, 3, (0, 42, 85, 128)),
        (1, 2, WHOLE),
        (8, 1, WHOLE),
        (3, 2, WHOLE),  # one thread would wait half of the time
        (8, 3, WHOLE),
        (9, 2, WHOLE),
        (8, 16, WHOLE),
    ],
)
def test_images_are_shared_where_no_thread_waits_long(batch, threads, begins):
    assert bounds(batch, threads) == begins
    assert is_shared(begins) == (begins != WHOLE)


def test_shares_are_views():
    array = np.zeros((5, 2))
    for number, part in enumerate(cut({"it": array}, (0, 2, 5))):
        part["it"][...] = number + 1
    assert array[:, 0].tolist() == [1, 1, 2, 2, 2]
    (whole,) = cut({"it": array}, WHOLE)
    assert whole["it"].base is array and whole["it"].shape == array.shape


def test_a_crew_is_done_when_all_are():
    crew, threads, begun = Crew(3), set(), threading.Barrier(3)

    def work():
        begun.wait(timeout=10)  # all three at the same time, or never
        threads.add(threading.get_ident())

    crew.do([work] * 3)
    assert len(threads) == 3 and threading.get_ident() in threads
    crew.leave()


@pytest.mark.parametrize("failing", [0, 2])
def test_what_one_of_a_crew_raises_is_raised_after_all_are_done(failing):
    crew, done = Crew(3), []

    def work(number):
        if number == failing:
            raise ValueError(f"share {number}")
        done.append(number)

    with pytest.raises(ValueError, match=f"share {failing}"):
        crew.do([partial(work, number) for number in range(3)])
    assert sorted(done) == [number for number in range(3) if number != failing]
    crew.leave()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """A tiny model's graph with a dynamic batch, and with one of 4."""
    folder = tmp_path_factory.mktemp("graphs")
    for name, batch in (("free", None), ("fixed", 4)):
        graph = exporter.trace(*make_tiny(), GraphOptions(batch_size=batch))
        exporter.save(graph, folder / f"{name}.onnx", metadata={})
    return folder


@pytest.fixture
def opened(monkeypatch):
    """The threads of every session that is opened."""
    threads = []
    make = engine.new_session

    def watched(ort, source, options, providers, **more):
        threads.append(options.intra_op_num_threads)
        return make(ort, source, options, providers, **more)

    monkeypatch.setattr(engine, "new_session", watched)
    return threads


def images(batch):
    return np.random.default_rng(batch).standard_normal((batch, 3, 32, 32), dtype=np.float32)


def asked(lane, batch):
    lane.inputs["images"][...] = images(batch)
    lane.infer()
    return lane.outputs["logits"].copy()


def test_a_session_of_one_thread_computes_all_shares(graphs, opened):
    with OnnxRuntime(graphs / "free.onnx", EngineOptions(threads=2, batch=4)) as shared:
        assert opened == [1]
        answer = asked(shared.lane(4), 4)
        np.testing.assert_array_equal(shared.run({"images": images(4)})["logits"], answer)
        assert opened == [1]
        asked(shared.lane(3), 3)  # which cannot be shared evenly
        assert opened == [1, 2]
        assert shared.run({"images": images(3)})["logits"].shape == (3, 5)
        assert opened == [1, 2]
    with OnnxRuntime(graphs / "free.onnx", EngineOptions(threads=1, batch=4)) as alone:
        np.testing.assert_allclose(asked(alone.lane(4), 4), answer, rtol=1e-5, atol=1e-6)


def test_what_is_not_asked_for_by_its_batch_opens_one_session(graphs, opened):
    with OnnxRuntime(graphs / "free.onnx", EngineOptions(threads=2)) as whole:
        assert whole.run({"images": images(4)})["logits"].shape == (4, 5)
    assert opened == [2]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fixed", {"threads": 2, "batch": 4}),
        ("free", {"threads": 2, "batch": 4, "streams": 2}),
        ("free", {"threads": 2, "batch": 4, "taps": ("kept_2",)}),
    ],
)
def test_where_nothing_can_be_shared_operators_are(graphs, opened, name, options):
    with OnnxRuntime(graphs / f"{name}.onnx", EngineOptions(**options)) as whole:
        assert len(asked(whole.lane(4), 4)) == 4
    assert opened == [options["threads"] // options.get("streams", 1)]


def test_a_share_that_fails_is_an_engine_error(graphs):
    with OnnxRuntime(graphs / "free.onnx", EngineOptions(threads=2, batch=4)) as shared:
        lane = shared.lane(4)
        lane._bindings[1].clear_binding_inputs()
        with pytest.raises(EngineError, match="ONNX Runtime failed"):
            lane.infer()


@pytest.fixture
def compiled(monkeypatch):
    """The batch and the streams of every model that OpenVINO compiles."""
    ov = pytest.importorskip("openvino")
    made = []
    make = ov.Core.compile_model

    def watched(self, model, device, config):
        made.append((model.inputs[0].get_partial_shape()[0], config["NUM_STREAMS"]))
        return make(self, model, device, config)

    monkeypatch.setattr(ov.Core, "compile_model", watched)
    return made


def test_openvino_computes_shares_in_streams(graphs, compiled):
    with OpenVino(graphs / "free.onnx", EngineOptions(threads=2, batch=4)) as shared:
        assert compiled == [(2, 2)]
        assert (shared.inputs[0].shape[0], shared.outputs[0].shape[0]) == (4, 4)
        lane = shared.lane(4)
        answer = asked(lane, 4)
        np.testing.assert_array_equal(shared.run({"images": images(4)})["logits"], answer)
        np.testing.assert_array_equal(asked(lane, 4), answer)
        assert shared.profile({"images": images(4)}, runs=1)
        assert compiled == [(2, 2), (4, 1)]  # a profile is of the whole batch, operator by operator
    with OpenVino(graphs / "free.onnx", EngineOptions(threads=1, batch=4)) as alone:
        np.testing.assert_allclose(asked(alone.lane(4), 4), answer, rtol=1e-4, atol=1e-5)
    with OnnxRuntime(graphs / "free.onnx", EngineOptions(threads=2, batch=4)) as other:
        np.testing.assert_allclose(asked(other.lane(4), 4), answer, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("fixed", {"threads": 2, "batch": 4}, (4, 1)),
        ("free", {"threads": 2, "batch": 33}, (33, 1)),  # halves that are equal are needed, and one shape
        ("free", {"threads": 2, "batch": 1}, (1, 1)),
        ("free", {"threads": 2, "batch": 4, "streams": 2}, (4, 2)),
        ("free", {"threads": 2, "batch": 4, "taps": ("kept_2",)}, (2, 2)),
    ],
)
def test_openvino_shares_a_free_batch_in_equal_parts(graphs, compiled, name, options, expected):
    with OpenVino(graphs / f"{name}.onnx", EngineOptions(**options)) as engine:
        batch = options["batch"]
        assert len(asked(engine.lane(batch), batch)) == batch
        if "taps" in options:
            kept = engine.run({"images": images(batch)})["kept_2"]
            assert kept.shape[0] == batch
    assert compiled == [expected]


def test_a_request_that_fails_is_waited_for_with_all_others():
    log = []

    class Request:
        def __init__(self, name, fails=""):
            self.name, self.fails = name, fails

        def start_async(self, feed):
            if self.fails == "start":
                raise RuntimeError(self.name)
            log.append(f"{self.name} begins")

        def wait(self):
            log.append(f"{self.name} is over")
            if self.fails == "wait":
                raise RuntimeError(self.name)

    with pytest.raises(RuntimeError, match="a"):
        infer_all([Request("a", "wait"), Request("b")], [None, None])
    assert log == ["a begins", "b begins", "a is over", "b is over"]
    log.clear()
    with pytest.raises(RuntimeError, match="b"):
        infer_all([Request("a"), Request("b", "start")], [None, None])
    assert log == ["a begins", "a is over"]
