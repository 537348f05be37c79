"""A real server, asked by hand: by KServe's protocol over plain HTTP, without its own client."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving.triton import ENVIRONMENT, PYTHON, Server


def require_environment() -> None:
    """Skip where there is no server; in continuous integration there must be one."""
    if (ENVIRONMENT / ".installed").is_file():
        return
    reason = f"{ENVIRONMENT}/ is not there: make serve-env makes it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def command(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line in the server's environment, which has no torch."""
    line = [str(PYTHON), "-m", "lifedeploy", *map(str, words)]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300)


def python(script: str, *words: object) -> str:
    """What a script prints in the server's environment."""
    line = [str(PYTHON), "-c", script, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Triton(Server):
    """A server that is asked by hand, and looked at from outside."""

    def ask(self, model: str, name: str, array: np.ndarray) -> tuple[int, dict[str, Any], bytes]:
        """Status, JSON and binary tail of one request, by KServe's protocol with arrays as bytes."""
        body, headers = request(name, array)
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)
        try:
            connection.request("POST", f"/v2/models/{model}/infer", body, headers)
            answer = connection.getresponse()
            data = answer.read()
            length = int(answer.headers.get("Inference-Header-Content-Length", len(data)))
            return answer.status, json.loads(data[:length]), data[length:]
        finally:
            connection.close()

    def tensors(self, model: str, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
        """What a request is answered, which it has to be."""
        status, facts, tail = self.ask(model, name, array)
        assert status == 200, facts
        tensors, begin = {}, 0
        for tensor in facts["outputs"]:
            data = tail[begin : begin + tensor["parameters"]["binary_data_size"]]
            begin += len(data)
            tensors[tensor["name"]] = _array(data, tensor["datatype"], tensor["shape"])
        return tensors

    def logits(self, model: str, name: str, array: np.ndarray) -> np.ndarray:
        return self.tensors(model, name, array)["logits"]

    def processes(self) -> list[int]:
        """The server, and those that it started."""
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, _, rest = status.read_text().partition(" ")
                group = int(rest.rpartition(")")[2].split()[2])
            except (OSError, ValueError, IndexError):
                continue
            if group == self.process.pid:
                found.append(int(pid))
        return found

    def memory_mib(self) -> float:
        """Memory of all its processes that nobody else has."""
        total = 0
        for pid in self.processes():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))
        return total / 1024

    def listeners(self) -> set[str]:
        """Addresses that its processes listen at."""
        sockets = set()
        for pid in self.processes():
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    sockets.add(target[8:-1])
        addresses = set()
        for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                local, state, inode = line.split()[1], line.split()[3], line.split()[9]
                if state == "0A" and inode in sockets:
                    raw = bytes.fromhex(local.partition(":")[0])
                    words = struct.unpack(f"<{len(raw) // 4}I", raw)
                    address = ipaddress.ip_address(socket.inet_ntop(family, struct.pack(f">{len(words)}I", *words)))
                    addresses.add(str(getattr(address, "ipv4_mapped", None) or address))
        return addresses


def _array(data: bytes, datatype: str, shape: list[int]) -> np.ndarray:
    if datatype != "BYTES":
        return np.frombuffer(data, {"FP32": np.float32, "INT64": np.int64}[datatype]).reshape(shape)
    items, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        items.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return np.array(items, dtype=object).reshape(shape)


def request(name: str, array: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers of one request with one array."""
    types = {"uint8": "UINT8", "float32": "FP32", "object": "BYTES"}
    if array.dtype == object:
        data = b"".join(struct.pack("<I", len(item)) + item for item in array.reshape(-1))
    else:
        data = array.tobytes()
    facts = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": types[array.dtype.name],
                "parameters": {"binary_data_size": len(data)},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(facts).encode()
    return head + data, {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Length": str(len(head) + len(data)),
    }
