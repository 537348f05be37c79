"""What scoring many images costs; writes ``RESULTS.md`` and ``results.json`` beside itself.

    python -m benchmarks.scoring.speed --work DIR [--only share memory ray predict] [--before CHECKOUT]

share    images per second of a job against the engine alone (its lane, on the same buffers), in turns in one process
memory   resident memory of ``lifedeploy score`` while it goes through all images, every second
ray      two Ray actors of one core each against one process with two cores, commands in turns
predict  ``lifedeploy predict`` of 1,000 files against the one of an earlier checkout (``--before``), commands in turns

The model is DeiT-S at keep rate 0.7 with random weights that are read from a file, so that it counts as one with
classes; images are cut out of the package's photographs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.common import (
    Results,
    command_line,
    lifedeploy,
    memory_mib,
    new_parser,
    number,
    read_json,
    source,
    table,
)
from lifedeploy import children
from lifedeploy.artifact import Workspace
from lifedeploy.bench.stats import median_interval
from lifedeploy.data.samples import PHOTOS, photo_folder
from lifedeploy.machine import cores, fast_bf16
from lifedeploy.model import backbones
from lifedeploy.scoring.filing import Filer, Order
from lifedeploy.scoring.jobs import Job
from lifedeploy.scoring.parts import Part
from lifedeploy.scoring.places import LocalPlace
from lifedeploy.scoring.scorer import Settings
from lifedeploy.scoring.sources import find, listed

BATCH = 32
SMALL, CAMERA = "small", "camera"  # folders of images
ENGINE = "openvino"
_RAY_PART = 500  # images: twenty parts for each actor, so that neither waits long for the other one's last
_WARM_S = 20.0  # of a job, before its memory is looked at


class Bench:
    """A working folder with a model and images, each made where it is not there yet."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.export = work / "artifacts" / "deit_s-life-r0.7-uint8"

    def prepare(self, small: int, camera: int) -> None:
        """Make what is missing."""
        self.work.mkdir(parents=True, exist_ok=True)
        if not self.export.is_dir():
            torch.manual_seed(0)
            vit = backbones.create("deit_s")
            for name, parameter in vit.named_parameters():
                if name.endswith("bias"):  # biases of zero are all one tensor to the exporter
                    torch.nn.init.normal_(parameter, std=0.1)
            torch.nn.init.normal_(vit.get_parameter("head.weight"), std=0.1)
            save_file(vit.state_dict(), self.work / "deit_s.safetensors")
            words = ("--backbone", "deit_s", "--rho", "0.7", "--weights", "deit_s.safetensors", "--with-preprocess")
            lifedeploy("export", *words, folder=self.work)
        if not Workspace.engines_of(_artifact(self.export)):
            precision = ["--bf16"] if fast_bf16() else []
            lifedeploy("build-engine", self.export, "-e", ENGINE, *precision, folder=self.work)
        self._images(SMALL, small, (96, 96))
        self._images(CAMERA, camera, (4032, 3024))

    @property
    def engine(self) -> Path:
        """The engine that was built."""
        return Workspace.engines_of(_artifact(self.export))[0].manifest_path

    def _images(self, name: str, count: int, size: tuple[int, int]) -> None:
        """Other views of the photographs; of large ones few are made, and linked to under other names."""
        root = self.work / name
        if root.is_dir() and len(list(root.iterdir())) >= count:
            return
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        photos = [Image.open(photo_folder() / photo).convert("RGB") for photo in PHOTOS]
        generator = np.random.default_rng(0)
        made = count if size[0] < 1000 else 16
        for index in range(made):
            photo = photos[index % len(photos)]
            width = int(generator.integers(150, min(photo.size)))
            height = width * size[1] // size[0]
            left, top = (
                int(generator.integers(0, have - need + 1))
                for have, need in zip(photo.size, (width, height), strict=True)
            )
            view = photo.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
            grain = generator.integers(-6, 7, (size[1], size[0], 3), dtype=np.int16)  # as sensors have it
            pixels = (np.asarray(view).astype(np.int16) + grain).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{index:05d}.jpg", quality=90)
        for index in range(made, count):
            os.link(root / f"{index % made:05d}.jpg", root / f"{index:05d}.jpg")

    def order(self, folder: Path, part: int) -> tuple[Order, tuple[Part, ...]]:
        """A job over the small images, with its parts."""
        artifact = _artifact(self.engine.parent)
        output = LocalPlace(folder / "out")
        images = listed(find([str(self.work / SMALL)]), part, folder, output)
        output.path.mkdir()
        assert images.listing is not None
        (output.path / images.listing.name).write_bytes(images.listing.read_bytes())
        job = Job(
            model=artifact.name, source=SMALL, root=images.source.root,
            column=images.source.column, sha256=artifact.manifest.sha256, engine=ENGINE,
            precision=artifact.precision, keep="top", top=5, input=images.digest, part=part, format="parquet",
            max_pixels=10**9,
        )  # fmt: skip
        settings = Settings(batch=BATCH)
        order = Order(manifest=self.engine, job=job, source=images.source, folder=output.address, settings=settings)
        return order, images.parts


