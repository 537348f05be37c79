"""Which form of the drops is fastest, asked of PyTorch on one GPU: nothing but torch is needed beside this repository.

    python benchmarks/gpu/questions.py [--out DIR] [--minutes 2] [--batches 128,8,1] [--device cuda|cpu]

Four questions, of single operations and of a whole order-once pruned ViT (DeiT-S's size, random weights, FP16): how to
gather; whether the ranking needs FP32; whether tokens should be the first axis, where a prefix is contiguous; attention
as one operator or as products. Every form is first proven to compute the same (``cases.py``). All calls are CUDA
graphs, so that launches do not decide: of PyTorch's own kernels (``graph``), then, with the time that is left, of what
torch.compile makes of them (``compiled``). On a CPU it runs in FP32 without graphs, which tests this script and answers
nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases import Case, cases
from plain import Size

from lifedeploy.bench.stats import Interval, median_interval
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe, gpu_state

HERE = Path(__file__).parent
QUESTIONS = {
    1: "Gather: flat on [B·N, C], by elements (torch.gather), or by advanced indexing (GatherND)",
    2: "Ranking in FP32 or in FP16",
    3: "Layout: [B, N, C], or [N, B, C], where the prefix that a slice keeps is contiguous",
    4: "Attention as one operator (scaled_dot_product_attention) or as MatMul, Softmax, MatMul",
}
# Most important first: the layout is the one question whose answer would change the whole model.
AGENDA = (("model", 3), ("model", 1), ("model", 4), ("model", 2), ("operation", 1), ("operation", 2), ("operation", 4))
MODES = {"cuda": ("graph", "compiled"), "cpu": ("eager", "compiled")}  # the first one first
TURN_S = 0.02  # a shorter turn measures the clock
NARROW = 0.003  # half width of every ratio's interval at which rounds end
ROUNDS = (7, 100)
# What a step takes, until one like it has been seen.
GUESS_S = {("compiled", "model"): 30.0, ("compiled", "operation"): 15.0}
GUESS_ELSE_S = 4.0


# Timing.


@dataclass(frozen=True)
class Ready:
    """A form, ready to be timed: what runs it, how many calls that makes, and where its answer is found."""

    run: Callable[[], Any]
    calls: int
    answer: Callable[[], Any]


def ready(call: Callable[[], Any], inside: int, mode: str, device: str) -> Ready:
    """Compile as ``mode`` says; on a GPU, capture ``inside`` calls into one graph."""
    if mode == "compiled":
        call = torch.compile(call, fullgraph=True, dynamic=False)  # a graph break or a fallback is an error
    call()
    if device == "cpu":
        return Ready(call, 1, call)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as a capture demands: libraries set themselves up outside of it
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inside):
            answer = call()
    graph.replay()  # a capture computes nothing
    torch.cuda.synchronize()
    return Ready(graph.replay, inside, lambda: answer)


def seconds(run: Callable[[], Any], times: int, device: str) -> float:
    """How long ``times`` runs take: by the GPU's own clock, or this machine's."""
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(times):
            run()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def interleave(forms: Mapping[str, Ready], device: str, budget_s: float) -> dict[str, list[float]]:
    """Seconds per call, round by round; the order is reversed every other round, and drift hits all forms alike."""
    began = time.perf_counter()
    reference = next(iter(forms))
    shortest = min(min(seconds(form.run, 1, device) for _ in range(3)) for form in forms.values())
    times = max(1, round(min(TURN_S, budget_s / 10) / max(shortest, 1e-7)))
    for form in forms.values():
        seconds(form.run, times, device)  # until clocks have risen
    turns: dict[str, list[float]] = {name: [] for name in forms}
    for count in range(1, ROUNDS[1] + 1):
        for name in forms if count % 2 else reversed(forms):
            turns[name].append(seconds(forms[name].run, times, device) / (times * forms[name].calls))
        widths = [ratio(turns, reference, name).half_width for name in forms if name != reference]
        out_of_time = count >= 3 and time.perf_counter() - began > budget_s
        if out_of_time or (count >= ROUNDS[0] and max(widths) <= NARROW):
            break
    return turns


def ratio(turns: Mapping[str, Sequence[float]], reference: str, name: str) -> Interval:
    """How many times as fast as ``reference`` ``name`` is, over rounds."""
    return median_interval([one / other for one, other in zip(turns[reference], turns[name], strict=True)])


def timed(case: Case, mode: str, device: str, budget_s: float) -> list[dict[str, Any]]:
    """A row for every form, after all of them were seen to compute the same."""
    torch.compiler.reset()  # forms share their code: with the old ones kept, torch.compile would give up compiling
    forms = {name: ready(call, case.inside, mode, device) for name, call in case.calls.items()}
    reference = next(iter(forms))
    expected = forms[reference].answer()
    facts = {name: case.check(expected, form.answer(), f"{case.what} with {name}") for name, form in forms.items()}
    turns = interleave(forms, device, budget_s)
    rows = []
    for name, values in turns.items():
        took, against = median_interval(values), ratio(turns, reference, name)
        row = {"what": case.what, "form": name, "reference": reference, "us": 1e6 * took.median}
        row |= {"us_low": 1e6 * took.low, "us_high": 1e6 * took.high, "ratio": against.median}
        row |= {"ratio_low": against.low, "ratio_high": against.high, "coverage": against.coverage}
        rows.append(row | {"rounds": len(values), "calls": forms[name].calls} | facts[name])
    return rows


# The run.


class Run:
    """All steps, with a clock that ends them, and files that are written after each."""

    def __init__(self, out: Path, minutes: float, size: Size, device: str, command: str) -> None:
        self.out, self.size, self.device = out, size, device
        self.ends = time.monotonic() + 60 * minutes
        self.took: dict[tuple[str, str], float] = {}  # mode and level → seconds of the longest step so far
        self.found: dict[str, Any] = {"rows": [], "failed": [], "skipped": [], "command": command, "date": now()}
        self.found |= {"device": device_name(device), "machine": describe(), "torch": torch.__version__}
        self.found |= {"dtype": "fp16" if device == "cuda" else "fp32", "cuda": torch.version.cuda}
        self.found["gpu_state"] = {"before": gpu_state()}

    def step(self, level: str, question: int, batch: int, mode: str, budget_s: float) -> None:
        """One question at one batch size, if there is time for it. A failure is written down with its reason."""
        what = f"question {question}, {level}, batch {batch}, {mode}"
        left, kind = self.ends - time.monotonic(), (mode, level)
        if left < self.took.get(kind, GUESS_S.get(kind, GUESS_ELSE_S)):
            self.found["skipped"].append(what)
            return
        print(f"[{left:4.0f} s left] {what}", flush=True)
        began = time.monotonic()
        labels = {"question": question, "level": level, "batch": batch, "mode": mode}
        try:
            with torch.no_grad():
                for case in cases(level, question, batch, self.size, self.device):
                    self.found["rows"] += [labels | row for row in timed(case, mode, self.device, budget_s)]
        except (AssertionError, RuntimeError) as error:  # forms that differ; torch's errors, out of memory among them
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            self.found["failed"].append({"what": what, "reason": reason})
            print(f"  failed: {reason}", flush=True)
        self.took[kind] = max(self.took.get(kind, 0.0), time.monotonic() - began)
        self.write()

    def write(self) -> None:
        """What there is so far."""
        self.found["gpu_state"]["after"] = gpu_state()
        write_json(self.out / "questions.json", self.found)
        (self.out / "QUESTIONS.md").write_text(table(self.found), encoding="utf-8")


def device_name(device: str) -> str:
    """The GPU's, or that there was none."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def verdict(row: Mapping[str, Any]) -> str:
    """In words, and only what the interval allows."""
    if row["form"] == row["reference"]:
        return "as deployed"
    if row["ratio_low"] > 1:
        return "faster"
    return "slower" if row["ratio_high"] < 1 else "no difference seen"


