"""What runs inside Triton's Python backend: the model on a lifedeploy engine, and what is before and behind it.

https://github.com/triton-inference-server/python_backend: ``TritonPythonModel``. Each instance is a process of its own,
and takes its share of the cores. Nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lifedeploy.engines.lanes import Array
from lifedeploy.errors import EngineInputError, LifedeployError
from lifedeploy.reading import read_json
from lifedeploy.serving.batching import Batcher
from lifedeploy.serving.images import best_classes, prepared
from lifedeploy.serving.plan import Plan
from lifedeploy.serving.served import smallest_batch
from lifedeploy.spec import PreprocessSpec
from lifedeploy.targets.find import find
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
        self._stack = ExitStack()
        preferred = self.config.get("dynamic_batching", {}).get("preferred_batch_size", ())
        plan = Plan(max_batch=self.max_batch, preferred=tuple(preferred), instances=self.instances)
        smallest = smallest_batch(target.artifact) if target.artifact else 1
        self._batcher = self._stack.enter_context(Batcher(target, plan, smallest=smallest))

    def execute(self, requests: Requests) -> list[Any]:
        """An answer for each request."""
        arrays = [self.given(request) for request in requests]
        try:
            answers = self._batcher.infer(arrays, self.outputs)
        except LifedeployError as error:
            return [self.refusal(error.message, bad_request=False) for _ in requests]
        responses, begin = [], 0
        for array in arrays:
            part = {name: answer[begin : begin + len(array)] for name, answer in answers.items()}
            begin += len(array)
            try:
                self._batcher.require_finite(part[self.outputs[0]], array)
            except LifedeployError as error:
                responses.append(self.refusal(error.message, bad_request=isinstance(error, EngineInputError)))
            else:
                responses.append(self.response(part))
        return responses

    def finalize(self) -> None:
        """Free the engine."""
        self._stack.close()


class Preprocess(_Role):
    """Bytes of image files to what goes into the model, by the same code that every other command takes."""

    def _open(self) -> None:
        self._spec = described(json.loads(self.parameter("preprocess")), PreprocessSpec, "the parameter preprocess")
        self._in_graph = json.loads(self.parameter("in_graph")) is True
        self._dtype = self.parameter("dtype")

    def execute(self, requests: Requests) -> list[Any]:
        """An answer for each request; damaged bytes cost theirs alone."""
        return self.each(requests, lambda files: {self.outputs[0]: self._prepared(files)})

    def _prepared(self, files: Array) -> Array:
        return prepared(list(_bytes(files)), self._spec, in_graph=self._in_graph, dtype=self._dtype)


class Classes(_Role):
    """Logits to the best classes, and how probable they are."""

    def _open(self) -> None:
        self._top = int(self.parameter("top"))
        self._names = read_json(self.folder / "classes.json", list[str])

    def execute(self, requests: Requests) -> list[Any]:
        """An answer for each request."""
        return self.each(requests, self._best)

    def _best(self, logits: Array) -> dict[str, Array]:
        return dict(zip(self.outputs, best_classes(logits, self._top, self._names), strict=True))


def _bytes(files: Array) -> Iterator[bytes]:
    """The files of a request, (B, 1) of bytes."""
    data: Any
    for data in files.reshape(-1):
        yield bytes(data)
