"""Asks a running server by tritonclient, over HTTP and gRPC, and keeps what it answered: ADDRESSES IN.npz OUT.npz.

A program of its own, for an environment that has tritonclient; the tests' own need not.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
from tritonclient.utils import InferenceServerException


def asked(kind, client, model: str, name: str, array: np.ndarray, word: str, wanted: list[str]) -> dict:
    tensor = kind.InferInput(name, list(array.shape), word)
    tensor.set_data_from_numpy(array)
    answer = client.infer(model, [tensor], outputs=[kind.InferRequestedOutput(output) for output in wanted])
    return {output: answer.as_numpy(output) for output in wanted}


def main() -> None:
    http, grpc, given, kept = sys.argv[1:]
    data = np.load(given)
    images, file = data["images"], data["picture"].tobytes()
    answers: dict[str, np.ndarray] = {}
    for kind, address in ((by_http, http), (by_grpc, grpc)):
        short = kind.__name__.rpartition(".")[2]
        client = kind.InferenceServerClient(address)
        assert client.is_server_ready() and client.is_model_ready("vit") and client.is_model_ready("vit_images")
        # All at once, of different sizes, one of them more than a batch.
        parts = [images[:1], images[1:4], images, images[4:5], images[2:4]]

        def ask(part: np.ndarray, kind=kind, address=address) -> np.ndarray:
            with kind.InferenceServerClient(address) as mine:
                return asked(kind, mine, "vit", "images", part, "FP32", ["logits"])["logits"]

        with ThreadPoolExecutor(len(parts)) as pool:
            for number, logits in enumerate(pool.map(ask, parts * 4)):
                answers[f"{short}_{number % len(parts)}_{number // len(parts)}"] = logits
        files = np.array([[file], [file]], dtype=np.object_)
        for name, array in asked(
            kind, client, "vit_images", "image", files, "BYTES", ["logits", "classes", "probabilities"]
        ).items():
            answers[f"{short}_{name}"] = array.astype("S16") if array.dtype == np.object_ else array
        refused = []
        for model, name, array, word, outputs in (
            ("vit", "images", images[:, :, :8], "FP32", ["logits"]),
            ("vit", "pixels", images, "FP32", ["logits"]),
            ("vit", "images", images, "FP32", ["odds"]),
            ("vit_images", "image", np.array([[file[:99]]], dtype=np.object_), "BYTES", ["logits"]),
        ):
            try:
                asked(kind, client, model, name, array, word, outputs)
            except InferenceServerException as error:
                refused.append(f"{error.status()} {error.message()}")
        answers[f"{short}_refused"] = np.array(refused)
    np.savez(kept, **answers)


if __name__ == "__main__":
    main()
