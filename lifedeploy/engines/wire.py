"""What is said to a server in KServe's protocol, version 2: over HTTP or gRPC, by tritonclient.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from lifedeploy.engines.lanes import Array
from lifedeploy.errors import EngineError, UsageError
from lifedeploy.optional import require
from lifedeploy.reading import foreign
from lifedeploy.text import quoted, shortened

SCHEMES = ("http", "https", "grpc", "grpcs")
_MODEL = re.compile(r"(?:v2/models/)?([A-Za-z0-9][A-Za-z0-9_.-]{0,127})/?")
TYPES = {
    "BOOL": "bool", "UINT8": "uint8", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
WORDS = {name: wire for wire, name in TYPES.items()}
BYTES = "BYTES"
_NOT_REACHED = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
_PATIENCE_S = 60.0  # for one answer


@dataclass(frozen=True)
class Address:
    """Where a model is served: ``http://127.0.0.1:8000/deit_s_life``."""

    url: str
    scheme: str
    host: str  # with its port
    model: str

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme.endswith("s")


def is_url(text: str) -> bool:
    """Whether something is meant as an address, not as a path."""
    return text.partition(":")[0] in SCHEMES and text.partition(":")[2].startswith("/")


def address_of(url: str) -> Address:
    """Read an address.

    Raises:
        UsageError: it is none of a model.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is none, brackets that do not close
        parts, port = urlsplit(""), None
    model = _MODEL.fullmatch(parts.path.lstrip("/"))
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    plain = plain and port != 0
    if parts.scheme not in SCHEMES or not parts.hostname or model is None or not plain or not url.isprintable():
        raise UsageError(
            f"{quoted(url)} is no address of a model; expected http://HOST:PORT/MODEL, or https, grpc, grpcs"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if port is None:
        port = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}[parts.scheme]
    return Address(url, parts.scheme, f"{host}:{port}", model[1])


@dataclass(frozen=True, kw_only=True)
class ServedTensor:
    """One input or output, as the server tells it; ``shape`` has the batch in it."""

    name: str
    dtype: str  # the protocol's word
    shape: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What a server tells of a model."""

    server: str
    version: str
    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]
    # Of Triton alone, which has them as an extension of the protocol.
    max_batch: int | None = None
    parameters: dict[str, str] = field(default_factory=dict)

    def logits(self, name: str) -> ServedTensor | None:
        """The output of that name, which is what a model of ours calls its logits; else the first one."""
        return next((tensor for tensor in self.outputs if tensor.name == name), next(iter(self.outputs), None))

    @property
    def takes_files(self) -> bool:
        """Whether the bytes of image files go in."""
        return bool(self.inputs) and self.inputs[0].dtype == BYTES


