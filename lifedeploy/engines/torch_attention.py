"""Which backend of PyTorch computes attention, by measurement on the GPU at hand.

``scaled_dot_product_attention`` has several backends, and PyTorch takes one by rules of its own. Which is the fastest
depends on the GPU, the batch, the tokens, the precision and the mask, so all of them compute the attentions that a
model really has, and the model runs under the order of priority that takes the least time
(https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.sdpa_kernel.html).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from statistics import median
from typing import Any

from lifedeploy.errors import EngineError

MATH = "MATH"  # MatMul, Softmax, MatMul: takes everything
# Names of torch.nn.attention.SDPBackend. Among equals the earlier is taken.
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", MATH)
# What an order becomes in a traced graph. The order is an argument there, and so part of a cache's key; without their
# names among those that may be cached, the graph would be compiled anew at every start
# (https://github.com/pytorch/pytorch/issues/194007).
TRACED = ("torch.nn.attention._sdpa_kernel", "torch.nn.attention._backend_from_string")
SAME = 0.01  # share by which times differ that are the same: the choice should not change from one start to the next
ROUNDS = 9
CALLS = 8  # of one attention in a row, so that the clock's resolution (0.5 µs) is small against what it measures


@dataclass(frozen=True, kw_only=True)
class Race:
    """One attention of a model, under every backend that takes it."""

    shape: str  # batch × heads × queries × channels of a head, and keys
    count: int  # attentions of the model that are alike
    ms: Mapping[str, float]  # backend that takes it → ms of one attention; infinity: it failed

    def winner(self, order: Sequence[str]) -> str:
        """The backend that computes it under an order of priority: the first that takes it."""
        return next(backend for backend in order if backend in self.ms)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The order of priority that a model's attention is computed under."""

    order: tuple[str, ...]  # backends, the first choice first; (): the model has no attention to choose for
    races: tuple[Race, ...]

    @property
    def kernels(self) -> dict[str, int]:
        """Backend → attentions of the model that it computes, the most frequent first."""
        counts: Counter[str] = Counter()
        for race in self.races:
            counts[race.winner(self.order)] += race.count
        return dict(counts.most_common())

    @property
    def note(self) -> str:
        """In words: ``attention by CUDNN_ATTENTION (12), measured against FLASH_ATTENTION, MATH``; '' of none."""
        if not self.order:
            return ""
        taken = ", ".join(f"{backend} ({count})" for backend, count in self.kernels.items())
        measured = {backend for race in self.races for backend, ms in race.ms.items() if math.isfinite(ms)}
        rivals = ", ".join(backend for backend in BACKENDS if backend in measured - self.kernels.keys())
        return f"attention by {taken}" + (f", measured against {rivals}" if rivals else ", which alone takes it")


def choose(races: Sequence[Race]) -> Choice:
    """The order of priority under which all attentions of a model together take the least time.

    Raises:
        EngineError: no order computes all of them.
    """
    if not races:
        return Choice(order=(), races=())
    taking = [backend for backend in BACKENDS if any(backend in race.ms for race in races)]
    refusing = [backend for backend in BACKENDS if backend not in taking]
    totals = {
        (*order, *refusing): sum(race.count * race.ms[race.winner(order)] for race in races)
        for order in permutations(taking)
    }
    least = min(totals.values())
    if not math.isfinite(least):
        shapes = ", ".join(race.shape for race in races if not any(map(math.isfinite, race.ms.values())))
        raise EngineError(f"no backend of PyTorch computes all attentions of this model: {shapes or 'none takes all'}")
    order = next(order for order, total in totals.items() if total <= least * (1 + SAME))
    return Choice(order=order, races=tuple(races))


@dataclass
class _Call:
    """A call of ``scaled_dot_product_attention`` as the model makes it, with its tensors as they lie in memory."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    count: int = 0

    def compute(self, backend: str) -> Any:
        """Compute it by one backend; heads are put together again, which some leave as a copy to whoever comes next."""
        from torch.nn import functional

        with _priority([backend]):
            attended = functional.scaled_dot_product_attention(*self.arguments, **self.keywords)
        return attended.transpose(1, 2).flatten(2)

    @property
    def takers(self) -> list[str]:
        """Backends that take these shapes, types and mask, by PyTorch's own rules."""
        import torch

        takers = []
        for backend in BACKENDS:
            # Beside MATH, which takes what the other refuses: alone, a refusal is an error and a page of warnings.
            with _priority([backend, MATH]):
                taken = torch._fused_sdp_choice(*self.arguments, **self.keywords)
            if taken == int(_backend(backend)):
                takers.append(backend)
        return takers

    @property
    def shape(self) -> str:
        """In words, with the mask."""
        query, key = self.arguments[:2]
        mask = ", with a mask" if self.keywords.get("attn_mask") is not None or len(self.arguments) > 3 else ""
        return f"{' × '.join(map(str, query.shape))} over {key.shape[-2]} keys{mask}"