def share(value: float | None) -> str:
    """As a percentage; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f} %"


def table(found: Mapping[str, Any]) -> str:
    """As Markdown."""
    machine = found["machine"]
    lines = [
        "# Open questions, asked of PyTorch",
        "",
        f"Command: `{found['command']}`;",
        f"{found['device']}, CUDA {found['cuda']}, torch {found['torch']}, {machine['cpu']}; {found['date'][:10]}.",
        f"{found['dtype'].upper()}, random weights. Every form was seen to compute the same as the first of its",
        "question before it was timed. Ratio: the time of the first form over that of this one, within rounds; above 1",
        "is faster. `graph` is PyTorch's own kernels and `compiled` what torch.compile makes of them, both as CUDA",
        "graphs. Single operations are repeated on the same data, which may then lie in the GPU's cache; `flat` there",
        "includes its arithmetic on indices.",
    ]
    if found["device"] == "CPU":
        lines += ["", "**Run on a CPU: this says that the script works, and nothing about a GPU.**"]
    for question, text in QUESTIONS.items():
        rows = [row for row in found["rows"] if row["question"] == question]
        lines += ["", f"## {question}. {text}", ""]
        if not rows:
            lines.append("Not measured.")
            continue
        lines += [
            "| level | of | mode | batch | form | µs | ratio | | largest error | same tokens | FP16 ties at the cut |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            error = "–" if row["error"] is None else f"{row['error']:.1e}"
            lines.append(
                f"| {row['level']} | {row['what']} | {row['mode']} | {row['batch']} | {row['form']} | {row['us']:.4g} "
                f"| {row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}] | {verdict(row)} | {error} "
                f"| {share(row.get('kept'))} | {share(row.get('ties_at_cut_fp16'))} |"
            )
    if found["failed"]:
        lines += ["", "Failed, and so not timed:", ""] + [
            f"- {one['what']}: {one['reason']}" for one in found["failed"]
        ]
    if found["skipped"]:
        lines += ["", "There was no time for these, so nothing is said about them:", ""]
        lines += [f"- {one}" for one in found["skipped"]]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--batches", default="128,8,1")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--modes", default="", help="default: graph,compiled on cuda, eager on cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring per step")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--side", type=int, default=14, help="patches along an edge of the image")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu runs the script, and answers nothing")
    offered = MODES[given.device]
    # torch.compile needs a C++ compiler on a CPU, so there it has to be asked for.
    modes = given.modes.split(",") if given.modes else offered if given.device == "cuda" else offered[:1]
    if not set(modes) <= set(offered):
        raise SystemExit(f"modes {given.modes} are not all known on {given.device}; there are: {', '.join(offered)}")
    given.out.mkdir(parents=True, exist_ok=True)
    size = Size(given.width, given.depth, given.heads, given.side)
    command = "python benchmarks/gpu/questions.py " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    run = Run(given.out, given.minutes, size, given.device, command.strip())
    for mode in modes:
        for batch in (int(batch) for batch in given.batches.split(",")):
            for level, question in AGENDA:
                run.step(level, question, batch, mode, given.seconds)
    run.write()
    print((given.out / "QUESTIONS.md").read_text(encoding="utf-8"))
    if run.found["failed"]:
        raise SystemExit(f"{len(run.found['failed'])} steps failed: {given.out / 'QUESTIONS.md'} says which and why")


if __name__ == "__main__":
    main()
