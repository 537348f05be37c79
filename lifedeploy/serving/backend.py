"""What runs inside Triton's Python backend: the model on a lifedeploy engine, and what is before and behind it.

https://github.com/triton-inference-server/python_backend: ``TritonPythonModel``. Each instance is a process of its own,
and takes its share of the cores. Nothing here needs torch.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy.data.formats import require_plausible
from lifedeploy.data.preprocess import decode_image, model_input, to_pixels
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Array, Lane
from lifedeploy.errors import LifedeployError
from lifedeploy.machine import cores
from lifedeploy.reading import read_json
from lifedeploy.serving.plan import sizes_up_to
from lifedeploy.spec import PreprocessSpec
from lifedeploy.targets.find import find
from lifedeploy.targets.session import Session, Watched, require_finite
from lifedeploy.targets.target import target_of
from lifedeploy.typed import described

Requests = Sequence[Any]


class _Role:
    """One model of the repository: what Triton tells it, and an answer for each request."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open what is needed.

        Raises:
            LifedeployError: it is damaged, or does not run here; Triton shows it, and the model is not ready.
        """
        import triton_python_backend_utils as triton

        self.triton: Any = triton
        self.config: dict[str, Any] = json.loads(args["model_config"])
        self.folder = Path(args["model_repository"]) / args["model_version"]
        self.inputs = [entry["name"] for entry in self.config["input"]]
        self.outputs = [entry["name"] for entry in self.config["output"]]
        self.max_batch = int(self.config["max_batch_size"])
        self.instances = sum(int(group["count"]) for group in self.config.get("instance_group", ())) or 1
        self._open()

    def _open(self) -> None:
        """Nothing, unless a role needs something."""

    def parameter(self, name: str) -> str:
        """What the configuration says in its parameters."""
        return str(self.config["parameters"][name]["string_value"])

    def given(self, request: Any) -> Array:
        """The one input of a request."""
        array: Array = self.triton.get_input_tensor_by_name(request, self.inputs[0]).as_numpy()
        return array

    def response(self, arrays: Mapping[str, Array]) -> Any:
        """The answer to a request."""
        return self.triton.InferenceResponse([self.triton.Tensor(name, arrays[name]) for name in self.outputs])

    def refusal(self, message: str, *, bad_request: bool) -> Any:
        """Why a request has no answer: it is wrong itself, or what should answer it failed."""
        code = self.triton.TritonError.INVALID_ARG if bad_request else self.triton.TritonError.INTERNAL
        return self.triton.InferenceResponse(error=self.triton.TritonError(message, code))

    def each(self, requests: Requests, answer: Callable[[Array], Mapping[str, Array]]) -> list[Any]:
        """Answer requests one by one; what is wrong with one of them is said to it alone."""
        responses = []
        for request in requests:
            try:
                responses.append(self.response(answer(self.given(request))))
            except LifedeployError as error:
                responses.append(self.refusal(error.message, bad_request=True))
        return responses


class Model(_Role):
    """The engine: requests that Triton has put together go through it as one batch."""

    def _open(self) -> None:
        target = target_of(find(self.folder / "model.json"))
        options = EngineOptions(threads=max(1, cores() // self.instances))
        self._watched: Watched = "nothing" if target.engine.taps_change_plan else "drops"
        self._stack = ExitStack()
        # Where a runtime is faster when it knows the batch, there is a session for each size; smaller batches are
        # filled up. Others take any, and the batch that an export fixed stays what it is.
        fixed = target.batch_size
        each = target.engine.prefers_fixed_batch and fixed is None
        self._sizes = [fixed] if fixed is not None else sizes_up_to(self.max_batch) if each else []
        self._sessions: dict[int | None, Session] = {}
        for size in self._sizes if each else [fixed]:
            session = Session(target, self._watched, options=EngineOptions(threads=options.threads, batch=size))
            self._sessions[size] = self._stack.enter_context(session)
        self._what = f"{target.name} on {target.engine.name} {target.precision}"
        self._lanes: dict[int, Lane] = {}

    def execute(self, requests: Requests) -> list[Any]:
        """An answer for each request."""
        arrays = [self.given(request) for request in requests]
        try:
            answers = self._infer(arrays, sum(map(len, arrays)))
        except LifedeployError as error:
            return [self.refusal(error.message, bad_request=False) for _ in requests]
        responses, begin = [], 0
        for array in arrays:
            part = {name: answer[begin : begin + len(array)] for name, answer in answers.items()}
            begin += len(array)
            try:
                require_finite(part[self.outputs[0]], (), self._what)
            except LifedeployError as error:
                finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
                message = error.message if finite else f"{self.inputs[0]} holds NaN or infinity"
                responses.append(self.refusal(message, bad_request=not finite))
            else:
                responses.append(self.response(part))
        return responses

    def _infer(self, arrays: Sequence[Array], images: int) -> dict[str, Array]:
        lane = self._lane(next((size for size in self._sizes if size >= images), images))
        (given,) = lane.inputs.values()
        np.concatenate(arrays, out=given[:images])
        lane.infer()
        # Copies: the buffers are those of the next batch, and of a device's lane they are not Triton's to keep.
        return {name: np.array(lane.outputs[name][:images]) for name in self.outputs}

    def _lane(self, size: int) -> Lane:
        if size not in self._lanes:
            session = self._sessions.get(size) or next(iter(self._sessions.values()))
            self._lanes[size] = session.lane(size)
        return self._lanes[size]

    def finalize(self) -> None:
        """Free the engine."""
        self._lanes.clear()
        self._stack.close()


class Preprocess(_Role):
    """Bytes of image files to what goes into the model, by the same code that every other command takes."""

    def _open(self) -> None:
        self._spec = described(json.loads(self.parameter("preprocess")), PreprocessSpec, "the parameter preprocess")
        self._in_graph = json.loads(self.parameter("in_graph")) is True

    def execute(self, requests: Requests) -> list[Any]:
        """An answer for each request; damaged bytes cost theirs alone."""
        return self.each(requests, lambda files: {self.outputs[0]: self._prepared(files)})

    def _prepared(self, files: Array) -> Array:
        pixels = np.stack([self._decoded(number, data) for number, data in enumerate(_bytes(files))])
        return model_input(pixels, self._spec, in_graph=self._in_graph)

    def _decoded(self, number: int, data: bytes) -> Any:
        name = f"image {number}"
        require_plausible(len(data), name)
        return to_pixels(decode_image(io.BytesIO(data), name), self._spec)


class Classes(_Role):
    """Logits to the best classes, and how probable they are."""

    def _open(self) -> None:
        self._top = int(self.parameter("top"))
        self._names = read_json(self.folder / "classes.json", list[str])

    def execute(self, requests: Requests) -> list[Any]:
        """An answer for each request."""
        return self.each(requests, self._best)

    def _best(self, logits: Array) -> dict[str, Array]:
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : self._top]
        names = [[self._name(int(index)).encode() for index in row] for row in best]
        shares = np.take_along_axis(probabilities, best, axis=1).astype(np.float32)
        return dict(zip(self.outputs, (np.array(names, dtype=np.object_), shares), strict=True))

    def _name(self, index: int) -> str:
        return self._names[index] if self._names else f"class {index}"


def _bytes(files: Array) -> Iterator[bytes]:
    """The files of a request, (B, 1) of bytes."""
    data: Any
    for data in files.reshape(-1):
        yield bytes(data)
