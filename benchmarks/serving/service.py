"""What a server costs, and whether it answers as the engine does: ``RESULTS.md`` and ``results.json`` beside this file.

    python -m benchmarks.serving.service [--work DIR] [--budget 60] [--trained MODEL --data DIR] [--dry]

Needs ``make serve-env``. DeiT-S at keep rate 0.7 on OpenVINO, packaged for Triton's Python backend with batches, delay
and instances off its own benchmark: measured through gRPC and HTTP by 1 to 16 clients, each row against the engine
without a server in the same rounds. With a trained model and labelled images, every image file goes through the
ensemble too. Twenty minutes on two cores.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    ROOT,
    command_line,
    interval,
    lifedeploy,
    new_parser,
    publish,
    record_of,
    report_of,
    source,
    table,
)
from benchmarks.serving.triton import PYTHON, Server, serving
from lifedeploy.data.images import read_images
from lifedeploy.data.preprocess import read_image, to_pixels
from lifedeploy.engines.base import EngineOptions
from lifedeploy.machine import cores
from lifedeploy.targets.find import find
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import target_of

HERE = Path(__file__).parent
NAME = "deit_s_life"
WANTED = 0.85  # of the bare engine's speed: gRPC, eight clients
# Asks the ensemble for every file that it is given, with the server's own client; prints logits as JSON.
FILES = """
import json, sys
import numpy as np
import tritonclient.grpc as grpc
client = grpc.InferenceServerClient(sys.argv[1])
for path in sys.stdin.read().splitlines():
    data = np.array([[open(path, "rb").read()]], dtype=np.object_)
    tensor = grpc.InferInput("image", data.shape, "BYTES")
    tensor.set_data_from_numpy(data)
    print(json.dumps(client.infer(sys.argv[2], [tensor]).as_numpy("logits")[0].tolist()))