def share(bench: Bench, rounds: int, part: int = 512) -> dict[str, Any]:
    """The job and the engine alone take turns, a part of images each."""
    with tempfile.TemporaryDirectory() as temporary:
        order, parts = bench.order(Path(temporary), part)
        jobs, engines = [], []
        with Filer(order) as filer:
            lane = filer.scorer.lane
            _engine_alone(lane.infer, part)
            for index in range(rounds):
                two = parts[2 * index : 2 * index + 2]
                began = time.perf_counter()
                with closing(filer.filed(two, lambda count: None)) as filed:
                    images = sum(finished.tally.images for finished in filed)
                jobs.append(images / (time.perf_counter() - began))
                engines.append(_engine_alone(lane.infer, images))
                print(f"job {jobs[-1]:.1f} img/s, engine alone {engines[-1]:.1f}", flush=True)
    # The engine's turns around a job's: speed drifts.
    around = [(first + second) / 2 for first, second in zip(engines, [*engines[1:], engines[-1]], strict=True)]
    ratio = median_interval([ours / alone for ours, alone in zip(jobs, around, strict=True)])
    return {
        "engine": f"{ENGINE} {order.job.precision}", "rounds": rounds, "images": 2 * part,
        "job_images_per_s": float(np.median(jobs)), "engine_images_per_s": float(np.median(engines)),
        "ratio": ratio.median, "low": ratio.low, "high": ratio.high,
    }  # fmt: skip