class Wire(ABC):
    """A connection to a server, of one thread."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._client, self._wire, self._failure = self._connect()

    @abstractmethod
    def _connect(self) -> tuple[Any, Any, type[Exception]]:
        """A client, its module, and what it raises."""

    @abstractmethod
    def _facts(self, answer: Any) -> dict[str, Any]:
        """An answer as a dictionary."""

    def _asked(self, call: Any, *arguments: Any, **named: Any) -> Any:
        """Call the client.

        Raises:
            EngineError: the server refused, or cannot be reached.
        """
        try:
            return call(*arguments, **named)
        except self._failure as error:
            status = str(getattr(error, "status", lambda: "")() or "")
            said = shortened(str(error.message() if hasattr(error, "message") else error))
            raise ServerError(f"{self.address.url}: {said}", status=status) from error
        except Exception as error:  # sockets, gevent and JSON each fail in their own way at a server that is none
            raise EngineError(
                f"{self.address.url} cannot be reached: {shortened(str(error)) or type(error).__name__}",
                hint="is the server running, and is this its address?",
            ) from error

    def describe(self) -> ServedModel:
        """What the server tells of the model.

        Raises:
            EngineError: it cannot be reached, does not have the model, or tells what cannot be.
        """
        patience = self._patience()
        with foreign(f"what {self.address.url} tells of itself", EngineError):
            server = self._facts(self._asked(self._client.get_server_metadata, **patience))
            model = self._facts(self._asked(self._client.get_model_metadata, self.address.model, **patience))
            config: dict[str, Any] = {}
            if "model_configuration" in (server.get("extensions") or ()):
                config = self._facts(self._asked(self._client.get_model_config, self.address.model, **patience))
                config = config.get("config", config)
            most = int(config.get("max_batch_size") or 0)
            parameters = {
                str(name): str(value.get("string_value", ""))
                for name, value in (config.get("parameters") or {}).items()
            }
            return ServedModel(
                server=f"{server.get('name', 'unknown')} {server.get('version', '')}".strip(),
                version=",".join(map(str, model.get("versions") or ())),
                inputs=tuple(map(_tensor, model.get("inputs") or ())),
                outputs=tuple(map(_tensor, model.get("outputs") or ())),
                max_batch=most if most > 0 else None,
                parameters=parameters,
            )

    def formed(self) -> dict[int, int]:
        """Batch size → how many batches of it the server has formed so far; empty where it does not tell."""
        named = self._patience()
        try:
            answer = self._facts(self._asked(self._client.get_inference_statistics, self.address.model, **named))
        except ServerError as error:
            if error.status in _NOT_REACHED:
                raise
            return {}  # it has no such extension
        counts: dict[int, int] = {}
        with foreign(f"what {self.address.url} tells of its batches", EngineError):
            for model in answer.get("model_stats") or ():
                for batch in model.get("batch_stats") or ():
                    size, count = int(batch.get("batch_size", 0)), int(batch.get("compute_infer", {}).get("count", 0))
                    counts[size] = counts.get(size, 0) + count
        return counts

    def request(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> Request:
        """What is sent, ready to be sent as often as wanted."""
        inputs = []
        for name, array in feeds.items():
            wire = BYTES if array.dtype == np.object_ else WORDS[array.dtype.name]
            tensor = self._wire.InferInput(name, list(array.shape), wire)
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        return Request(inputs, [self._wire.InferRequestedOutput(name) for name in outputs])

    def infer(self, request: Request) -> dict[str, Array]:
        """The outputs that a request asks for.

        Raises:
            EngineError: the server refused it, cannot be reached, or left one out.
        """
        named = {"outputs": request.outputs, **self._patience()}
        answer = self._asked(self._client.infer, self.address.model, request.inputs, **named)
        with foreign(f"the answer of {self.address.url}", EngineError):
            arrays = {output.name(): answer.as_numpy(output.name()) for output in request.outputs}
        missing = next((name for name, array in arrays.items() if array is None), None)
        if missing is not None:
            raise EngineError(f"{self.address.url} gave no {missing}")
        return arrays

    def _patience(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """End the connection."""
        self._client.close()


@dataclass(frozen=True)
class Request:
    """Inputs as they are sent, and outputs as they are asked for."""

    inputs: list[Any]
    outputs: list[Any]


class ServerError(EngineError):
    """A server refused; ``status`` is its own word or number for why."""

    def __init__(self, message: str, *, hint: str | None = None, status: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class HttpWire(Wire):
    """KServe's protocol over HTTP, arrays as bytes."""

    def _connect(self) -> tuple[Any, Any, type[Exception]]:
        http = require("tritonclient.http", extra="serve")
        client = http.InferenceServerClient(
            self.address.host, ssl=self.address.secure, connection_timeout=_PATIENCE_S, network_timeout=_PATIENCE_S
        )
        return client, http, require("tritonclient.utils", extra="serve").InferenceServerException

    def _facts(self, answer: Any) -> dict[str, Any]:
        return dict(answer)


class GrpcWire(Wire):
    """KServe's protocol over gRPC."""

    def _connect(self) -> tuple[Any, Any, type[Exception]]:
        grpc = require("tritonclient.grpc", extra="serve")
        client = grpc.InferenceServerClient(self.address.host, ssl=self.address.secure)
        return client, grpc, require("tritonclient.utils", extra="serve").InferenceServerException

    def _facts(self, answer: Any) -> dict[str, Any]:
        formats = require("google.protobuf.json_format", extra="serve")
        return dict(formats.MessageToDict(answer, preserving_proto_field_name=True))

    def _patience(self) -> dict[str, Any]:
        return {"client_timeout": _PATIENCE_S}


def require_told(url: str, array: Array, name: str, dtype: str, shape: Sequence[int | None]) -> None:
    """Hold an array of an answer against what was told of it: it is somebody else's.

    Raises:
        EngineError: it is of another type or shape.
    """
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.name != dtype:
        told = f"{dtype} {tuple(shape)}"
        raise EngineError(f"{url} gave {name} as {array.dtype} {array.shape}, and {told} was to come")


def connect(address: Address) -> Wire:
    """A connection of this thread.

    Raises:
        EngineUnavailableError: tritonclient is not installed.
    """
    return (GrpcWire if address.scheme.startswith("grpc") else HttpWire)(address)


def _tensor(facts: Mapping[str, Any]) -> ServedTensor:
    shape = tuple(None if int(size) < 0 else int(size) for size in facts.get("shape") or ())
    return ServedTensor(name=str(facts.get("name", "")), dtype=str(facts.get("datatype", "")), shape=shape)