"""


def asked(*words: object, folder: Path) -> dict[str, Any]:
    """The report of a command in the server's environment, where its client is."""
    line = [str(PYTHON), "-m", "lifedeploy", *map(str, words), "--json", "-"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, words))}: {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def packaged(work: Path, budget: float, *, dry: bool) -> tuple[Path, dict[str, Any]]:
    """The engine that is served, and its package."""
    backbone = ("test_vit", "--img-size", "64") if dry else ("deit_s",)
    lifedeploy(
        "export",
        "--backbone",
        *backbone,
        "--rho",
        "0.7",
        "--weights",
        "random",
        "--with-preprocess",
        "-o",
        "m",
        folder=work,
    )
    lifedeploy("build-engine", "m", "-e", "openvino", "--bf16", folder=work)
    engine = next((work / "m").glob("openvino-*"))
    measuring: tuple[str, ...] = (
        "--batch",
        "1,2,4,8",
        "--mode",
        "latency",
        "--mode",
        "throughput",
        "--budget",
        str(budget),
        "--no-memory",
    )
    (work / "bench.json").write_text(json.dumps(report_of("bench", engine, *measuring, folder=work)), encoding="utf-8")
    packaging = ("--for", "triton", "-o", "repo", "--bench", "bench.json", "--name", NAME)
    return engine, report_of("package", engine, *packaging, folder=work)["package"]


def through_files(server: Server, model: str, engine: Path, data: Path, threads: int) -> dict[str, Any]:
    """Every image file through the ensemble, against the engine on the same file."""
    images = read_images(str(data))
    paths = [data / images.filename(index) for index in range(len(images))]
    asking = [str(PYTHON), "-c", FILES, f"127.0.0.1:{server.grpc}", model]
    done = subprocess.run(asking, input="\n".join(map(str, paths)), capture_output=True, text=True, check=True)
    theirs = np.array([json.loads(line) for line in done.stdout.splitlines()], dtype=np.float32)
    # As an instance opens it: in BF16 the same image has other last bits in another batch, and with other threads.
    with Session(target_of(find(engine / "model.json")), options=EngineOptions(batch=1, threads=threads)) as session:
        spec = session.preprocess
        assert spec is not None
        ours = np.concatenate(
            [session.read(session.ask(to_pixels(read_image(path), spec)[None])).logits for path in paths]
        )
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    error = np.abs(ours - theirs).max(axis=1)
    return {
        "images": len(paths),
        "same_top1": int(same.sum()),
        "bit_equal": int((error == 0).sum()),
        "largest_error": float((error / np.abs(ours).max()).max()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, make, serve, measure, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, help="where models are made, and kept")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of each contest")
    parser.add_argument("--concurrency", default="1,4,8,16")
    parser.add_argument("--trained", type=Path, help="the folder of a trained model's OpenVINO engine")
    parser.add_argument("--data", default="", help="labelled images of its classes")
    parser.add_argument("--dry", action="store_true", help="a tiny model: its numbers mean nothing")
    given = parser.parse_args(arguments)
    with ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        engine, package = packaged(work, given.budget, dry=given.dry)
        repositories = [work / "repo"]
        if given.trained:
            trained = given.trained.resolve()
            words = ("--name", "trained", "-o", work / "trained", "--instances", "2")
            lifedeploy("package", trained, "--for", "triton", *words)
            repositories.append(work / "trained")
        server = stack.enter_context(serving(work / "triton.log", *repositories))
        result: dict[str, Any] = {"package": package, "bench": {}, "verify": {}}
        for scheme in ("grpc", "http"):
            clients = ("--concurrency", given.concurrency, "--budget", given.budget)
            result["bench"][scheme] = asked("bench", engine, "--url", server.url(NAME, scheme), *clients, folder=work)
            for model in (NAME, f"{NAME}_images"):
                report = asked("verify", engine, server.url(model, scheme), folder=work)
                result["verify"][f"{model}, {scheme}"] = report["parity"]
        if given.trained:
            data = Path(given.data).resolve()
            url = server.url("trained", "grpc")
            result["evaluate"] = asked("evaluate", trained, "--data", data, "--url", url, folder=work)
            result["files"] = through_files(server, "trained_images", trained, data, max(1, cores() // 2))
    record = record_of(command_line("serving.service", arguments))
    # Where things lay on this machine means nothing elsewhere.
    told = json.dumps(result).replace(f"{ROOT}/", "").replace(str(work), "DIR")
    record |= {"dry": given.dry, "result": json.loads(told)}
    publish(given.out, "results", record, page(record))


def page(record: Mapping[str, Any]) -> str:
    """What was measured, as Markdown."""
    result = record["result"]
    plan = result["package"]["plan"]
    precision = result["package"]["precision"].upper()
    lines = ["# Through a server", "", source(record, "openvino", "numpy"), ""]
    if record["dry"]:
        lines += ["A dry run: its numbers mean nothing.", ""]
    lines += [
        f"DeiT-S at keep rate 0.7, pixels in the graph, OpenVINO {precision}, Triton's Python backend. Off its own",
        f"benchmark: preferred batches {', '.join(map(str, plan['preferred']))}, a delay of {plan['delay_us']} µs,",
        f"{plan['instances']} instances. Requests of one image; clients, server and engine share the cores.",
        f"Wanted: {WANTED} of the bare engine at 8 clients, gRPC.",
        "",
    ]
    columns: tuple[str, ...] = ("protocol", "clients", "img/s", "p50, ms", "p90, ms", "p99, ms", "batch formed, mean")
    columns += ("bare engine, img/s (in flight)", "of it", "rounds")
    speeds = [_speed(scheme, row) for scheme, report in result["bench"].items() for row in report["rows"]]
    lines += table(" | ".join(columns), speeds)
    lines += ["", "## The parity gate through the server", ""]
    gates = [
        [name, f"{parity['max_rel']:.1e}", f"{parity['top1']:.0%}", "passed" if parity["passed"] else "failed"]
        for name, parity in result["verify"].items()
    ]
    lines += table("model | largest error over the largest logit | same top-1 | gate", gates)
    if "files" in result:
        files, rows = result["files"], result["evaluate"]["rows"]
        lines += [
            "",
            "## A trained model's answers to image files",
            "",
            f"Of {files['images']} files {files['same_top1']} have the same top-1 through the ensemble as from the",
            f"engine, {files['bit_equal']} the same logits to the bit; the largest error",
            f"is {files['largest_error']:.1e} of the largest logit. Accuracy through the server",
            f"{rows[1]['accuracy']['top1']:.4f}, of the engine {rows[0]['accuracy']['top1']:.4f}",
            f"({rows[0]['precision'].upper()}).",
        ]
    return "\n".join(lines) + "\n"


def _speed(scheme: str, row: Mapping[str, Any]) -> list[object]:
    mean = "–" if row["mean_formed"] is None else f"{row['mean_formed']:.2f}"
    bare = f"{row['bare_images_per_s']:.1f} ({row['bare_streams']} × {row['bare_batch']})"
    times = (f"{row['latency_ms'][point]:.1f}" for point in ("p50", "p90", "p99"))
    speed = f"{row['images_per_s']:.1f}"
    return [scheme, row["concurrency"], speed, *times, mean, bare, interval(row, "share"), row["rounds"]]


if __name__ == "__main__":
    main()
