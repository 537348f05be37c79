"""A target, open: images in; logits, kept tokens and scores out. Whoever wants answers of a model asks in this way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lifedeploy.bench.profile import Profile, summarise
from lifedeploy.data.preprocess import model_input
from lifedeploy.engines.base import Engine, EngineOptions
from lifedeploy.engines.lanes import Array, Lane, buffers
from lifedeploy.errors import EngineError
from lifedeploy.evaluation.parity import Answer
from lifedeploy.spec import GROUPS_NAME, SCORES_NAME
from lifedeploy.targets.target import Target, graph_precision

# What a model is asked beside its logits: nothing, the tokens that reach the last layer, those left after every drop,
# or these and what it tells of every patch: scores that lives are made of, groups of merged tokens.
Watched = Literal["nothing", "survivors", "drops", "lives"]
_SEED = 5  # of what lanes are filled with


class Session:
    """A target that is open inside a ``with`` block.

    Kept tokens are taps. Where taps may change what a runtime compiles, they are asked of a second engine, the probe:
    logits are always those of the engine as it ships. ``proof`` takes a probe even where taps should change nothing.

    Args:
        target: what to open.
        watched: what to ask beside logits; what the target does not tell is not asked.
        options: how its engine is opened; precision, taps, method and last block are the target's.
    """

    def __init__(
        self,
        target: Target,
        watched: Watched = "nothing",
        *,
        options: EngineOptions | None = None,
        proof: bool = False,
    ) -> None:
        self.target = target
        self.preprocess = target.spec.preprocess if target.spec else None  # None: of another tool, until it is known
        self.seconds = 0.0  # spent in the engine
        self._watched, self._proof = watched, proof
        opened = replace(
            options or EngineOptions(),
            precision=target.precision,
            method=target.method,
            last_block=target.last_block,
            url=target.url,
        )
        self.options = replace(opened, batch=opened.batch or target.batch_size)

    @property
    def taps(self) -> tuple[str, ...]:
        """Tensors that are asked for beside the outputs."""
        kept = self.target.kept
        if self._watched in ("nothing", "survivors"):
            return kept.last_tap if self._watched == "survivors" else ()
        if self._watched == "drops":
            return kept.taps
        told = {SCORES_NAME: self.target.predicts_lives, GROUPS_NAME: self.target.tells_groups}
        return (*kept.taps, *(name for name, tells in told.items() if tells))

    def __enter__(self) -> Session:
        kind, taps = self.target.engine, self.taps
        with ExitStack() as stack:
            shared = not self._proof and not kind.taps_change_plan
            options = replace(self.options, taps=taps if shared else ())
            self.engine = stack.enter_context(kind(self.target.path, options))
            self._probe: Engine | None = None
            if taps and not shared:
                self._probe = stack.enter_context(kind(self.target.path, replace(self.options, taps=taps)))
            there = {spec.name for spec in (self._probe or self.engine).outputs}
            missing = next((tap for tap in taps if tap in (SCORES_NAME, GROUPS_NAME) and tap not in there), None)
            if missing is not None:
                raise EngineError(
                    f"{self.target.place} does not tell {missing}: what no output needs is in no engine of "
                    f"{self.target.engine.name}",
                    hint="the ONNX model that it was built of does",
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def precision(self) -> str:
        """That runs: of another tool's graph the graph's own, where the runtime computes as the graph says."""
        if self.target.spec is None and self.target.engine.keeps_graph_precision:
            return graph_precision(self.target.path)
        return self.engine.precision

    @property
    def takes_pixels(self) -> bool:
        """Whether the model normalises uint8 pixels itself."""
        return self.target.takes_pixels if self.target.spec else self.engine.inputs[0].dtype == "uint8"

    def tensors(self, images: Array) -> dict[str, Array]:
        """Outputs and taps of one inference: logits first, by contract, since other tools call them anything.

        Raises:
            EngineInputError: the images are not of the shape and type that goes into the graph.
        """
        began = time.perf_counter()
        tensors = self.engine.run({self.engine.inputs[0].name: images})
        self.seconds += time.perf_counter() - began
        if self._probe is not None:
            tapped = self._probe.run({self._probe.inputs[0].name: images})
            tensors |= {name: tapped[name] for name in self.taps}
        return tensors

    def answer(self, images: Array) -> Answer:
        """The answer to images as they go into the graph, in one inference."""
        return self.read(self.tensors(images))

    def read(self, tensors: Mapping[str, Array]) -> Answer:
        """Logits, and the tokens that were kept: the survivors, or what every drop left."""
        kept = self.target.kept
        tokens = None
        if kept and self._watched != "nothing":
            tokens = kept.survivors(tensors) if self._watched == "survivors" else kept.whole(tensors)
        return Answer(tensors[self.engine.outputs[0].name], tokens)

    def ask(self, pixels: NDArray[np.uint8], names: Sequence[str] = ()) -> dict[str, Array]:
        """Outputs and taps for any number of images, (B, H, W, 3), which messages call by ``names``.

        An engine that is fixed to a batch gets as many as it takes, the last one repeated where there are fewer.

        Raises:
            EngineError: logits or scores are not all numbers.
        """
        assert self.preprocess is not None  # of another tool's graph it is known before it is asked
        spec, size = self.engine.inputs[0], self.engine.inputs[0].shape[0] or len(pixels)
        wanted = (self.engine.outputs[0].name, *self.taps)
        parts: dict[str, list[Array]] = {name: [] for name in wanted}
        for start in range(0, len(pixels), size):
            batch = pixels[start : start + size]
            filled = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            images = model_input(filled, self.preprocess, in_graph=self.takes_pixels)
            # A half-precision graph may take half-precision images.
            tensors = self.tensors(images.astype(spec.dtype, copy=False))
            for name in wanted:
                if tensors[name].shape[:1] != (size,):
                    shape = tensors[name].shape
                    raise EngineError(
                        f"{self.target.place} gives {name} of shape {shape}; expected a row for each image"
                    )
                parts[name].append(tensors[name][: len(batch)])
        tensors = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        for name in (wanted[0], *(name for name in self.taps if name == SCORES_NAME)):
            require_finite(
                tensors[name], names, f"{self.target.place} on {self.target.engine.name} {self.target.precision}"
            )
        return tensors

    def lane(self, batch: int, number: int = 0) -> Lane:
        """A lane with something other than zeros in it: some processors are faster on zeros, and TopK on ties."""
        lane = self.engine.lane(batch)
        _fill(lane.inputs, _SEED + number)
        return lane

    def profile(self, model: str, batch: int) -> Profile:
        """Where the time of an inference goes.

        Raises:
            EngineError: this runtime tells no times of layers.
        """
        feeds = buffers(self.engine.inputs, batch)
        _fill(feeds, _SEED)
        return summarise(
            self.engine.profile(feeds),
            model=model,
            method=self.target.shown_method,
            engine=self.target.engine.name,
            precision=self.engine.precision,
            batch=batch,
        )


def require_finite(answer: Array, images: Sequence[str], what: str) -> None:
    """Make sure that an answer to ``images``, a row for each, is all numbers; ``what`` gave it.

    Raises:
        EngineError: one holds NaN or infinity; with the first image whose answer does.
    """
    unsound = np.flatnonzero(~np.isfinite(answer.reshape(len(answer), -1)).all(axis=1))
    if len(unsound):
        first = int(unsound[0])
        raise EngineError(
            f"{what} gives NaN or infinity for {images[first] if images else f'image {first}'}",
            hint="lifedeploy verify tells whether it computes what its checkpoint does",
        )


def most_probable(logits: Array, top: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ``top`` best classes of each image, and how probable they are: two arrays of (B, top)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return best, np.take_along_axis(probabilities, best, axis=1)


def _fill(inputs: Mapping[str, Array], seed: int) -> None:
    generator = np.random.default_rng(seed)
    for array in inputs.values():
        if np.issubdtype(array.dtype, np.floating):
            array[...] = generator.standard_normal(array.shape, dtype=np.float32).astype(array.dtype)
        else:
            array[...] = generator.integers(0, 128, array.shape, dtype=np.int64).astype(array.dtype)
