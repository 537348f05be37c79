"""What the last block for prefix tokens alone gives on CPU runtimes, and INT8 over FP32: ``LAST_BLOCK.md`` and
``last_block.json`` beside this file, kept by processor.

    python -m benchmarks.cpu.last_block --work DIR [--budget SECONDS] [--batches 1,8]

DeiT-S at keep rate 0.7, random weights: speed does not depend on them. Exported twice, as usual and with
``--last-block full``, whose dense model is timm's own. All of a runtime's contenders take turns in one contest per mode
and batch size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import BF16, Results, command_line, interval, lifedeploy, new_parser, source, table
from lifedeploy.artifact import Artifact
from lifedeploy.bench.measure import Contender, Stop, measure
from lifedeploy.data.samples import photo_folder
from lifedeploy.engines.base import EngineOptions
from lifedeploy.files import now
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import of_artifact

HERE = Path(__file__).parent
FORMS = ("prefix", "full")  # what the last block computes
# Precision → parts that are calibrated for it, "" for those that are unless told otherwise.
CALIBRATED = {"int8": "", "int8-all": "linear,attention,embedding"}
BASE = "dense full fp32"  # timm's own model
STREAMS = {"latency": 1, "throughput": 2}
PACKAGES = ("lifedeploy", "torch", "timm", "onnx", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Entry:
    """A contender: a method, what its last block computes, and a precision or what is calibrated for one."""

    method: str
    form: str
    precision: str

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.method} {self.form} {self.precision}"

    @property
    def folder(self) -> str:
        """Its export's."""
        return self.form + ("-all" if self.precision == "int8-all" else "")

    @property
    def eight_bits(self) -> bool:
        """Whether its products are in 8 bits."""
        return self.precision in CALIBRATED


def entries(engine: str) -> tuple[Entry, ...]:
    """Who takes turns on a runtime: both forms in the fastest floating point, and INT8 as it is deployed."""
    half = BF16 if engine == "openvino" else ()
    floating = [Entry(method, form, it) for it in ("fp32", *half) for method in ("dense", "life") for form in FORMS]
    return (*floating, *(Entry(method, "prefix", it) for it in CALIBRATED for method in ("dense", "life")))


def built(work: Path, engine: str) -> None:
    """Export both forms, calibrate the usual one, and build what takes part."""
    for entry in {(entry.folder, entry.precision): entry for entry in entries(engine)}.values():
        export = work / entry.folder
        if not (export / "model.json").is_file():
            words = ("--backbone", "deit_s", "--rho", "0.7", "--weights", "random", "--last-block", entry.form)
            lifedeploy("export", *words, "-o", export)
        if entry.eight_bits:
            parts = CALIBRATED[entry.precision]
            more = ("--parts", parts) if parts else ()
            lifedeploy("calibrate", export, "--int8", "--data", photo_folder(), *more)
        lifedeploy("build-engine", export, "--engine", engine, f"--{_type(entry)}")


def _type(entry: Entry) -> str:
    """What an engine is built in."""
    return entry.precision.partition("-")[0]


def measured(work: Path, engine: str, mode: str, batch: int, budget_s: float) -> dict[str, Any]:
    """One contest: contender → img/s and its ratios over others in the same rounds; and the number of rounds."""
    with ExitStack() as stack:
        contenders = []
        for entry in entries(engine):
            folder = work / entry.folder / f"{engine}-{_type(entry)}"
            manifest = "model.json" if entry.method == "life" else f"{entry.method}.json"
            target = of_artifact(Artifact.read(folder / manifest))
            session = stack.enter_context(Session(target, options=EngineOptions(batch=batch, streams=STREAMS[mode])))
            lanes = tuple(session.lane(batch, number) for number in range(STREAMS[mode]))
            contenders.append(Contender(name=entry.name, batch=batch, lanes=lanes))
        samples = measure(contenders, Stop(budget_s=budget_s * len(contenders), half_width=0.005))
    rows: dict[str, Any] = {}
    for entry in entries(engine):
        rate = float(np.median([turn.images_per_s for turn in samples.turns[entry.name]]))
        rows[entry.name] = {"images_per_s": rate}
        for label, base in _bases(entry).items():
            ratio = samples.ratio(entry.name, base)
            rows[entry.name] |= {label: ratio.median, f"{label}_low": ratio.low, f"{label}_high": ratio.high}
    return {"rows": rows, "rounds": samples.count, "date": now()}


def _bases(entry: Entry) -> dict[str, str]:
    """What an entry is held against: itself with the whole last block, dense of its own form and precision, and timm's
    own model in FP32 and with the same rewrite."""
    bases = {"over_plain_fp32": BASE, "over_dense_fp32": "dense prefix fp32"}
    if not entry.eight_bits:
        bases["over_full"] = Entry(entry.method, "full", entry.precision).name
        bases["over_plain"] = Entry("dense", "full", entry.precision).name
    return bases | {"over_dense": Entry("dense", entry.form, entry.precision).name}


def markdown(content: Mapping[str, Any]) -> str:
    """All results as a page."""
    lines = [
        "# The last block for prefix tokens alone, and INT8 over FP32",
        "",
        "DeiT-S, keep rate 0.7, random weights. The last block computes prefix tokens alone, or all of them in full:",
        "dense in full is what timm computes. Ratios are medians of rounds in which all took turns in one process,",
        "with their 95 % interval. What MACs allow: dense 1.074 and life 1.034 over the same in full; life 1.412 over",
        "dense, 1.518 over timm's. *int8-all* has attention and the patch embedding in 8 bits too",
        "(`calibrate --int8 --parts linear,attention,embedding`).",
        "",
    ]
    head = "method | last block | precision | img/s | over its full block | over dense, same form and precision"
    head += " | over timm's, same precision | over dense FP32 | over timm's FP32"
    for key, by_processor in content.items():
        for entry in by_processor.values():
            for setting, found in entry["result"].items():
                origin = source(entry | {name: found[name] for name in ("command", "date")}, *PACKAGES)
                lines += [f"## {key}, {setting}", "", f"{found['rounds']} rounds. {origin}", ""]
                lines += [*table(head, (_cells(name, row) for name, row in found["rows"].items())), ""]
    return "\n".join(lines).rstrip() + "\n"


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    ratios = ("over_full", "over_dense", "over_plain", "over_dense_fp32", "over_plain_fp32")
    return [*name.split(), f"{row['images_per_s']:.3g}", *(_ratio(row, label) for label in ratios)]


def _ratio(row: Mapping[str, Any], label: str) -> str:
    """Of what is held against itself there is nothing to say."""
    return "–" if row.get(label) in (None, 1) else interval(row, label)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, build, measure, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for exports and engines")
    parser.add_argument("--budget", type=float, default=12.0, help="seconds per contender (default: 12)")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--engines", default="openvino,onnxruntime")
    given = parser.parse_args(arguments)
    results = Results(HERE / "last_block.json")
    line = command_line("cpu.last_block", arguments, {"DIR": given.work})
    for engine in given.engines.split(","):
        built(given.work.resolve(), engine)
        for mode in STREAMS:
            for batch in map(int, given.batches.split(",")):
                found = measured(given.work.resolve(), engine, mode, batch, given.budget)
                results.keep(engine, found | {"command": line}, line, part=f"{mode}, batch {batch}")
                (HERE / "LAST_BLOCK.md").write_text(markdown(results.read()), encoding="utf-8")
    print((HERE / "LAST_BLOCK.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
