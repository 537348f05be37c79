"""The same graph in other forms, as TensorRT compiles them: kernels counted anywhere, times where the engine runs.

    python benchmarks/gpu/variants.py MODEL.onnx [--out DIR] [--engine tensorrt-rtx,tensorrt] [--batches 128,8,1]

MODEL is an order-once export with its manifest (``lifedeploy export``). One thing at a time is changed of the form that
is deployed: the Gather, the precision of the ranking, the form of attention. Each variant is first held against the
original in ONNX Runtime, in FP32 (``rewrites.py``); what it computes in FP16 is told from an emulation, and where the
engine runs, from the engine itself, before it is timed. ``--dry`` times the emulated graphs in ONNX Runtime instead,
where there is no GPU: that says that the script works, and nothing about a GPU.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rewrites import DEPLOYED, VARIANTS, Answer, order_among, prove, require_same, write

from lifedeploy.artifact import Artifact
from lifedeploy.bench.measure import Contender, Stop, measure
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
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe, gpu_state

HERE = Path(__file__).parent
ENGINES = ("tensorrt-rtx", "tensorrt")
LEAST_S = 5.0  # a contest that has less is not begun
DRY = "**Dry run: times are of emulated graphs in ONNX Runtime on a CPU. They mean nothing.**"


def built(engine: type[TensorRT], graph: Path, path: Path, batch: tuple[int, int, int]) -> dict[str, Any]:
    """Build a plan and read off it what it became."""
    began = time.perf_counter()
    plan = build_plan(engine.flavour.load(), graph, BuildOptions(batch=batch))
    took = time.perf_counter() - began
    path.write_bytes(plan.data)
    if engine.flavour.ahead_of_time:
        found = fusion.of_plan(plan.data)
    else:
        with engine(path, EngineOptions(trust=True)) as opened:
            found = opened.inspect()
    row = {"attention": found.attention, "topk": found.topk, "kernels": sum(found.launches.values())}
    row |= {"seconds_to_build": round(took, 1), "mib": round(len(plan.data) / 1024**2, 1)}
    return row | {"launches": found.launches}


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
    contenders = []
    for name, lane in lanes.items():
        if "reason" not in facts[name]:
            own = WithoutCopies(lane) if isinstance(lane, DeviceLane) else lane
            contenders.append(Contender(name, batch, (own,)))
    samples = measure(contenders, Stop(budget_s, half_width=0.003))
    for contender in contenders:
        against = samples.ratio(contender.name, first)
        turns = [1000 * turn.seconds * batch / turn.images for turn in samples.rounds[contender.name]]
        facts[contender.name] |= {"ms": float(np.median(turns)), "ratio": against.median, "rounds": samples.count}
        facts[contender.name] |= {"ratio_low": against.low, "ratio_high": against.high}
    return facts


class Run:
    """One engine after the other, with a clock that ends the timing, and files that are written after each step."""

    def __init__(self, source: Path, out: Path, minutes: float, half: str, command: str, *, dry: bool = False) -> None:
        self.source, self.out, self.half, self.dry = source, out, half, dry
        manifest = Artifact.read(source.with_suffix(".json")).manifest
        self.spec, self.taps = manifest.spec, manifest.kept.taps
        self.ends = time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {"rows": [], "not_timed": {}, "machine": describe(), "date": now()}
        self.found |= {"dry": dry, "command": command, "backbone": self.spec.backbone, "precision": half}
        self.found |= {"weights": self.spec.provenance.weights, "tokens": list(self.spec.schedule.tokens)}
        self.found |= {"gpu_state": {"before": gpu_state()}}

    def engine(self, name: str, batches: Sequence[int], facts: Mapping[str, Mapping[str, Any]], work: Path) -> None:
        """Build all variants with one engine, then time them where it runs."""
        kind = registry.get(name)
        assert issubclass(kind, TensorRT)  # the names come from ENGINES
        profile = min(batches), sorted(batches)[len(batches) // 2], max(batches)
        plans, rows = {}, {}
        for variant, form in VARIANTS.items():
            print(f"[{self.ends - time.monotonic():4.0f} s left] {name}: {variant}", flush=True)
            graph = work / f"{variant}.onnx"
            path = graph.with_suffix(f".{name}.plan")
            write(self.source, form, self.half, graph)
            row = {"engine": name, "variant": variant, "batch": list(profile), "layers": self.spec.schedule.depth}
            try:
                row |= built(kind, graph, path, profile)
            except EngineError as error:  # of one form: the others are worth knowing
                self.found["not_timed"][f"{name}, {variant}"] = f"not built: {error}"
                continue
            plans[variant] = path
            rows[variant] = row | facts[variant] | {"times": []}
            self.found["rows"].append(rows[variant])
            self.write()
        if DEPLOYED not in plans:
            return  # and nothing to hold the others against
        runs = registry.examine(kind)
        if not runs.ok and not self.dry:
            self.found["not_timed"][name] = f"not run on a GPU: {runs.reason}"
            return
        options = EngineOptions(precision=self.half, trust=True, taps=self.taps)
        timed_kind: type[Engine] = kind
        if self.dry:
            timed_kind, options = OnnxRuntime, EngineOptions(taps=self.taps)
            plans = {one: emulation_of(path.with_name(f"{one}.onnx")) for one, path in plans.items()}
        try:
            with ExitStack() as stack:
                engines = {one: stack.enter_context(timed_kind(path, options)) for one, path in plans.items()}
                for number, batch in enumerate(batches):
                    share = (self.ends - time.monotonic()) / (len(batches) - number)
                    if share < LEAST_S:
                        self.found["not_timed"][name] = f"no time for batch {', '.join(map(str, batches[number:]))}"
                        break
                    print(f"[{self.ends - time.monotonic():4.0f} s left] {name}: batch {batch}", flush=True)
                    timed = contest(
                        engines, batch, min(share, 0.3 if self.dry else 20), self.spec.schedule.counts, self.half
                    )
                    for one, columns in timed.items():
                        rows[one]["times"].append(columns)
                    self.write()
        except EngineError as error:  # a plan that this GPU does not take: what was counted is worth keeping
            self.found["not_timed"][name] = str(error)

    def write(self) -> None:
        """What there is so far."""
        self.found["gpu_state"]["after"] = gpu_state()
        write_json(self.out / "variants.json", self.found)
        (self.out / "VARIANTS.md").write_text(table(self.found), encoding="utf-8")


def table(found: Mapping[str, Any]) -> str:
    """As Markdown."""
    machine = found["machine"]
    names = ("tensorrt", "tensorrt-rtx", "onnx", "onnxruntime")
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in names if name in machine["versions"])
    timed = sorted({times["batch"] for row in found["rows"] for times in row["times"]}, reverse=True)
    lines = [
        "# Other forms of the graph, as TensorRT compiles them",
        "",
        *([DRY, ""] if found["dry"] else []),
        f"Command: `{found['command']}`;",
        f"{', '.join(machine['gpu']) or 'no GPU'}, {versions}, {machine['cpu']}, {machine['cores']} cores; "
        f"{found['date'][:10]}.",
        "",
        f"{found['backbone']} ({found['weights']} weights), {found['precision'].upper()}, ordered once, patches "
        f"{' → '.join(map(str, dict.fromkeys(found['tokens'])))}. Deployed are",
        "a flat Gather, the ranking in FP32 and attention as one operator; each variant changes one of them. All equal",
        "the original in FP32 in ONNX Runtime. Kept tokens and the largest error are against the deployed form, both",
        "emulated in half precision: noise as images. Kernels are all launches of the plan.",
        "",
        "| engine | variant | kernels | attention fused | TopK | build, s | MiB | error, FP32 | error, emulated "
        "| kept tokens, emulated |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['engine']} | {row['variant']} | {row['kernels']} | {row['attention']} of {row['layers']} "
            f"| {row['topk']} | {row['seconds_to_build']} | {row['mib']} | {small(row['error_fp32'])} "
            f"| {small(row['error_emulated'])} | {100 * row['kept_emulated']:.1f} % |"
        )
    lines += ["", "## Time", ""]
    if timed:
        lines += ["Without copies. Ratio: of the deployed form's time over the variant's; above 1 is faster.", ""]
        lines += ["| engine | batch | variant | ms | ratio | kept tokens | error |", "|---|---|---|---|---|---|---|"]
        for batch in timed:
            lines += [
                one_time(row, times) for row in found["rows"] for times in row["times"] if times["batch"] == batch
            ]
        lines.append("")
    lines += [f"- {name}: {reason}" for name, reason in found["not_timed"].items()]
    lines += ["", "## Kernels that differ from the deployed form's", ""]
    for row in found["rows"]:
        deployed = [one for one in found["rows"] if (one["engine"], one["variant"]) == (row["engine"], DEPLOYED)]
        if not deployed or row is deployed[0]:
            continue
        base = deployed[0]["launches"]
        gone, come = differing(base, row["launches"]), differing(row["launches"], base)
        changes = f"{gone or 'nothing'} became {come or 'nothing'}" if gone or come else "none"
        lines.append(f"- {row['engine']}, {row['variant']}: {changes}")
    return "\n".join(lines) + "\n"


def one_time(row: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """One line of the table of times."""
    start = f"| {row['engine']} | {times['batch']} | {row['variant']} "
    if "reason" in times:
        return f"{start}| – | not timed: {times['reason']} | – | – |"
    ratio = f"{times['ratio']:.3f} [{times['ratio_low']:.3f}, {times['ratio_high']:.3f}]"
    return f"{start}| {times['ms']:.3f} | {ratio} | {100 * times['kept']:.1f} % | {small(times['error'])} |"


def small(value: float | None) -> str:
    """A small number; a dash where nothing could be compared."""
    return "–" if value is None else f"{value:.1e}"


def differing(one: Mapping[str, int], other: Mapping[str, int]) -> str:
    """Launches that ``one`` has more of than ``other``."""
    more = {name: count - other.get(name, 0) for name, count in one.items() if count > other.get(name, 0)}
    return ", ".join(f"{count} × `{name}`" for name, count in more.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, prove, build, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--engine", default="", help=f"default: those of {', '.join(ENGINES)} that can build here")
    parser.add_argument("--batches", default="128,8,1")
    parser.add_argument("--dry", action="store_true", help="time emulated graphs on this CPU, to test this script")
    given = parser.parse_args(arguments)
    if given.dry and given.out.resolve() == HERE:
        raise SystemExit(f"a dry run does not write to {HERE}, where results are; name another folder with --out")
    names = given.engine.split(",") if given.engine else [one for one in ENGINES if registry.get(one).can_build().ok]
    if not names or not set(names) <= set(ENGINES):
        reasons = "; ".join(f"{one}: {registry.get(one).can_build().reason}" for one in ENGINES)
        raise SystemExit(f"engines {given.engine or 'that can build here'}: none of {', '.join(ENGINES)} ({reasons})")
    given.out.mkdir(parents=True, exist_ok=True)
    options = sys.argv[1:] if arguments is None else list(arguments)
    shown = ["MODEL.onnx" if one == str(given.model) else one for one in options]
    command = f"python benchmarks/gpu/variants.py {shlex.join(shown)}"
    run = Run(given.model, given.out, given.minutes, "fp16", command, dry=given.dry)
    with tempfile.TemporaryDirectory() as work:
        facts = prove(given.model, run.spec, Path(work), run.half)
        for name in names:
            run.engine(name, [int(batch) for batch in given.batches.split(",")], facts, Path(work))
            run.write()
    print((given.out / "VARIANTS.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