Job = tuple[int, str]  # the number of an attention, and a backend
# Runs jobs in turn, several rounds of them: job → median of its ms, infinity where it fails.
Clock = Callable[[Mapping[Job, Callable[[], Any]]], Mapping[Job, float]]


def measured(model: Any, images: Any, clock: Clock) -> Choice:
    """Measure the attentions of one inference, and choose.

    Args:
        model: on its device, in its precision; it is run once.
        images: (B, 3, H, W), likewise.
        clock: how jobs are timed, :func:`cuda_clock` on a GPU.

    Raises:
        EngineError: no order of priority computes all attentions.
    """
    import torch

    with torch.inference_mode():
        calls = _calls(model, images)
        jobs: dict[Job, Callable[[], Any]] = {
            (number, backend): partial(call.compute, backend)
            for number, call in enumerate(calls)
            for backend in call.takers
        }
        ms = clock(jobs)
    return choose(
        [
            Race(
                shape=call.shape,
                count=call.count,
                ms={backend: ms[number, backend] for backend in BACKENDS if (number, backend) in jobs},
            )
            for number, call in enumerate(calls)
        ]
    )


def prioritised(model: Callable[[Any], Any], order: Sequence[str]) -> Callable[[Any], Any]:
    """The model as a function whose attention is computed under an order of priority.

    The order is set inside, so that ``torch.compile`` traces it: what is set around a compiled model is no part of the
    key of its caches, and the kernels of another order come back from there
    (https://github.com/pytorch/pytorch/issues/185449).
    """
    if not order:
        return model

    from torch.nn.attention import sdpa_kernel

    backends = [_backend(name) for name in order]

    def forward(images: Any) -> Any:
        with sdpa_kernel(backends, set_priority=True):
            return model(images)

    return forward


def cuda_clock(jobs: Mapping[Job, Callable[[], Any]]) -> dict[Job, float]:
    """Median ms of each job on the current GPU, by its own clock; infinity for what fails there.

    Jobs are captured as CUDA graphs: small attentions take less time than their launches, which a compiled model does
    not pay either. Rounds are interleaved, so that a clock rate that changes meanwhile meets all of them.
    """
    import torch

    stream, graphs = torch.cuda.Stream(), {}
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream.wait_stream(torch.cuda.current_stream())
    for name, job in jobs.items():
        try:
            with torch.cuda.stream(stream):
                for _ in range(2):
                    job()  # libraries make their plans and workspaces, which they must not while being captured
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                for _ in range(CALLS):
                    job()
        except RuntimeError:  # out of memory, or a kernel that this GPU has not: it takes no part
            continue
        graphs[name] = graph
    times: dict[Job, list[float]] = {name: [] for name in graphs}
    with torch.cuda.stream(stream):
        for number in range(1 + ROUNDS):  # the first one warms up
            for name, graph in graphs.items():
                began.record(stream)
                graph.replay()
                ended.record(stream)
                ended.synchronize()
                if number:
                    times[name].append(began.elapsed_time(ended) / CALLS)
    return {name: median(times[name]) if name in times else math.inf for name in jobs}


def _calls(model: Any, images: Any) -> list[_Call]:
    """The attentions of one inference; what is alike is there once, with its number."""
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    calls: dict[Hashable, _Call] = {}

    class Listening(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            keywords = kwargs or {}
            if func is functional.scaled_dot_product_attention:
                key = tuple(_layout(value) for value in (*args, *sorted(keywords.items())))
                calls.setdefault(key, _Call(args, keywords)).count += 1
            return func(*args, **keywords)

    with Listening():
        model(images)
    return list(calls.values())


def _layout(value: Any) -> Hashable:
    """What kernels are chosen by: of a tensor its shape, strides and type; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(_layout, value))
    return (value.shape, value.stride(), value.dtype) if hasattr(value, "stride") else value


def _priority(order: Sequence[str]) -> Any:
    """A context in which attention is computed by the first of these backends that takes it."""
    from torch.nn.attention import sdpa_kernel

    return sdpa_kernel([_backend(name) for name in order], set_priority=True)


def _backend(name: str) -> Any:
    from torch.nn.attention import SDPBackend

    return getattr(SDPBackend, name)