def _engine_alone(infer: Callable[[], None], images: int) -> float:
    began = time.perf_counter()
    for _ in range(max(images // BATCH, 1)):
        infer()
    return max(images // BATCH, 1) * BATCH / (time.perf_counter() - began)


def memory(bench: Bench) -> dict[str, Any]:
    """Resident memory of a job over all small images."""
    with tempfile.TemporaryDirectory() as temporary:
        words = ["score", str(bench.engine), str(bench.work / SMALL), "-o", "rows", "--json", "report.json"]
        began, seen = time.perf_counter(), []
        process = subprocess.Popen(children.command("lifedeploy", *words), cwd=temporary, env=children.environment())
        while process.poll() is None:
            time.sleep(1.0)
            if time.perf_counter() - began > _WARM_S:
                seen.append((len(list(Path(temporary).glob("rows/part-*"))), memory_mib(process.pid, "VmRSS")))
        if process.returncode:
            raise SystemExit("error: lifedeploy score failed")
        report = read_json(Path(temporary) / "report.json")
    sizes = [size for parts, size in seen if parts < report["parts"]]  # then it closes the engine
    return {
        "images": report["images"], "images_per_s": report["images_per_s"], "samples": len(sizes),
        "first_mib": sizes[0], "last_mib": sizes[-1], "least_mib": min(sizes), "most_mib": max(sizes),
    }  # fmt: skip


def ray(bench: Bench, rounds: int) -> dict[str, Any]:
    """Both score all small images, from the start of the command's work to its last row."""
    ways = {"one process": (), "two actors": ("--on", "ray", "--actors", "2", "--actor-cores", "1")}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds):
        for name in ways if index % 2 else reversed(ways):
            with tempfile.TemporaryDirectory() as temporary:
                what = ("score", bench.engine, bench.work / SMALL, "-o", "rows", "--part", _RAY_PART)
                lifedeploy(*what, *ways[name], "--json", "report.json", folder=Path(temporary))
                speeds[name].append(read_json(Path(temporary) / "report.json")["images_per_s"])
            print(name, speeds[name][-1], flush=True)
    ratio = median_interval(
        [two / alone for two, alone in zip(speeds["two actors"], speeds["one process"], strict=True)]
    )
    medians = {name: float(np.median(values)) for name, values in speeds.items()}
    images = len(list((bench.work / SMALL).iterdir()))
    return {
        "images": images, "part": _RAY_PART, "rounds": rounds, "images_per_s": medians,
        "ratio": ratio.median, "low": ratio.low, "high": ratio.high,
    }  # fmt: skip


def predict(bench: Bench, before: Path, rounds: int, files: int) -> dict[str, Any]:
    """Whole commands, from their start to their end, with engine and images of each kind."""
    rows: dict[str, Any] = {}
    for images in (SMALL, CAMERA):
        names = sorted(str(path) for path in (bench.work / images).iterdir())[:files]
        words = ["predict", "--model", str(bench.engine), "--json", "-", *names]
        speeds: dict[str, list[float]] = {"now": [], "before": []}
        peaks: dict[str, float] = {}
        for index in range(rounds):
            for way in speeds if index % 2 else reversed(speeds):
                seconds, peaks[way] = _timed(words, before if way == "before" else None)
                speeds[way].append(files / seconds)
                print(images, way, f"{speeds[way][-1]:.1f} img/s, {peaks[way]:.0f} MiB", flush=True)
        few = words[: 5 + files // 4]
        ratio = median_interval([now / then for now, then in zip(speeds["now"], speeds["before"], strict=True)])
        rows[images] = {
            "engine": bench.engine.parent.name, "files": files, "rounds": rounds,
            "images_per_s": float(np.median(speeds["now"])), "before_images_per_s": float(np.median(speeds["before"])),
            "peak_mib": peaks["now"], "before_peak_mib": peaks["before"], "quarter_peak_mib": _timed(few, None)[1],
            "ratio": ratio.median, "low": ratio.low, "high": ratio.high,
        }  # fmt: skip
    return rows


def _timed(words: Sequence[str], checkout: Path | None) -> tuple[float, float]:
    """Seconds of a command, and its peak memory in MiB."""
    program = children.command("lifedeploy", *words)
    if checkout is not None:
        program = [str(checkout / "lifedeploy") if word.endswith("/lifedeploy") else word for word in program]
    began, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(program, env=children.environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory_mib(process.pid, "VmHWM"))  # what the system counts begins with what we had
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"error: {' '.join(words[:4])} failed")
    return time.perf_counter() - began, peak


def _artifact(folder: Path) -> Any:
    from lifedeploy.targets.find import find as find_model

    artifact = find_model(folder).artifact
    assert artifact is not None
    return artifact


def markdown(results: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = ["# Scoring many images", ""]
    for key, title, show in (
        ("share", "A job against the engine alone", _share_lines),
        ("memory", "Memory of a job", _memory_lines),
        ("ray", "Two Ray actors against one process", _ray_lines),
        ("predict", "`predict` against what it was", _predict_lines),
    ):
        for entry in results.get(key, {}).values():
            lines += [
                f"## {title}",
                "",
                source(entry, "openvino", "onnxruntime", "ray", "numpy"),
                "",
                *show(entry["result"]),
                "",
            ]
    return "\n".join(lines)


def _ratio(row: dict[str, Any]) -> str:
    return f"**{row['ratio']:.3f}** [{row['low']:.3f}, {row['high']:.3f}]"


def _share_lines(row: dict[str, Any]) -> list[str]:
    head = "engine | job, img/s | engine alone, img/s | of it [95 %] | rounds | wanted"
    cells = (row["engine"], number(row["job_images_per_s"], ".1f"), number(row["engine_images_per_s"], ".1f"))
    return [
        f"DeiT-S at keep rate 0.7, JPEGs of 96 × 96 pixels, batch {BATCH}, {row['images']} images a turn.",
        "",
        *table(head, [(*cells, _ratio(row), row["rounds"], "≥ 0.9")]),
    ]


def _memory_lines(row: dict[str, Any]) -> list[str]:
    head = "images | img/s, all in all | RSS after 20 s, MiB | at the end | least | most | most over least | wanted"
    span = row["most_mib"] / row["least_mib"] - 1
    cells = (f"{row[name]:.0f}" for name in ("first_mib", "last_mib", "least_mib", "most_mib"))
    return table(head, [(f"{row['images']:,}", f"{row['images_per_s']:.1f}", *cells, f"{span:.1%}", "within 5 %")])


def _ray_lines(row: dict[str, Any]) -> list[str]:
    speeds = row["images_per_s"]
    head = "one process, 2 cores, img/s | two actors of 1 core, img/s | ratio | rounds | wanted"
    cells = (f"{speeds['one process']:.1f}", f"{speeds['two actors']:.1f}", _ratio(row), row["rounds"], "≥ 0.9")
    return [
        f"{row['images']:,} images in parts of {row['part']}. Starting the cluster, and opening the models in it, is "
        "part of the time.",
        "",
        *table(head, [cells]),
    ]


def _predict_lines(rows: dict[str, Any]) -> list[str]:
    head = "images | img/s | before | ratio | peak, MiB | of a quarter of the files | before"
    about = {SMALL: "small", CAMERA: "of 12 megapixels"}
    cells = (
        (
            about[images], f"{row['images_per_s']:.1f}", f"{row['before_images_per_s']:.1f}", _ratio(row),
            f"{row['peak_mib']:.0f}", f"{row['quarter_peak_mib']:.0f}", f"{row['before_peak_mib']:.0f}",
        )
        for images, row in rows.items()
    )  # fmt: skip
    one = next(iter(rows.values()))
    return [
        f"Whole commands of {one['files']:,} files and {one['rounds']} rounds, {one['engine']}: Python's start and "
        "opening the model are part of the time. Wanted: ≥ 2.",
        "",
        *table(head, cells),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where model and images are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", nargs="+", choices=("share", "memory", "ray", "predict"), metavar="WHAT")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="an earlier checkout of lifedeploy")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=1_000, help="of predict")
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args(arguments)
    if cores() != 2:
        print(f"note: two cores are meant, and {cores()} are here", file=sys.stderr)
    bench = Bench(given.work.absolute())
    bench.prepare(given.images, given.files)
    results = Results(given.out / "results.json")
    command = command_line(
        "scoring.speed", arguments, {"DIR": given.work, "CHECKOUT": given.before or "CHECKOUT", "OUT": given.out}
    )
    for what in given.only or ("share", "memory", "ray", "predict"):
        if what == "predict" and given.before is None:
            continue
        measured = {
            "share": lambda: share(bench, given.rounds),
            "memory": lambda: memory(bench),
            "ray": lambda: ray(bench, given.rounds),
            "predict": lambda: predict(bench, given.before.absolute(), given.rounds, given.files),
        }[what]()
        results.keep(what, measured, command)
        (given.out / "RESULTS.md").write_text(markdown(results.read()), encoding="utf-8")


if __name__ == "__main__":
    main()
