"""Models as kserve calls them: what comes in is held against what they take, and what they answer is put together.

Imported by what has made sure that kserve is installed: it is no dependency of the rest.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput

from lifedeploy.artifact import TensorSpec
from lifedeploy.engines.lanes import Array
from lifedeploy.engines.wire import BYTES, WORDS
from lifedeploy.errors import EngineInputError, ImageError
from lifedeploy.serving.images import best_classes, prepared
from lifedeploy.serving.kserve_package import images_name
from lifedeploy.serving.served import Served
from lifedeploy.serving.triton import CLASSES, IMAGE, PROBABILITIES
from lifedeploy.serving.workers import Workers
from lifedeploy.text import shortened

Metadata = dict[str, Any]


class EngineModel(Model):
    """The model itself: images as they go into it, its outputs."""

    def __init__(self, served: Served, workers: Workers, name: str = "") -> None:
        super().__init__(name or served.name)
        self.served, self._workers = served, workers
        self.load()

    def get_input_types(self) -> list[Metadata]:
        return [_told(self.served.input)]

    def get_output_types(self) -> list[Metadata]:
        return list(map(_told, self.served.outputs))

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """The answer to a request; a wrong one is refused alone.

        Raises:
            InvalidInput: it is not what the model takes: a 400.
            EngineError: the engine failed: a 500.
        """
        if not isinstance(payload, InferRequest):
            raise InvalidInput(f"{self.name} answers protocol v2 alone: ask /v2/models/{self.name}/infer")
        names = self._wanted(payload)
        arrays = await self._answered(_given(payload, self.get_input_types()[0]))
        outputs = []
        for name in names:
            array = arrays[name]
            word = BYTES if array.dtype == np.object_ else WORDS[array.dtype.name]
            output = InferOutput(name=name, shape=list(array.shape), datatype=word, data=array)
            if payload.from_grpc:  # as bytes, even where the request came as numbers: kserve trips over arrays there
                output.set_data_from_numpy(array, binary_data=True)
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or str(uuid.uuid4()),
            model_name=self.name,
            infer_outputs=outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    def _wanted(self, request: InferRequest) -> list[str]:
        """The outputs that a request names, before anything is computed; all where it names none."""
        there = [output["name"] for output in self.get_output_types()]
        wanted = [output.name for output in request.request_outputs or ()] or there
        unknown = next((name for name in wanted if name not in there), None)
        if unknown is not None:
            raise InvalidInput(f"{self.name} has no output {shortened(str(unknown))}; there are: {', '.join(there)}")
        return wanted

    async def _answered(self, images: Array) -> Mapping[str, Array]:
        try:
            parts = await asyncio.gather(*map(asyncio.wrap_future, self._workers.ask(images)))
        except EngineInputError as error:
            raise InvalidInput(error.message) from error
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class ImagesModel(EngineModel):
    """The same from image files: their bytes in; outputs, and the best classes where the package names some."""

    def __init__(self, served: Served, workers: Workers) -> None:
        super().__init__(served, workers, images_name(served))
        self._spec = served.artifact.manifest.spec

    def get_input_types(self) -> list[Metadata]:
        return [{"name": IMAGE, "datatype": BYTES, "shape": [-1, 1]}]

    def get_output_types(self) -> list[Metadata]:
        top = self.served.top
        named = [(CLASSES, BYTES), (PROBABILITIES, "FP32")] if top else []
        told: list[Metadata] = [{"name": name, "datatype": word, "shape": [-1, top]} for name, word in named]
        return super().get_output_types() + told

    async def _answered(self, images: Array) -> Mapping[str, Array]:
        # Decoding takes its time: meanwhile others are heard.
        answers = dict(await super()._answered(await asyncio.to_thread(self._prepared, images)))
        if self.served.top:
            logits = answers[self.served.logits.name]
            answers[CLASSES], answers[PROBABILITIES] = best_classes(logits, self.served.top, self._spec.classes)
        return answers

    def _prepared(self, files: Array) -> Array:
        contents: Sequence[Any] = files.reshape(-1).tolist()
        most = self.served.plan.max_batch
        if len(contents) > most:  # a file of a few bytes may be millions of pixels
            raise InvalidInput(f"{len(contents)} files were sent; at most {most} are taken in a request")
        if not all(isinstance(content, bytes) for content in contents):
            raise InvalidInput(f"{IMAGE} is text, as JSON holds it; send the bytes of files as binary data, or by gRPC")
        in_graph = self.served.artifact.manifest.graph.with_preprocess
        try:
            return prepared(contents, self._spec.preprocess, in_graph=in_graph, dtype=self.served.input.dtype)
        except ImageError as error:
            raise InvalidInput(error.message) from error


def _told(spec: TensorSpec) -> Metadata:
    shape = [-1, *(-1 if size is None else size for size in spec.shape[1:])]
    return {"name": spec.name, "datatype": WORDS[spec.dtype], "shape": shape}


def _given(request: InferRequest, told: Metadata) -> Array:
    """The one input of a request.

    Raises:
        InvalidInput: it is another one than was told, or its data are not of its shape.
    """
    shape = [size if size >= 0 else "batch" for size in told["shape"]]
    expected = f"expected one input, {told['name']}: {told['datatype']} {shape}"
    if len(request.inputs) != 1:
        raise InvalidInput(f"{len(request.inputs)} inputs were sent; {expected}")
    (given,) = request.inputs
    have = list(given.shape) if isinstance(given.shape, (list, tuple)) else []
    fits = (
        (given.name, given.datatype) == (told["name"], told["datatype"])
        and len(have) == len(told["shape"])
        and all(type(size) is int and size > 0 for size in have)
        and all(want in (-1, size) for want, size in zip(told["shape"], have, strict=True))
    )
    if not fits:
        sent = f"{given.name}: {given.datatype} {given.shape}"
        raise InvalidInput(f"the input sent is {shortened(sent)}; {expected}")
    try:
        array: Array = given.as_numpy()
    except Exception as error:  # numpy and struct each in their own way, at data that are not what was declared
        raise InvalidInput(f"the data of {told['name']} are not {given.datatype} {have}") from error
    return array
