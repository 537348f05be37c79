"""The same graph in other forms, as TensorRT compiles them: kernels counted anywhere, times where the engine runs.

    python -m benchmarks.gpu.variants MODEL.onnx [--out DIR] [--engine tensorrt-rtx,tensorrt] [--batches 128,8,1]

MODEL is an order-once export with its manifest (``lifedeploy export``). One thing at a time is changed of the form that
is deployed: the Gather, the precision of the ranking, the form of attention. Each variant is first held against the
original in ONNX Runtime, in FP32 (``rewrites.py``); what it computes in FP16 is told from an emulation, and where the
engine runs, from the engine itself, before it is timed. ``--dry`` times the emulated graphs in ONNX Runtime instead,
where there is no GPU: that says that the script works, and nothing about a GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import command_line, interval, new_parser, number, publish, record_of, source, table
from benchmarks.gpu.rewrites import DEPLOYED, VARIANTS, Answer, order_among, prove, require_same, write
from lifedeploy.artifact import Artifact
from lifedeploy.engines import registry
from lifedeploy.engines.base import BuildOptions, Engine, EngineOptions
from lifedeploy.engines.lanes import DeviceLane, Lane, WithoutCopies
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.engines.tensorrt import fusion
from lifedeploy.engines.tensorrt.builder import build_plan
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.errors import EngineError, ParityError
from lifedeploy.evaluation.parity import TOLERANCES
from lifedeploy.exporters.forms import emulated
from lifedeploy.machine import gpu_state

HERE = Path(__file__).parent
ENGINES = ("tensorrt-rtx", "tensorrt")
PROOFS = "error, FP32 | error, emulated | kept tokens, emulated"
LEAST_S = 5.0  # a contest that has less is not begun
DRY = "**Dry run: times are of emulated graphs in ONNX Runtime on a CPU. They mean nothing.**"


def built(engine: type[TensorRT], graph: Path, path: Path, batch: tuple[int, int, int]) -> dict[str, Any]:
    """Build a plan and read off it what it became."""
    began = time.perf_counter()
    plan = build_plan(engine.library(), graph, BuildOptions(batch=batch))
    took = time.perf_counter() - began
    path.write_bytes(plan.data)
    if engine.ahead_of_time:
        kernels = fusion.of_plan(plan.data).record
    else:
        with engine(path, EngineOptions(trust=True)) as opened:
            kernels = opened.inspect().record
    row: dict[str, Any] = {"attention": kernels.attention, "topk": kernels.topk}
    row |= {"kernels": sum(kernels.launches.values()), "seconds_to_build": round(took, 1)}
    return row | {"mib": round(len(plan.data) / 1024**2, 1), "launches": kernels.launches}


def emulation_of(graph: Path) -> Path:
    """The graph beside it that computes the same in FP32."""
    target = graph.with_suffix(".emulated.onnx")
    emulated(graph, target)
    return target


def contest(
    engines: Mapping[str, Engine], batch: int, budget_s: float, counts: Sequence[int], half: str
) -> dict[str, dict[str, Any]]:
    """Time open engines against the first, request by request without copies, after their answers were compared.

    An engine that has no lane for the batch, or answers something else, gets no time but the reason.

    Raises:
        EngineError: the first has no lane: there is nothing to hold the others against.
    """
    tolerance, first = TOLERANCES[half], next(iter(engines))
    facts: dict[str, dict[str, Any]] = {name: {"batch": batch} for name in engines}
    lanes: dict[str, Lane] = {}
    for name, engine in engines.items():
        try:
            lanes[name] = engine.lane(batch)
        except EngineError as error:
            if name == first:
                raise
            facts[name]["reason"] = error.message
    answers: dict[str, Answer] = {}
    for name, lane in lanes.items():
        generator = np.random.default_rng(1)  # the same images for all
        for array in lane.inputs.values():
            array[...] = generator.standard_normal(array.shape, dtype=np.float32)
        lane.infer()
        order = order_among(lane.outputs)
        logits = next(value for key, value in lane.outputs.items() if key != order)
        answers[name] = logits.astype(np.float32), lane.outputs[order].copy()
        allowed = {"tolerance": tolerance.relative, "least": tolerance.overlap}
        try:
            facts[name] |= require_same(answers[first], answers[name], name, counts=counts, **allowed)
        except ParityError as error:
            facts[name]["reason"] = str(error)
    racing = {
        name: WithoutCopies(lane) if isinstance(lane, DeviceLane) else lane
        for name, lane in lanes.items()
        if "reason" not in facts[name]
    }
    for name, row in common.contest(racing, batch, budget_s, half_width=0.003).items():
        facts[name] |= row
    return facts


class Run:
    """One engine after the other, with a clock that ends the timing, and files that are written after each step."""

    def __init__(self, source: Path, out: Path, minutes: float, half: str, command: str, *, dry: bool = False) -> None:
        self.source, self.out, self.half, self.dry = source, out, half, dry
        manifest = Artifact.read(source.with_suffix(".json")).manifest
        self.spec, self.taps = manifest.spec, manifest.kept.taps
        self.ends = time.monotonic() + 60 * minutes
        self.record: dict[str, Any] = {"rows": [], "not_timed": {}, "dry": dry} | record_of(command)
        self.record |= {"backbone": self.spec.backbone, "precision": half, "weights": self.spec.provenance.weights}
        self.record |= {"tokens": list(self.spec.schedule.tokens), "gpu_state": {"before": gpu_state()}}

    def engine(self, name: str, batches: Sequence[int], facts: Mapping[str, dict[str, Any]], work: Path) -> None:
        """Build all variants with one engine, then time them where it runs."""
        kind = registry.get(name)
        assert issubclass(kind, TensorRT)  # the names come from ENGINES
        profile = min(batches), sorted(batches)[len(batches) // 2], max(batches)
        plans: dict[str, Path] = {}
        rows: dict[str, dict[str, Any]] = {}
        for variant, form in VARIANTS.items():
            print(f"[{self.ends - time.monotonic():4.0f} s left] {name}: {variant}", flush=True)
            graph = work / f"{variant}.onnx"
            path = graph.with_suffix(f".{name}.plan")
            write(self.source, form, self.half, graph)
            row = {"engine": name, "variant": variant, "batch": list(profile), "layers": self.spec.schedule.depth}
            try:
                row |= built(kind, graph, path, profile)
            except EngineError as error:  # of one form: the others are worth knowing
                self.record["not_timed"][f"{name}, {variant}"] = f"not built: {error}"
                continue
            plans[variant] = path
            rows[variant] = row | facts[variant] | {"times": []}
            self.record["rows"].append(rows[variant])
            self.write()
        if DEPLOYED not in plans:
            return  # and nothing to hold the others against
        runs = registry.examine(kind)
        if not runs.ok and not self.dry:
            self.record["not_timed"][name] = f"not run on a GPU: {runs.reason}"
            return
        options = EngineOptions(precision=self.half, trust=True, taps=self.taps)
        timed_kind: type[Engine] = kind
        if self.dry:
            timed_kind, options = OnnxRuntime, EngineOptions(taps=self.taps)
            plans = {variant: emulation_of(path.with_name(f"{variant}.onnx")) for variant, path in plans.items()}
        try:
            with ExitStack() as stack:
                engines = {name: stack.enter_context(timed_kind(path, options)) for name, path in plans.items()}
                for index, batch in enumerate(batches):
                    share = (self.ends - time.monotonic()) / (len(batches) - index)
                    if share < LEAST_S:
                        self.record["not_timed"][name] = f"no time for batch {', '.join(map(str, batches[index:]))}"
                        break
                    print(f"[{self.ends - time.monotonic():4.0f} s left] {name}: batch {batch}", flush=True)
                    budget_s = min(share, 0.3 if self.dry else 20)
                    timed = contest(engines, batch, budget_s, self.spec.schedule.counts, self.half)
                    for variant, times in timed.items():
                        rows[variant]["times"].append(times)
                    self.write()
        except EngineError as error:  # a plan that this GPU does not take: what was counted is worth keeping
            self.record["not_timed"][name] = str(error)

    def write(self) -> None:
        """What there is so far."""
        self.record["gpu_state"]["after"] = gpu_state()
        publish(self.out, "variants", self.record, markdown(self.record))


def markdown(record: Mapping[str, Any]) -> str:
    """The plans, the times, and the kernels in which they differ."""
    rows = record["rows"]
    lines = [
        "# Other forms of the graph, as TensorRT compiles them",
        "",
        *([DRY, ""] if record["dry"] else []),
        source(record, "tensorrt", "tensorrt-rtx", "onnx", "onnxruntime"),
        "",
        f"{record['backbone']} ({record['weights']} weights), {record['precision'].upper()}, ordered once, patches "
        f"{' → '.join(map(str, dict.fromkeys(record['tokens'])))}. Deployed are",
        "a flat Gather, the ranking in FP32 and attention as one operator; each variant changes one of them. All equal",
        "the original in FP32 in ONNX Runtime. Kept tokens and the largest error are against the deployed form, both",
        "emulated in half precision: noise as images. Kernels are all launches of the plan.",
        "",
    ]
    cells = []
    for row in rows:
        plan = (row["engine"], row["variant"], row["kernels"], f"{row['attention']} of {row['layers']}", row["topk"])
        cells.append((*plan, row["seconds_to_build"], row["mib"], *proofs(row)))
    lines += table(f"engine | variant | kernels | attention fused | TopK | build, s | MiB | {PROOFS}", cells)
    lines += ["", *times_of(record, "the deployed form's"), "", "## Kernels that differ from the deployed form's", ""]
    deployed = {row["engine"]: row for row in rows if row["variant"] == DEPLOYED}
    for row in rows:
        base = deployed.get(row["engine"])
        if base is None or row is base:
            continue
        gone = differing(base["launches"], row["launches"])
        come = differing(row["launches"], base["launches"])
        changes = f"{gone or 'nothing'} became {come or 'nothing'}" if gone or come else "none"
        lines.append(f"- {row['engine']}, {row['variant']}: {changes}")
    return "\n".join(lines) + "\n"


def proofs(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of the columns ``PROOFS``."""
    return number(row["error_fp32"], ".1e"), number(row["error_emulated"], ".1e"), number(row["kept_emulated"], ".1%")


