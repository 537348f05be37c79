"""Packages in a real server: what it answers is what the engine answers, whatever other clients do."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving.triton import PYTHON, free_ports
from lifedeploy.data.preprocess import model_input, read_image, to_pixels
from lifedeploy.data.samples import PHOTOS, photo_folder
from lifedeploy.targets.find import find
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import target_of
from tests.serving.conftest import Packages
from tests.serving.triton import Triton, command, request, require_environment

IMAGE, IMAGES = "image", "images"


def files(*data: bytes) -> np.ndarray:
    return np.array([[item] for item in data], dtype=object)


def photo(name: str = PHOTOS[0]) -> bytes:
    return (photo_folder() / name).read_bytes()


def prepared(packages: Packages, count: int = 1) -> np.ndarray:
    """Images as they go into the model."""
    spec = packages.export.manifest.spec.preprocess
    pixels = np.stack([to_pixels(read_image(photo_folder() / name), spec) for name in PHOTOS[:count]])
    return model_input(pixels, spec, in_graph=False)


def bare(packages: Packages, engine: str, images: np.ndarray) -> np.ndarray:
    """The engine's own logits."""
    with Session(target_of(find(packages.engine(engine)))) as session:
        return session.answer(images).logits


def test_it_listens_on_the_address_given_and_nowhere_else(server: Triton) -> None:
    assert server.listeners() == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("engine", "model", "scheme", "kept"),
    [
        ("openvino", "tiny", "http", False),
        ("openvino", "tiny", "grpc", False),
        ("openvino", "tiny_images", "http", False),
        ("onnxruntime", "tiny_kept", "grpc", True),
        ("onnxruntime", "tiny_kept_images", "grpc", True),
    ],
)
def test_the_parity_gate_through_the_server(
    server: Triton, packages: Packages, engine: str, model: str, scheme: str, kept: bool
) -> None:
    url = server.url(model, scheme)
    done = command("verify", packages.engine(engine), url, "--json", "-", folder=packages.folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["second"] == url
    parity = report["parity"]
    assert parity["passed"] and parity["top1"] == 1.0
    assert parity["overlap"] == (1.0 if kept else None)
    assert len(parity["cases"]) == 4
    assert parity["max_rel"] < (1e-5 if engine == "onnxruntime" else 0.15)


def test_the_ensemble_decodes_and_crops_as_every_other_command_does(server: Triton, packages: Packages) -> None:
    spec = packages.export.manifest.spec.preprocess
    for name in PHOTOS:
        pixels = to_pixels(read_image(photo_folder() / name), spec)[None]
        through = server.logits("tiny_kept_images", IMAGE, files(photo(name)))
        direct = server.logits("tiny_kept", IMAGES, model_input(pixels, spec, in_graph=False))
        np.testing.assert_array_equal(through, direct)


def test_several_images_in_one_request_and_other_formats(server: Triton, packages: Packages) -> None:
    image = Image.open(photo_folder() / PHOTOS[1])
    png = io.BytesIO()
    image.save(png, "png")
    together = server.logits("tiny_kept_images", IMAGE, files(photo(PHOTOS[0]), photo(PHOTOS[1]), png.getvalue()))
    expected = bare(packages, "onnxruntime", prepared(packages, 2))
    np.testing.assert_allclose(together, expected[[0, 1, 1]], rtol=1e-4, atol=1e-5)


def test_the_best_classes_come_by_name(server: Triton, packages: Packages, lifedeploy) -> None:
    tensors = server.tensors("tiny_images", IMAGE, files(photo("chelsea.jpg")))
    assert set(tensors) == {"logits", "classes", "probabilities"}
    said = lifedeploy("predict", photo_folder() / "chelsea.jpg", "-m", packages.engine("openvino"), "--json", "-")
    guesses = json.loads(said.out)["predictions"][0]["guesses"][:2]
    assert tensors["classes"].tolist() == [[guess["name"].encode() for guess in guesses]]
    np.testing.assert_allclose(tensors["probabilities"][0], [guess["probability"] for guess in guesses], atol=5e-3)


def test_accuracy_through_the_server_is_that_of_the_engine(server: Triton, packages: Packages) -> None:
    engine = packages.engine("onnxruntime")
    words = ("--url", server.url("tiny_kept"), "--url", server.url("tiny_kept", "grpc"), "--json", "-")
    done = command("evaluate", engine, "--data", packages.images, *words, folder=packages.folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = report["rows"]
    assert [row["engine"] for row in rows] == ["onnxruntime", "server", "server"]
    assert rows[1]["model"] == server.url("tiny_kept")
    assert [row["accuracy"]["top1"] for row in rows] == [rows[0]["accuracy"]["top1"]] * 3
    assert [(pair["agreement"], pair["overlap"]) for pair in report["pairs"]] == [(1.0, 1.0)] * 3


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_what_the_server_costs(server: Triton, packages: Packages, scheme: str) -> None:
    words = ("--url", server.url("tiny", scheme), "--concurrency", "1,4", "--budget", "0.6", "--json", "-")
    # Of an export it finds the engine that is served, by its hash.
    done = command("bench", packages.export.folder, *words, folder=packages.folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["server"].startswith("triton 2.")
    assert (report["parameters"]["method"], report["engine"], report["same_engine"]) == ("life", "openvino fp32", True)
    assert [row["concurrency"] for row in report["rows"]] == [1, 4]
    for row in report["rows"]:
        assert row["share_low"] <= row["share"] <= row["share_high"]
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p90"] <= row["latency_ms"]["p99"]
        assert row["bare_batch"] * row["bare_streams"] == row["concurrency"]
        assert all(1 <= int(size) <= 8 and count > 0 for size, count in row["formed"].items())
    assert set(report["rows"][0]["formed"]) == {"1"}, "one client's requests cannot be put together"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nothing", "is not found"),
        ("tiny_images", "takes the bytes of image files"),
    ],
)
def test_a_model_that_cannot_be_meant_is_refused(server: Triton, packages: Packages, model: str, words: str) -> None:
    url = server.url(model)
    done = command(
        "evaluate", packages.engine("openvino"), "--data", packages.images, "--url", url, folder=packages.folder
    )
    assert done.returncode == 1
    assert url in done.stderr.replace("\n", "") and words in " ".join(done.stderr.split())


def test_a_server_that_has_another_engine_is_not_measured_against_this_one(server: Triton, packages: Packages) -> None:
    lone = packages.folder / "lone"
    if not lone.is_dir():
        shutil.copytree(packages.export.folder, lone, ignore=shutil.ignore_patterns("openvino-*"))
    url = server.url("tiny", "grpc")
    done = command("bench", lone, "--url", url, "--budget", "1", folder=packages.folder)
    assert done.returncode == 1
    assert f"{url} serves another engine than {lone}/ holds" in " ".join(done.stderr.split())


def test_another_method_is_not_the_same_model(server: Triton, packages: Packages) -> None:
    dense = packages.engine("openvino").with_name("dense.json")
    done = command("verify", dense, server.url("tiny"), folder=packages.folder)
    assert done.returncode == 2
    assert "these are not forms of one model: method is dense" in " ".join(done.stderr.split())
    done = command("verify", dense, server.url("tiny_images"), folder=packages.folder)
    assert done.returncode == 2, done.stdout


def test_a_server_that_is_not_there(packages: Packages) -> None:
    require_environment()
    (port,) = free_ports(1)
    for scheme in ("http", "grpc"):
        url = f"{scheme}://127.0.0.1:{port}/tiny"
        done = command("verify", packages.engine("openvino"), url, folder=packages.folder)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {url}") and done.stderr.count("\n") <= 3, done.stderr


def test_a_server_that_says_nothing(packages: Packages) -> None:
    """It accepts, and is silent: a client that waits for ever is one that hangs in production."""
    require_environment()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"grpc://127.0.0.1:{silent.getsockname()[1]}/tiny"
        script = (
            "import sys; from lifedeploy.engines import wire; from lifedeploy.__main__ import main;"
            "wire._PATIENCE_S = 1.0; sys.argv[0] = 'lifedeploy'; main()"
        )
        line = [str(PYTHON), "-c", script, "verify", str(packages.engine("openvino")), url]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {url}")


def test_damaged_bytes_and_wrong_shapes_cost_their_own_request(server: Triton, packages: Packages) -> None:
    good = prepared(packages)
    bad = [
        ("tiny_images", IMAGE, files(b"")),
        ("tiny_images", IMAGE, files(b"no image")),
        ("tiny_images", IMAGE, files(photo()[:5000])),
        ("tiny_images", IMAGE, files(photo(), b"damaged")),
        ("tiny", IMAGES, good[:, :2]),
        ("tiny", IMAGES, good[:, :, :-1]),
        ("tiny", IMAGES, np.concatenate([good] * 9)),
        ("tiny", IMAGES, (good * 0).astype(np.uint8)),
        ("tiny", "pictures", good),
        ("tiny", IMAGES, good * np.float32(np.nan)),
    ]
    for model, name, array in bad:
        status, facts, _ = server.ask(model, name, array)
        assert status == 400, facts
        assert facts["error"]
    assert server.ask("tiny", IMAGES, good)[0] == 200
    assert server.ask("tiny_images", IMAGE, files(photo()))[0] == 200


def _cut(server: Triton, model: str, name: str, array: np.ndarray, *, whole: bool) -> None:
    """Send half of a request, or all of it, and leave."""
    body, headers = request(name, array)
    lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.http)) as connection:
        connection.sendall((head + body)[: len(head) + (len(body) if whole else len(body) // 2)])


def test_clients_that_leave_cost_nobody_anything(server: Triton, packages: Packages) -> None:
    images = prepared(packages, 4)
    expected = bare(packages, "onnxruntime", images)

    def client(number: int) -> str:
        image = images[number % 4 : number % 4 + 1]
        if number % 4 == 3:  # 16 of 64
            _cut(server, "tiny_kept", IMAGES, image, whole=number % 8 == 7)
            return "left"
        if number % 16 == 2:  # 4 of 64, while others are on their way
            assert server.ask("tiny_kept", IMAGES, image[:, :2])[0] == 400
            return "refused"
        logits = server.logits("tiny_kept", IMAGES, image)
        np.testing.assert_allclose(logits[0], expected[number % 4], rtol=1e-4, atol=1e-5)
        return "answered"

    memory = []
    with ThreadPoolExecutor(64) as clients:
        for _ in range(6):
            outcomes = list(clients.map(client, range(64)))
            assert [outcomes.count(outcome) for outcome in ("answered", "refused", "left")] == [44, 4, 16]
            memory.append(server.memory_mib())
    # What is allocated for the most that were ever there stays; then nothing is added.
    assert memory[-1] < memory[1] + 16, memory
    assert server.process.poll() is None
