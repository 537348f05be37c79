"""The systems of the literature in compiled engines, against each other; writes ``RESULTS.md`` and ``results.json``
beside this file, and a picture per comparison.

    python -m benchmarks.methods.systems --work DIR [--backbones deit_s,deit_b] [--engines NAME:PRECISION,…]
                                         [--at keep-rate,macs] [--without METHOD,…] [--batches 1,8,32]
                                         [--budget SECONDS] [--duels] [--kernels]

Keep rate 0.7, random weights (speed does not depend on them): all methods by ``lifedeploy compare``, at the same keep
rate and at the same GMACs, in latency and throughput mode, at batch 1, 8 and 32. ``--duels``: also life against single
methods at their own GMACs, in long contests. ``--kernels``: also count what TensorRT for RTX launches for each method,
which needs no GPU. What ``compare`` has measured is in ``DIR/BACKBONE/artifacts``, and a comparison that is over in
``DIR``, so that the same command goes on where it was ended. DeiT-B's engines are removed once they were compared, else
they take 50 GB; in FP32 fourteen of them at batch 32 do not fit into 24 GiB of memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BF16,
    Results,
    command_line,
    interval,
    lifedeploy,
    new_parser,
    number,
    read_json,
    source,
    table,
)
from lifedeploy import methods
from lifedeploy.artifact import Artifact
from lifedeploy.data.samples import photo_folder
from lifedeploy.engines.base import BuildOptions
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.files import write_json
from lifedeploy.machine import identity
from lifedeploy.text import chained
from lifedeploy.typed import COMPARED_AT

HERE = Path(__file__).parent
BACKBONES = ("deit_s", "deit_b")
KEEP_RATE = "0.7"
METHODS = ("dense", "first-k", *methods.names(methods.SLIMMED))
ENGINES = ("onnxruntime:fp32", "openvino:bf16" if BF16 else "openvino:fp32", "openvino:int8")
SAME = COMPARED_AT[:2]
BATCHES = "1,8,32"
# Life at the GMACs of others, and batch sizes: methods that are brought to the first one's.
DUELS = ((("tome", "life"), "8"), (("evo-vit", "life"), "8"), (("life", "evit", "topk", "dynamicvit"), "1"))
DUEL_BUDGET = "60"
PACKAGES = ("lifedeploy", "torch", "timm", "onnx", "onnxruntime", "openvino", "tensorrt-rtx")


def whole_memory() -> bool:
    """Drop the file cache and compact memory, if this process may: else what is opened first is slower than what is
    opened last (benchmarks/README.md)."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        Path("/proc/sys/vm/compact_memory").write_text("1", encoding="ascii")
    except OSError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One comparison."""

    backbone: str
    engine: str
    at: str
    methods: Sequence[str] = METHODS
    modes: Sequence[str] = ("latency", "throughput")
    batches: str = BATCHES

    @property
    def is_duel(self) -> bool:
        """Whether it is of few methods, without the baseline that each of the others has."""
        return methods.baseline().name not in self.methods

    @property
    def name(self) -> str:
        """Of its files."""
        duel = f"-{'-'.join(self.methods)}" if self.is_duel else ""
        return f"{self.backbone}-{self.engine.replace(':', '-')}-{self.at}{duel}"


def compared(work: Path, wanted: Wanted, budget: str, command: str) -> dict[str, Any]:
    """One comparison, with the ``command`` that measured it; of one that is over what it wrote."""
    written, folder = work / f"{wanted.name}.json", work / wanted.backbone
    if written.is_file():
        return read_json(written)
    folder.mkdir(parents=True, exist_ok=True)
    whole = whole_memory()
    more = ("--calibration-data", photo_folder()) if wanted.engine.endswith(":int8") else ()
    modes = (word for mode in wanted.modes for word in ("--mode", mode))
    lifedeploy(
        *("compare", "--backbone", wanted.backbone, "--methods", ",".join(wanted.methods), "--rho", KEEP_RATE),
        *("--at", wanted.at, "--engine", wanted.engine, *modes, "--batch", wanted.batches, "--budget", budget),
        *("--weights", "random", "--json", "report.json", "--plot", work / f"{wanted.name}.png", *more),
        folder=folder,
    )
    report = read_json(folder / "report.json") | {"whole_memory": whole, "by": command}
    write_json(written, report)
    return report


def without_engines(folder: Path, engine: str) -> None:
    """Remove what was built of exports, which is made again where it is needed."""
    for built in folder.glob(f"artifacts/*/{engine.replace(':', '-')}"):
        shutil.rmtree(built)


def kernels(work: Path) -> list[dict[str, Any]]:
    """What TensorRT for RTX launches for each method, FP16, a profile of batches 1, 8 and 128."""
    from benchmarks.tensorrt.kernels import built

    rows: list[dict[str, Any]] = []
    exports: dict[str, Artifact] = {}
    for path in sorted((work / BACKBONES[0] / "artifacts").glob("*/model.json")):
        export = Artifact.read(path)
        if export.manifest.spec.schedule.keep_rate in (None, float(KEEP_RATE)):
            exports[export.method] = export
    for export in sorted(exports.values(), key=lambda export: METHODS.index(export.method)):
        dense = export.sibling(methods.baseline().name)
        assert dense is not None  # every export has one
        for graph in (dense, export) if not rows else (export,):
            form = TensorRT.form("fp16", BuildOptions())
            rows.append({"method": graph.method} | built(graph.folder, graph.path.stem, form))
            print(rows[-1], flush=True)
    return rows


def markdown(content: Mapping[str, Any]) -> str:
    """All results as a page: a section per processor."""
    lines = [
        "# The systems against each other",
        "",
        f"Keep rate {KEEP_RATE}, random weights: speeds are valid, accuracy there is none. All methods of one",
        "engine took turns in one contest per mode and batch size. *Speed-up* is over dense, median of the rounds with",
        "its 95 % interval (with fewer than 6 rounds it is their whole range, which covers less: 75 % with 3);",
        "*efficiency* is that over the ratio of the GMACs; *of life* is img/s over life's in the same rounds: below 1,",
        "life is faster. *first-k* keeps as many tokens as life, and looks at none. Where *plain*, timm's own model,",
        "takes part, the last block of all others but Evo-ViT computes prefix tokens alone, dense included, and *over",
        "plain* is over that model; elsewhere all compute all of it. What it means: [FINDINGS.md](FINDINGS.md).",
        "",
    ]
    compared: Mapping[str, Any] = content.get("compare", {})
    everything = [(name, report) for parts in compared.values() for name, report in parts["result"].items()]
    for processor, parts in compared.items():
        lines += [f"## {processor}", ""]
        for name, report in parts["result"].items():
            # A picture has the name of its comparison: it is of the processor that was measured last.
            last = max(other["date"] for known, other in everything if known == name)
            lines += _comparison(name, report, pictured=report["date"] == last)
    counted: Mapping[str, Any] = content.get("kernels", {})
    for entry in counted.values():
        lines += _kernels(entry)
    return "\n".join(lines).rstrip() + "\n"


def _comparison(name: str, report: Mapping[str, Any], *, pictured: bool) -> list[str]:
    backbone, engine, at, *duel = name.split(" ")
    like = report["like"]
    told = {"keep-rate": "each at keep rate 0.7 or its own budget", "macs": f"all at the GMACs of {like}"}[at]
    notes = "File cache dropped and memory compacted before. " if report["whole_memory"] else ""
    models = {model["method"]: model for model in report["models"]}
    among = f", {' and '.join(name for name in models if name != 'dense')} alone" if duel else ""
    missing = ", ".join(name for name in METHODS if name not in models and not duel)
    notes += f"Without {missing} ([why](FINDINGS.md)). " if missing else ""
    lines = [f"### {backbone}, {engine}, {told}{among}", "", notes + source(report, *PACKAGES), ""]
    for mode in ("latency", "throughput"):
        rows = [row for row in report["rows"] if row["mode"] == mode]
        if not rows:
            continue
        batches = list(dict.fromkeys(row["batch"] for row in rows))
        streams = rows[0]["streams"]
        head = "method | tokens | GMACs"
        plain = any(row["base"] and row["base"].endswith(" plain") for row in rows)
        for batch in batches:
            head += f" | batch {batch}: img/s | speed-up | efficiency{' | over plain' * plain} | of {like}"
        cells = []
        for method, model in models.items():
            cell = [named(method, model["title"]), chained(model["tokens"]), f"{model['gmacs']:.2f}"]
            for batch in batches:
                row = next(row for row in rows if (row["method"], row["batch"]) == (method, batch))
                cell += _cells(row, plain=plain)
            cells.append(cell)
        flight = f"{streams} requests in flight" if mode == "throughput" else "one request at a time"
        rounds = ", ".join(str(next(row["rounds"] for row in rows if row["batch"] == batch)) for batch in batches)
        lines += [f"{mode.capitalize()}, {flight}; rounds: {rounds}.", "", *table(head, cells), ""]
    picture = f"{backbone}-{engine.replace(':', '-')}-{at}.png"
    return [*lines, f"![img/s of every method]({picture})", ""] if pictured and not duel else lines


def named(method: str, title: str) -> str:
    """A method in a table, with its title where its name alone would promise more than there is."""
    return f"{method} ({title})" if methods.get(method).shown_by_title else method


def _cells(row: Mapping[str, Any], *, plain: bool) -> list[str]:
    drops = methods.role_of(row["method"]) != methods.BASELINE
    return [
        number(row["images_per_s"], ".3g"),
        interval(row, "speedup", 2) if drops else "–",
        number(row["efficiency"], ".0%") if drops else "–",
        *([interval(row, "over_base", 2) if row["over_base"] != 1 else "–"] if plain else []),
        interval(row, "over_like"),
    ]


def _kernels(entry: Mapping[str, Any]) -> list[str]:
    rows = entry["result"]
    dense = rows[0]["kernels"]
    cells: Iterable[Iterable[object]] = (
        (row["method"], row["attention"], row["topk"], row["kernels"], f"{row['kernels'] - dense:+d}") for row in rows
    )
    return [
        "## Kernels in a TensorRT plan",
        "",
        "FP16, a profile of batches 1, 8 and 128, built by TensorRT for RTX on a machine without a GPU: counted, not",
        "timed.",
        "",
        source(entry, *PACKAGES),
        "",
        *table("method | attention fused | TopK | kernels | over dense", cells),
        "",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--at", default=",".join(SAME))
    parser.add_argument("--without", default="", help="methods to leave out: that do not pass the gate, say")
    parser.add_argument("--batches", default=BATCHES)
    parser.add_argument("--budget", default="10")
    parser.add_argument("--duels", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    given = parser.parse_args(arguments)
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    line = command_line("methods.systems", arguments, {"DIR": given.work})
    results = Results(HERE / "results.json")
    left = tuple(name for name in METHODS if name not in given.without.split(","))

    def keep(wanted: Wanted, budget: str, part: str) -> None:
        report = compared(work, wanted, budget, line)
        kept = {name: report[name] for name in ("machine", "rows", "models", "contests", "whole_memory", "like")}
        results.keep("compare", kept | {"command": report["by"], "date": report["created"]}, line, part=part)
        (HERE / "RESULTS.md").write_text(markdown(results.read()), encoding="utf-8")

    for backbone in given.backbones.split(","):
        for engine in given.engines.split(","):
            for at in given.at.split(","):
                wanted = Wanted(backbone=backbone, engine=engine, at=at, methods=left, batches=given.batches)
                keep(wanted, given.budget, f"{backbone} {engine} {at}")
                shutil.copy(work / f"{wanted.name}.png", HERE)
            if backbone != BACKBONES[0]:
                without_engines(work / backbone, engine)
    for names, batches in DUELS if given.duels else ():
        duel = Wanted(
            backbone=BACKBONES[0], engine=ENGINES[1], at="macs", methods=names, modes=("latency",), batches=batches
        )
        keep(duel, DUEL_BUDGET, f"{duel.backbone} {duel.engine} macs {'-'.join(names)}")
    if given.kernels:
        results.keep("kernels", kernels(work), line)
        (HERE / "RESULTS.md").write_text(markdown(results.read()), encoding="utf-8")
    print(f"of {identity()}: {HERE / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