def times_of(record: Mapping[str, Any], reference: str) -> list[str]:
    """The section of times, the largest batch first, and why some have none."""
    timed = [(times["batch"], row, times) for row in record["rows"] for times in row["times"]]
    lines = ["## Time", ""]
    if timed:
        lines += [f"Without copies. Ratio: {reference} time over the variant's; above 1 is faster.", ""]
        cells = [_time(row, times) for _, row, times in sorted(timed, key=lambda entry: -entry[0])]
        lines += table("engine | batch | variant | ms | ratio | kept tokens | error", cells)
    reasons = [f"- {name}: not timed: {reason}" for name, reason in record["not_timed"].items()]
    return [*lines, *([""] if timed and reasons else []), *reasons]


def _time(row: Mapping[str, Any], times: Mapping[str, Any]) -> tuple[object, ...]:
    start = (row["engine"], times["batch"], row["variant"])
    if "reason" in times:
        return *start, "–", f"not timed: {times['reason']}", "–", "–"
    return (
        *start,
        f"{times['ms']:.3f}",
        interval(times),
        number(times["kept"], ".1%"),
        number(times["error"], ".1e"),
    )


def differing(launches: Mapping[str, int], other: Mapping[str, int]) -> str:
    """Launches that there are more of than in another plan."""
    more = {name: count - other.get(name, 0) for name, count in launches.items() if count > other.get(name, 0)}
    return ", ".join(f"{count} × `{name}`" for name, count in more.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, prove, build, time."""
    parser = new_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--engine", default="", help=f"default: those of {', '.join(ENGINES)} that can build here")
    parser.add_argument("--batches", default="128,8,1")
    parser.add_argument("--dry", action="store_true", help="time emulated graphs on this CPU, to test this script")
    given = parser.parse_args(arguments)
    if given.dry and given.out.resolve() == HERE:
        raise SystemExit(f"a dry run does not write to {HERE}, where results are; name another folder with --out")
    able = {name: registry.get(name).can_build() for name in ENGINES}
    names = given.engine.split(",") if given.engine else [name for name in ENGINES if able[name].ok]
    if not names or not set(names) <= set(ENGINES):
        reasons = "; ".join(f"{name}: {able[name].reason}" for name in ENGINES)
        raise SystemExit(f"engines {given.engine or 'that can build here'}: none of {', '.join(ENGINES)} ({reasons})")
    command = command_line("gpu.variants", arguments, {"MODEL.onnx": given.model})
    run = Run(given.model, given.out, given.minutes, "fp16", command, dry=given.dry)
    with tempfile.TemporaryDirectory() as work:
        facts = prove(given.model, run.spec, Path(work), run.half, VARIANTS)
        for name in names:
            run.engine(name, [int(batch) for batch in given.batches.split(",")], facts, Path(work))
            run.write()
    print((given.out / "VARIANTS.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
