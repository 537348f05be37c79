"""kserve's model server, as we run it: on one address, with requests read as their senders meant them.

Imported by what has made sure that kserve is installed. What is overridden is that of kserve 0.21.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from kserve import InferInput, InferRequest, ModelServer
from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING, INFERENCE_CONTENT_LENGTH_HEADER
from kserve.errors import InvalidInput
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.infer_type import RequestedOutput
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer

from lifedeploy.errors import EngineError
from lifedeploy.serving.kserve_models import EngineModel, ImagesModel
from lifedeploy.serving.served import Served
from lifedeploy.serving.workers import Workers

_LEAST_MESSAGE = 64 * 1024**2  # bytes that a request by gRPC may have at least: kserve's own 8 MiB are 13 images
_BESIDE = 1024**2  # of a message, what is none of its images
_GRACE_S = 10  # for requests in flight, once a signal asks for the end


def serve(served: Served, *, host: str, http_port: int, grpc_port: int, cores: int | None = None) -> None:
    """Answer requests until a signal ends the process.

    Raises:
        EngineError: the engine does not open, or the address is taken.
    """
    names = [spec.name for spec in served.outputs]
    with Workers(served.target, served.plan, names, cores) as workers:
        server = AddressServer(host, http_port, grpc_port, _largest_message(served))
        server.start([EngineModel(served, workers), ImagesModel(served, workers)])


def _largest_message(served: Served) -> int:
    image = math.prod(size or 1 for size in served.input.shape[1:]) * 4
    return max(_LEAST_MESSAGE, served.plan.max_batch * image + _BESIDE)


class AddressServer(ModelServer):
    """kserve's server on one address: its own listens on all, over HTTP as over gRPC."""

    def __init__(self, host: str, http_port: int, grpc_port: int, largest_message: int) -> None:
        super().__init__(
            http_port=http_port, grpc_port=grpc_port, workers=1, enable_latency_logging=False, grace_period=_GRACE_S
        )
        self._host, self._largest_message = host, largest_message
        self.dataplane = _Requests(model_registry=self.registered_models)
        self.model_repository_extension = _Fixed(model_registry=self.registered_models)

    def start(self, models: list[Any]) -> None:
        """Register models and answer until a signal.

        Raises:
            EngineError: an address is taken, or none of this machine.
        """
        self._register_and_check_atleast_one_model_is_ready(models)
        extension = self.model_repository_extension
        self._rest_server = RESTServer(
            FASTAPI_APP_IMPORT_STRING,
            self.dataplane,
            extension,
            self.http_port,
            grace_period=self.grace_period,
            timeout_keep_alive=self.timeout_keep_alive,
        )
        self._rest_server.config.host = self._host
        options = {"grpc_max_send_message_length": -1, "grpc_max_receive_message_length": self._largest_message}
        self._grpc_server = _AddressGrpc(
            self.grpc_port, self.dataplane, extension, kwargs=options, grace_period=self.grace_period
        )
        self._grpc_server.host = self._host
        self.servers += [self._rest_server.start(), self._grpc_server.start(self.max_threads)]
        self.register_signal_handler()
        try:
            asyncio.run(self._serve())
        except SystemExit as error:  # uvicorn ends the process where it cannot begin, after it has said why
            raise _not_free(self._host, self.http_port, "--http-port") from error


class _AddressGrpc(GRPCServer):
    """kserve's server for gRPC on one address."""

    host = "127.0.0.1"

    async def start(self, max_workers: int) -> None:
        limits = {
            "grpc.max_send_message_length": self._kwargs["grpc_max_send_message_length"],
            "grpc.max_receive_message_length": self._kwargs["grpc_max_receive_message_length"],
            "grpc.so_reuseport": 0,  # else a second server would take a share of the first one's requests
        }
        self._server = grpc.aio.server(
            ThreadPoolExecutor(max_workers=max_workers),
            interceptors=(ExceptionToStatusInterceptor(),),
            options=list(limits.items()),
        )
        servicer = InferenceServicer(self._data_plane, self._model_repository_extension)
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        host = f"[{self.host}]" if ":" in self.host else self.host
        try:
            self._server.add_insecure_port(f"{host}:{self._port}")
        except RuntimeError as error:
            raise _not_free(self.host, self._port, "--grpc-port") from error
        await self._server.start()
        await self._server.wait_for_termination()


def _not_free(host: str, port: int, option: str) -> EngineError:
    return EngineError(
        f"{host} port {port} cannot be listened on", hint=f"another {option}, or an address of this machine"
    )


class _Fixed(ModelRepositoryExtension):
    """Models come and go with the server: kserve's own lets everybody who can ask take them away."""

    async def load(self, model_name: str) -> None:
        raise InvalidInput("models are loaded when the server starts, and not by requests")

    async def unload(self, model_name: str) -> None:
        raise InvalidInput("models are unloaded when the server ends, and not by requests")


class _Requests(DataPlane):
    """kserve's own reader takes binary data apart into Python numbers, and into text what are bytes of files."""

    def decode(self, body: Any, headers: Any, protocol_version: str = "v1", model_name: str | None = None) -> Any:
        """A request over HTTP.

        Raises:
            InvalidInput: it is none.
        """
        try:
            if isinstance(body, bytes) and protocol_version.lower() == "v2":
                return _binary(body, headers, model_name or ""), {}
            return super().decode(body, headers, protocol_version, model_name)
        except InvalidInput:
            raise
        except Exception as error:  # KeyError, TypeError, ValueError: of whatever somebody else sent
            raise InvalidInput("this is no request of protocol v2") from error

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """What is told of a model: a list of versions, if an empty one, where kserve tells null."""
        return {"versions": [], **await super().model_metadata(model_name)}


def _binary(body: bytes, headers: Mapping[str, str], model: str) -> InferRequest:
    """JSON, and behind it the data of inputs, as they lie there.

    https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol/binary-tensor-data-extension
    """
    begin = int(headers.get(INFERENCE_CONTENT_LENGTH_HEADER, len(body)))
    if not 0 <= begin <= len(body):
        raise InvalidInput(f"{INFERENCE_CONTENT_LENGTH_HEADER} is {begin}, and the request has {len(body)} bytes")
    facts = json.loads(body[:begin])
    inputs = []
    for entry in facts["inputs"]:
        tensor = InferInput(entry["name"], entry["shape"], entry["datatype"], entry.get("data"))
        size = (entry.get("parameters") or {}).get("binary_data_size")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(body) - begin:
                raise InvalidInput(f"binary_data_size is {size!r}, and {len(body) - begin} bytes are left")
            tensor._raw_data = body[begin : begin + size]
            begin += size
        inputs.append(tensor)
    if begin != len(body):
        raise InvalidInput(f"{len(body) - begin} bytes are left behind the data of all inputs")
    outputs = [RequestedOutput(entry["name"], entry.get("parameters")) for entry in facts.get("outputs") or ()]
    return InferRequest(
        model_name=model,
        request_id=facts.get("id"),
        parameters=facts.get("parameters"),
        infer_inputs=inputs,
        request_outputs=outputs or None,
    )
