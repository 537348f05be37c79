"""Schedules for a machine: what ``lifedeploy tune`` comes to; writes ``RESULTS.md``, ``results.json`` and pictures.

    python -m benchmarks.tune.speed --work DIR [--engines NAME:PRECISION …] [--batches 1 8 32] [--fresh]

DeiT-S with random weights at keep rate 0.7, tuned for as much of CLS's attention as that schedule keeps, for every
engine and batch: once with lives still predicted after layer 4, and once wherever that is best, which is for a model
that is yet to be trained. Every ratio is from one contest of ``tune`` itself. Results are kept by processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Results, command_line, lifedeploy, new_parser, read_json, source, table
from lifedeploy.machine import fast_bf16, identity
from lifedeploy.text import chained

HERE = Path(__file__).parent
MODEL = "artifacts/deit_s-life-r0.7"
ENGINES = (f"openvino:{'bf16' if fast_bf16() else 'fp32'}", "onnxruntime:fp32")
BATCHES = (1, 8, 32)
ANYWHERE, FOURTH = "anywhere", "after layer 4"


def tuned(work: Path, engine: str, batch: int, where: str, *, fresh: bool) -> dict[str, Any]:
    """The report of one ``tune``, its picture beside this script."""
    name = f"{engine.replace(':', '-')}-batch{batch}"
    picture = HERE / f"{name}{'' if where == ANYWHERE else '-layer4'}.png"
    words = ["tune", MODEL, "-e", engine, "--batch", str(batch), "--plot", str(picture), "--json", "report.json"]
    words += ["--base-layer", "4"] if where == FOURTH else []
    words += ["--fresh"] if fresh else []
    lifedeploy(*words, folder=work)
    report = read_json(work / "report.json")
    for name in ("front", "machine"):  # of hundreds of points, those that the picture shows
        del report[name]
    return report


def rows(entries: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """A line for each engine, batch and place."""
    for key, report in entries.items():
        engine, batch, where = key.split(", ", 2)
        best = max(report["verified"] or [report["before"]], key=lambda point: point["measured"]["median"])
        off = max((abs(1 / it["measured"]["median"] / it["time"] - 1) for it in report["verified"]), default=0.0)
        yield (
            *(engine, batch.removeprefix("batch "), where, len(report["probes"]), f"{100 * report['jump']:.1f} %"),
            f"{chained(best['counts'])} after {', '.join(map(str, best['drop_layers']))}",
            _interval(report["before"]["measured"]),
            _interval(best["measured"]),
            _interval(best["over_before"]),
            "yes" if report["improves"] else "no, it stays",
            f"{100 * off:.1f} %",
            f"{report['seconds']:.0f}",
        )


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def markdown(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Schedules for a machine",
        "",
        "DeiT-S at 224 px, random weights (which speed does not depend on), life at ρ 0.7: 137, 96, 67 tokens after "
        "layers 4, 7, 10. `tune` looks for the fastest schedule that keeps as much of the attention that CLS pays to "
        "patches, on the packaged photographs. Of random weights that attention is next to even: this is about speed "
        "at equal numbers of tokens times layers, and no claim about accuracy: [that is another page](REAL.md).",
        "",
        "*off*: the largest difference between the expected and the measured time of the schedules that were verified. "
        "*over ρ 0.7*: speed over that schedule's in the same rounds. Seconds are of the whole command, in the first "
        "line of an engine and batch with its staircase. Each line's own command is in results.json; the one below is "
        "of the last that were measured.",
        "",
    ]
    for processor, entry in results.items():
        head = (
            "engine | batch | lives predicted | counts measured | largest stair | best verified | ρ 0.7 over dense | "
        )
        head += "tuned over dense | over ρ 0.7 | chosen | off | seconds"
        lines += [f"## {processor}", "", *table(head, rows(entry["result"])), ""]
        lines += [source(entry, "lifedeploy", "openvino", "onnxruntime", "torch"), ""]
    if identity() in results:
        lines += ["Pictures (of the processor measured last):", ""]
        for path in sorted(HERE.glob("*.png")):
            lines.append(f"![staircase and front, {path.stem}]({path.name})")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, tune, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the export and what is measured")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured in this folder")
    given = parser.parse_args(arguments)
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / MODEL).is_dir():
        lifedeploy("export", "--backbone", "deit_s", "--rho", "0.7", "--weights", "random", folder=work)
    results, command = Results(HERE / "results.json"), command_line("tune.speed", arguments, {"DIR": given.work})
    for engine in given.engines:
        for batch in given.batches:
            for where in (FOURTH, ANYWHERE):
                report = tuned(work, engine, batch, where, fresh=given.fresh and where == FOURTH)
                results.keep("tune", report, command, part=f"{engine}, batch {batch}, {where}")
    (HERE / "RESULTS.md").write_text(markdown(results.read()["tune"]), encoding="utf-8")


if __name__ == "__main__":
    main()
