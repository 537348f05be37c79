"""The folder that KServe starts from, and kserve's own server on it, in a process of its own."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lifedeploy
from benchmarks.serving.triton import free_ports
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.children import environment
from lifedeploy.errors import ArtifactError, EngineError, EngineInputError
from lifedeploy.serving import batching, kserve_package
from lifedeploy.serving import kserve as program
from lifedeploy.serving import record as records
from lifedeploy.serving.images import best_classes, prepared
from lifedeploy.serving.plan import Plan
from lifedeploy.serving.workers import Workers
from lifedeploy.targets.find import ModelFile
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target, target_of
from lifedeploy.workflows.package import PackageRequest, package

ROOT = Path(lifedeploy.__file__).parents[1]
IMAGES = np.random.default_rng(0).standard_normal((6, 3, 64, 64)).astype(np.float32)


def picture() -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def packaged(folder: Path, **options: object) -> Path:
    options = {"engine": "onnxruntime", "name": "vit", **options}
    package(PackageRequest(target="kserve", out=Path("package"), model=folder, **options), Workspace())
    return Path("package")


def target(folder: Path, engine: str = "onnxruntime") -> Target:
    return target_of(ModelFile.of(Artifact.read(next(folder.glob(f"{engine}-*/model.json")))))


def logits_of(one: Target, images: np.ndarray) -> np.ndarray:
    with Session(one) as session:
        return session.answer(images).logits


# The package


def test_the_package_holds_the_engine_the_service_and_nothing_else(folder):
    out = packaged(folder, top=2, instances=2, max_batch=4)
    record = records.read(out)
    records.check(out, record)
    assert record.models == ("vit", "vit_images")
    assert set(record.files) == {"model/model.json", "model/model.onnx", "inference_service.yaml"}
    served = kserve_package.opened(out)
    assert (served.name, served.top, served.plan.max_batch, served.plan.instances) == ("vit", 2, 4, 2)
    assert served.input.name == "images" and served.logits.name == "logits"
    np.testing.assert_array_equal(logits_of(served.target, IMAGES), logits_of(target(folder), IMAGES))


def test_the_service_says_how_it_is_started_and_asked(folder):
    text = (packaged(folder, name="Deit_S.life") / "inference_service.yaml").read_text()
    assert "\n  name: deit-s-life\n" in text and "image: IMAGE:TAG" in text
    assert 'path: "/v2/models/Deit_S.life/ready"' in text
    (arguments,) = re.findall(r"args: (\[.*\])", text)
    options = program._parser().parse_args(json.loads(arguments))
    assert (options.package, options.host, options.cores) == (Path("/mnt/models"), "0.0.0.0", 4)
    assert [options.http_port, options.grpc_port] == [int(port) for port in re.findall(r"containerPort: (\d+)", text)]
    assert "lifedeploy 0.1.0" in text and "onnxruntime" in text


def test_nobody_else_is_heard_unless_an_address_says_so():
    options = program._parser().parse_args(["--package", "here"])
    assert (options.host, options.http_port, options.grpc_port) == ("127.0.0.1", 8080, 8081)


@pytest.mark.parametrize("harm", ["changed", "added", "another"])
def test_a_package_that_is_not_what_was_packaged_is_refused(folder, harm):
    out = packaged(folder)
    if harm == "changed":
        with (out / "model/model.onnx").open("ab") as file:
            file.write(b"x")
        said = "is not the file that was packaged"
    elif harm == "added":
        (out / "model/numpy.py").touch()
        said = "holds 'model/numpy.py', which was not packaged"
    else:
        facts = json.loads((out / records.NAME).read_text())
        (out / records.NAME).write_text(json.dumps(facts | {"target": "triton"}))
        said = "is a package for triton; expected one for kserve"
    with pytest.raises(ArtifactError, match=said):
        kserve_package.opened(out)


# Copies of a model


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_requests_at_once_get_the_answers_that_each_gets_alone(folder, engine):
    one = target(folder, engine)
    parts = [IMAGES[begin:end] for begin, end in ((0, 1), (1, 4), (0, 6), (2, 3))]
    expected = [logits_of(one, part) for part in parts]
    plan = Plan(max_batch=4, preferred=(4,), delay_us=2000, instances=2)
    with Workers(one, plan, ["logits"], 1) as workers:
        asked = [(number, workers.ask(parts[number])) for number in [0, 1, 2, 3] * 8]
        for number, futures in asked:
            assert len(futures) == -(-len(parts[number]) // 4)
            logits = np.concatenate([future.result(60)["logits"] for future in futures])
            np.testing.assert_allclose(logits, expected[number], atol=0.05 if one.precision == "bf16" else 1e-4)


def test_what_waits_becomes_one_batch_and_what_does_not_fit_the_next(folder, monkeypatch):
    sizes, infer = [], batching.Batcher.infer

    def watched(self, arrays, outputs):
        sizes.append([len(array) for array in arrays])
        return infer(self, arrays, outputs)

    monkeypatch.setattr(batching.Batcher, "infer", watched)
    # The first waits for others as long as its batch is smaller than the preferred one.
    with Workers(target(folder), Plan(max_batch=4, preferred=(4,), delay_us=30_000_000), ["logits"]) as workers:
        futures = [future for count in (1, 2, 3, 1) for future in workers.ask(IMAGES[:count])]
        assert [len(future.result(60)["logits"]) for future in futures] == [1, 2, 3, 1]
    assert sizes == [[1, 2], [3, 1]]


def test_a_failure_reaches_those_who_wait_and_the_copy_goes_on(folder, monkeypatch):
    infer = batching.Batcher.infer
    monkeypatch.setattr(batching.Batcher, "infer", lambda *given: 1 / 0)
    with Workers(target(folder), Plan(max_batch=4, preferred=(1,)), ["logits"]) as workers:
        (refused,) = workers.ask(IMAGES[:1])
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            refused.result(60)
        monkeypatch.setattr(batching.Batcher, "infer", infer)
        (answered,) = workers.ask(IMAGES[:1])
        np.testing.assert_allclose(answered.result(60)["logits"], logits_of(target(folder), IMAGES[:1]), atol=1e-4)


def test_an_answer_that_is_no_number_costs_its_request_alone(folder):
    with Workers(target(folder), Plan(max_batch=4, preferred=(4,), delay_us=30_000_000), ["logits"]) as workers:
        (damaged,), (sound,) = workers.ask(np.full_like(IMAGES[:1], np.nan)), workers.ask(IMAGES[:3])
        np.testing.assert_allclose(sound.result(60)["logits"], logits_of(target(folder), IMAGES[:3]), atol=1e-4)
        with pytest.raises(EngineInputError, match="the images hold NaN or infinity"):
            damaged.result(60)


# The server itself


@pytest.fixture(scope="module")
def serving_python() -> str:
    """A Python that has kserve, tritonclient and what lifedeploy needs to run."""
    for python in (ROOT / ".venv-serve/bin/python", Path(sys.executable)):
        # Not both in one process: each registers the protocol's messages for itself, under the same names.
        script = "import importlib.util, kserve, onnxruntime; assert importlib.util.find_spec('tritonclient')"
        if python.exists() and subprocess.run([python, "-c", script], capture_output=True).returncode == 0:
            return str(python)
    if os.environ.get("CI") == "true":
        pytest.fail("neither .venv-serve nor this environment has kserve and tritonclient: run make serve-env")
    pytest.skip("neither .venv-serve nor this environment has kserve and tritonclient: make serve-env installs them")


class Running:
    """A server on two ports of 127.0.0.1."""

    def __init__(self, python: str, package: Path, log: Path) -> None:
        self.http, self.grpc = free_ports(2)
        self._log = log.open("w+")
        command = [python, "-P", "-m", "lifedeploy.serving.kserve", "--package", str(package), "--cores", "1"]
        command += ["--http-port", str(self.http), "--grpc-port", str(self.grpc)]
        variables = environment({"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        self.process = subprocess.Popen(command, env=variables, stdout=self._log, stderr=subprocess.STDOUT)

    def ready(self) -> None:
        until = time.monotonic() + 90
        while time.monotonic() < until and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.grpc), 1).close()
                if self.ask("GET", "/v2/models/vit/ready")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"the server is not ready:\n{self.said()}")

    def ask(self, verb: str, path: str, body: object = None, **headers: str) -> tuple[int, dict]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if headers else "application/json"
        with closing(http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)) as connection:
            connection.request(verb, path, content if body is not None else None, {"Content-Type": kind, **headers})
            with connection.getresponse() as answer:
                return answer.status, json.loads(answer.read() or b"{}")

    def said(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text()

    def listening(self) -> set[str]:
        """Addresses that the process listens on, as Linux writes them."""
        nodes = set()
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            found = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
            nodes |= {found[1]} if found else set()
        addresses = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.process.pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in nodes:
                    addresses.add(fields[1])
        return addresses

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self._log.close()


@pytest.fixture(scope="module")
def running(
    serving_python: str, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Path, Target]]:
    home = tmp_path_factory.mktemp("kserve")
    folder = next(exported.glob("*/model.json")).parent
    request = PackageRequest(
        target="kserve", out=home / "package", model=folder, engine="onnxruntime", name="vit", top=2, max_batch=4
    )
    package(replace(request, instances=2), Workspace(exported))
    server = Running(serving_python, home / "package", home / "log")
    try:
        server.ready()
        yield server, home, target(folder)
    finally:
        server.end()


def test_answers_are_those_of_the_engine_over_http_and_grpc(running, serving_python):
    server, home, one = running
    np.savez(home / "given.npz", images=IMAGES, picture=np.frombuffer(picture(), dtype=np.uint8))
    addresses = [f"127.0.0.1:{server.http}", f"127.0.0.1:{server.grpc}"]
    script = Path(__file__).with_name("kserve_client.py")
    command = [serving_python, "-P", str(script), *addresses, str(home / "given.npz"), str(home / "kept.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 0, f"{done.stderr}\n{server.said()}"
    kept = np.load(home / "kept.npz")
    parts = [IMAGES[:1], IMAGES[1:4], IMAGES, IMAGES[4:5], IMAGES[2:4]]
    images = prepared([picture()] * 2, one.spec.preprocess, in_graph=one.takes_pixels, dtype="float32")
    logits = logits_of(one, images)
    classes, probabilities = best_classes(logits, 2, one.spec.classes)
    for wire in ("http", "grpc"):
        for number, part in enumerate(parts):
            for turn in range(4):
                np.testing.assert_allclose(kept[f"{wire}_{number}_{turn}"], logits_of(one, part), atol=1e-4)
        np.testing.assert_allclose(kept[f"{wire}_logits"], logits, atol=1e-4)
        assert kept[f"{wire}_classes"].tolist() == classes.tolist()
        np.testing.assert_allclose(kept[f"{wire}_probabilities"], probabilities, atol=1e-5)
        refused = kept[f"{wire}_refused"].tolist()
        assert len(refused) == 4
        assert all(why.startswith("400" if wire == "http" else "StatusCode.INVALID_ARGUMENT") for why in refused)
        assert "expected one input, images: FP32 ['batch', 3, 64, 64]" in refused[0]
        assert "vit has no output odds; there are: logits" in refused[2]
        assert "image 0 is not an image that can be read" in refused[3]


def test_it_listens_on_the_address_it_was_given_and_on_no_other(running):
    server, _, _ = running
    ports = {f"{port:04X}" for port in (server.http, server.grpc)}
    found = server.listening()
    assert {address.rpartition(":")[2] for address in found} == ports
    local = {"0100007F", "0000000000000000FFFF00000100007F"}  # IPv4, and the same as sockets of IPv6 write it
    assert {address.rpartition(":")[0] for address in found} <= local


def test_a_request_by_grpc_that_holds_numbers_is_answered(running, serving_python):
    server, home, one = running
    np.save(home / "numbers.npy", IMAGES[:1])
    script = (
        "import sys, grpc, numpy as np\n"
        "from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb, grpc_predict_v2_pb2_grpc as service\n"
        "images = np.load(sys.argv[2])\n"
        "request = pb.ModelInferRequest(model_name='vit', inputs=[dict(name='images', datatype='FP32',\n"
        "    shape=images.shape, contents=dict(fp32_contents=images.ravel().tolist()))])\n"
        "with grpc.insecure_channel(sys.argv[1]) as channel:\n"
        "    answer = service.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)\n"
        "(raw,) = answer.raw_output_contents[:1]\n"
        "assert answer.id and answer.outputs[0].name == 'logits'\n"
        "np.save(sys.argv[2], np.frombuffer(raw, np.float32))\n"
    )
    call = [serving_python, "-P", "-c", script, f"127.0.0.1:{server.grpc}", str(home / "numbers.npy")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 0, f"{done.stderr}\n{server.said()}"
    np.testing.assert_allclose(np.load(home / "numbers.npy"), logits_of(one, IMAGES[:1])[0], atol=1e-4)


def test_json_is_answered_with_the_id_that_was_sent(running):
    server, _, one = running
    tensor = {"name": "images", "shape": [1, 3, 64, 64], "datatype": "FP32", "data": IMAGES[:1].ravel().tolist()}
    status, answer = server.ask("POST", "/v2/models/vit/infer", {"id": "mine", "inputs": [tensor]})
    assert (status, answer["id"], answer["model_name"]) == (200, "mine", "vit")
    logits = next(output for output in answer["outputs"] if output["name"] == "logits")
    assert (logits["shape"], logits["datatype"]) == ([1, 3], "FP32")
    np.testing.assert_allclose(logits["data"], logits_of(one, IMAGES[:1])[0], atol=1e-4)
    status, answer = server.ask("POST", "/v2/models/vit/infer", {"inputs": [tensor]})
    assert status == 200 and answer["id"]


def test_what_is_served_is_told(running):
    server, _, _ = running
    _, answer = server.ask("GET", "/v2/models/vit_images")
    assert answer["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]
    assert [output["name"] for output in answer["outputs"]][-2:] == ["classes", "probabilities"]
    _, answer = server.ask("GET", "/v2/models/vit")
    assert answer["versions"] == []
    assert answer["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 64, 64]}]


INPUT = {"name": "images", "shape": [1, 3, 64, 64], "datatype": "FP32"}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("v2/models/vit/infer", {"inputs": [{**INPUT, "data": [1.0]}]}, "the data of images are not FP32"),
        ("v2/models/vit/infer", {"inputs": []}, "0 inputs were sent"),
        ("v2/models/vit/infer", {"inputs": [{**INPUT, "shape": [0, 3, 64, 64], "data": []}]}, "the input sent is"),
        ("v2/models/vit/infer", {"inputs": [{**INPUT, "datatype": "FP64", "data": [1.0]}]}, "images: FP64"),
        ("v1/models/vit:predict", {"instances": [[1]]}, "answers protocol v2 alone"),
        (
            "v2/models/vit_images/infer",
            {"inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": ["text"]}]},
            "send the bytes of files as binary data",
        ),
        ("v2/repository/models/vit/unload", {}, "not by requests"),
    ],
)
def test_a_wrong_request_is_a_400_and_the_next_one_is_answered(running, path, body, said):
    server, _, _ = running
    status, answer = server.ask("POST", f"/{path}", body)
    assert status == 400 and said in answer["error"]
    assert server.ask("GET", "/v2/models/vit/ready")[0] == 200


@pytest.mark.parametrize(("size", "length"), [(10, 0), (-1, 0), (10**9, 0), (3 * 64 * 64 * 4, -5), (4, 10**6)])
def test_binary_data_of_another_size_than_declared_is_a_400(running, size, length):
    server, _, _ = running
    head = json.dumps({"inputs": [{**INPUT, "parameters": {"binary_data_size": size}}]}).encode()
    counted = str(len(head) + length)
    body = head + IMAGES[:1].tobytes()
    status, answer = server.ask("POST", "/v2/models/vit/infer", body, **{"Inference-Header-Content-Length": counted})
    assert status == 400 and answer["error"]


@pytest.mark.parametrize("taken", ["http", "grpc"])
def test_a_second_server_on_a_port_of_it_says_so_and_ends(running, serving_python, taken):
    server, home, _ = running
    command = [serving_python, "-P", "-m", "lifedeploy.serving.kserve", "--package", str(home / "package")]
    ports = {"http": free_ports(1)[0], "grpc": free_ports(1)[0]} | {taken: getattr(server, taken)}
    command += ["--http-port", str(ports["http"]), "--grpc-port", str(ports["grpc"])]
    variables = environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=variables)
    said = f"error: 127.0.0.1 port {ports[taken]} cannot be listened on\nhint: another --{taken}-port"
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert server.ask("GET", "/v2/models/vit/ready")[0] == 200


def test_a_signal_ends_it_after_its_requests(serving_python, exported, tmp_path):
    folder = next(exported.glob("*/model.json")).parent
    request = PackageRequest(target="kserve", out=tmp_path / "package", model=folder, engine="onnxruntime", name="vit")
    package(request, Workspace(exported))
    server = Running(serving_python, tmp_path / "package", tmp_path / "log")
    server.ready()
    assert server.end() in (0, -15), server.said()
