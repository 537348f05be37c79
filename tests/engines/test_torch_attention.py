"""Which backend computes attention on PyTorch: what follows from times, with fakes, and what PyTorch does, on a CPU."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.torch import TorchCompiled
from lifedeploy.engines.torch_attention import (
    BACKENDS,
    CALLS,
    ROUNDS,
    TRACED,
    Choice,
    Race,
    choose,
    cuda_clock,
    measured,
    prioritised,
)
from lifedeploy.errors import EngineError
from tests.conftest import make_tiny
from tests.engines.test_torch_cuda import OnCpu

FLASH, CUDNN, EFFICIENT, MATH = BACKENDS
ON_CPU = {FLASH, MATH}  # backends that a CPU has


def race(count: int = 1, **ms: float) -> Race:
    return Race(shape="8 × 6 × 197 × 64 over 197 keys", count=count, ms=ms)


def clock(**ms: float):
    """Times that depend on the backend alone; what was asked for is kept."""

    def times(jobs):
        times.jobs = dict(jobs)
        return {(number, backend): ms[backend] for number, backend in jobs}

    return times


@pytest.mark.parametrize("fastest", BACKENDS)
def test_the_fastest_comes_first(fastest):
    choice = choose([race(12, **{backend: 1.0 + (backend != fastest) for backend in BACKENDS})])
    assert choice.order[0] == fastest and sorted(choice.order) == sorted(BACKENDS)
    assert choice.kernels == {fastest: 12}


def test_who_refuses_a_mask_may_still_come_first():
    """As of ToMe: flash attention computes the layers without a mask, and the fastest of the others those with one."""
    choice = choose(
        [
            race(4, FLASH_ATTENTION=1.0, CUDNN_ATTENTION=1.2, EFFICIENT_ATTENTION=1.5, MATH=9.0),
            race(8, CUDNN_ATTENTION=2.0, EFFICIENT_ATTENTION=1.8, MATH=9.0),
        ]
    )
    assert choice.order == (FLASH, EFFICIENT, CUDNN, MATH)
    assert choice.kernels == {EFFICIENT: 8, FLASH: 4}
    assert choice.note == (
        "attention by EFFICIENT_ATTENTION (8), FLASH_ATTENTION (4), measured against CUDNN_ATTENTION, MATH"
    )


def test_attentions_count_as_often_as_the_model_has_them():
    """One order holds for all: what is faster once and slower eleven times does not come first."""
    early, late = race(1, FLASH_ATTENTION=1.0, CUDNN_ATTENTION=3.0), race(11, FLASH_ATTENTION=1.0, CUDNN_ATTENTION=0.9)
    assert choose([early, late]).order[0] == FLASH
    assert choose([early, race(30, **late.ms)]).order == (CUDNN, FLASH, EFFICIENT, MATH)


def test_times_that_differ_by_less_than_they_scatter_choose_nothing():
    assert choose([race(FLASH_ATTENTION=1.005, CUDNN_ATTENTION=1.0, MATH=5.0)]).order[0] == FLASH
    assert choose([race(FLASH_ATTENTION=1.02, CUDNN_ATTENTION=1.0, MATH=5.0)]).order[0] == CUDNN


def test_what_fails_is_never_first_and_what_nobody_computes_is_an_error():
    fails = math.inf
    choice = choose([race(FLASH_ATTENTION=fails, CUDNN_ATTENTION=2.0, MATH=1.0)])
    assert choice.kernels == {MATH: 1}
    assert choice.note == "attention by MATH (1), measured against CUDNN_ATTENTION"
    assert choose([race(FLASH_ATTENTION=fails, MATH=1.0)]).note == "attention by MATH (1), which alone takes it"
    with pytest.raises(EngineError, match="computes all attentions of this model: 8 × 6 × 197 × 64 over 197 keys"):
        choose([race(MATH=1.0), race(FLASH_ATTENTION=fails, MATH=fails)])


def test_a_model_without_attention_has_nothing_to_choose():
    choice = choose([])
    assert (choice, choice.note, choice.kernels) == (Choice(order=(), races=()), "", {})
    assert prioritised(abs, choice.order) is abs


def test_attentions_are_measured_as_the_model_has_them():
    """16 patches in two layers, then 11 and 6, and CLS."""
    model, _ = make_tiny()
    choice = measured(model, torch.randn(3, 3, 32, 32), clock(FLASH_ATTENTION=2.0, MATH=1.0))
    assert [(item.shape, item.count) for item in choice.races] == [
        ("3 × 2 × 17 × 16 over 17 keys", 2),
        ("3 × 2 × 12 × 16 over 12 keys", 1),
        ("3 × 2 × 7 × 16 over 7 keys", 1),
    ]
    assert all(item.ms == {FLASH: 2.0, MATH: 1.0} for item in choice.races)
    assert (choice.order[0], choice.kernels) == (MATH, {MATH: 4})


def test_jobs_compute_the_attention_of_a_single_query_with_a_mask():
    """As a last layer has it that is computed for CLS alone."""
    query, key, value = torch.randn(2, 3, 1, 8), torch.randn(2, 3, 17, 8), torch.randn(2, 3, 17, 8)
    mask = torch.randn(2, 1, 1, 17)

    def model(images):
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    times = clock(FLASH_ATTENTION=1.0, MATH=2.0)
    choice = measured(model, None, times)
    assert [item.shape for item in choice.races] == ["2 × 3 × 1 × 8 over 17 keys, with a mask"]
    expected = (torch.softmax(query @ key.mT / math.sqrt(8) + mask, dim=-1) @ value).transpose(1, 2).flatten(2)
    assert {backend for _, backend in times.jobs} == ON_CPU
    for job in times.jobs.values():
        assert job().shape == (2, 1, 24)
        torch.testing.assert_close(job(), expected)


@pytest.mark.parametrize(("first", "flash"), [(FLASH, True), (MATH, False)])
def test_the_order_is_compiled_in(first, flash):
    """Set inside, it is traced with the whole graph, holds where it is not set any more, and leaves nothing behind."""
    traced = []

    def compiler(graph, inputs):
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def keep(graph, inputs):
            traced.append(" ".join(str(node.target) for node in graph.graph.nodes))
            return make_boxed_func(graph.forward)

        return aot_autograd(fw_compiler=keep, inference_compiler=keep)(graph, inputs)

    def model(x):
        return functional.scaled_dot_product_attention(x, x, x)

    x, before = torch.randn(1, 2, 9, 8), torch._C._get_sdp_priority_order()
    # On a CPU MATH comes first only where it is the only one.
    order = BACKENDS if flash else (MATH,)
    assert order[0] == first
    compiled = torch.compile(prioritised(model, order), backend=compiler, fullgraph=True, dynamic=False)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x))
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            compiled(x)
    assert len(traced) == 1
    assert ("_scaled_dot_product_flash_attention" in traced[0]) == flash
    assert torch._C._get_sdp_priority_order() == before and torch._C._get_math_sdp_enabled()


def test_what_an_order_is_traced_to_may_be_cached():
    """PyTorch's cache takes no graph with functions that it does not know; the names are PyTorch's own, and private."""
    from torch._inductor import config

    engine = TorchCompiled(Path("model.safetensors"))
    engine._torch = torch
    with config.patch(unsafe_marked_cacheable_functions={"other": "1"}):
        engine._ready(torch.nn.Identity())
        assert config.unsafe_marked_cacheable_functions == {"other": "1"} | dict.fromkeys(TRACED, torch.__version__)
    for name in TRACED:
        assert callable(getattr(torch.nn.attention, name.rpartition(".")[2]))


class FakeGpu:
    """As much of ``torch.cuda`` as a clock needs: time passes as jobs say."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        names = ("Stream", "Event", "CUDAGraph", "graph", "stream", "current_stream")
        for name in names:
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name.lower()}"))

    def job(self, name: str, ms: float, error: Exception | None = None):
        def run():
            if error is not None:
                raise error
            self.log.append(name)
            self.now += ms

        return run

    def _stream(self, stream=None):
        @contextmanager
        def entered():
            yield

        return entered() if stream is not None else SimpleNamespace(wait_stream=lambda other: None)

    def _current_stream(self):
        return object()

    def _event(self, *, enable_timing):
        event = SimpleNamespace(at=0.0, synchronize=lambda: None)
        event.record = lambda stream: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def _cudagraph(self):
        graph = SimpleNamespace(taken=[])
        graph.replay = lambda: [self.job(*item)() for item in graph.taken]
        return graph

    @contextmanager
    def _graph(self, graph, *, stream, capture_error_mode):
        start, began = len(self.log), self.now
        yield
        names = self.log[start:]
        graph.taken = [(name, (self.now - began) / len(names)) for name in names]
        del self.log[start:]


