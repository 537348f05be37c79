"""NVIDIA's Triton Inference Server, started from the environment of ``make serve-env`` and ended by its process id."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = Path(__file__).parents[2] / ".venv-serve"
PYTHON = ENVIRONMENT / "bin" / "python"
_HOME = ENVIRONMENT / "triton" / "pytriton" / "tritonserver"
_READY_S = 180
_ENDED_S = 30


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    http: int  # port
    grpc: int

    def url(self, model: str, scheme: str = "http") -> str:
        """The address of a model."""
        return f"{scheme}://127.0.0.1:{self.grpc if scheme == 'grpc' else self.http}/{model}"


@contextmanager
def serving(log: Path, *repositories: Path) -> Iterator[Server]:
    """The server on repositories, ready; it has ended when the block does.

    Raises:
        RuntimeError: it is not ready in three minutes; with what it said.
    """
    ports = free_ports(3)
    line = [
        str(_HOME / "bin" / "tritonserver"),
        *(f"--model-repository={repository}" for repository in repositories),
        f"--backend-directory={_HOME / 'backends'}",
        *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
        *(f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
    ]
    environment = {**os.environ, "VIRTUAL_ENV": str(ENVIRONMENT), "PATH": f"{PYTHON.parent}:{os.environ['PATH']}"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            line, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        server = Server(process, http=ports[0], grpc=ports[1])
        try:
            _wait(server, log)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(_ENDED_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(server: Server, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{_told(log)}")
        connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=5)
        with suppress(OSError):
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                connection.close()
                return
        connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"the server is not ready:\n{_told(log)}")


def _told(log: Path) -> str:
    """What is of use in a server's log: not its tables."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if not line.startswith(("+", "|")))[-4000:]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, all at once, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