def test_the_clock_takes_turns_and_leaves_out_what_fails(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    jobs = {
        (0, FLASH): gpu.job("a", 0.25),
        (0, CUDNN): gpu.job("b", 9.0, torch.OutOfMemoryError("none left")),
        (0, MATH): gpu.job("c", 0.5),
    }
    assert cuda_clock(jobs) == {(0, FLASH): 0.25, (0, CUDNN): math.inf, (0, MATH): 0.5}
    warm_up = ["a", "a", "c", "c"]
    assert gpu.log == warm_up + [*["a"] * CALLS, *["c"] * CALLS] * (1 + ROUNDS)
    with pytest.raises(ValueError, match="a mistake"):  # which is no refusal
        cuda_clock({(0, MATH): gpu.job("d", 1.0, ValueError("a mistake"))})


class Measuring(OnCpu):
    measurements = 0

    def _times(self, jobs):
        self.measurements += 1
        return clock(FLASH_ATTENTION=2.0, MATH=1.0)(jobs)


class Eagerly(Measuring, TorchCompiled):
    """``torch-compiled``, which compiles nothing."""

    def _ready(self, model):
        return model


@pytest.mark.parametrize("engine", [Measuring, Eagerly])
def test_an_engine_chooses_once_for_each_batch_and_tells(exported, engine):
    weights = next(exported.glob("*/weights.safetensors"))
    with engine(weights) as opened:
        for images in (torch.zeros(2, 3, 64, 64).numpy(), torch.zeros(1, 3, 64, 64).numpy()) * 2:
            opened.run({"images": images})
        assert opened.measurements == 2 and set(opened.attention) == {1, 2}
        assert opened.attention[2].order[0] == MATH
        name = opened.name
        assert opened.note(2) == f"{name} fp32, batch 2: attention by MATH (6), measured against FLASH_ATTENTION"
        assert opened.note(3) == ""


def test_where_several_threads_would_set_the_order_for_each_other_it_is_left_alone(exported):
    weights = next(exported.glob("*/weights.safetensors"))
    for engine, chooses in ((Measuring, False), (Eagerly, True)):
        with engine(weights, EngineOptions(streams=2)) as opened:
            opened.run({"images": torch.zeros(1, 3, 64, 64).numpy()})
            assert bool(opened.attention) == chooses
