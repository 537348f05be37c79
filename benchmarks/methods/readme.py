"""The README's tables of methods, from ``results.json`` beside this file and ``../gpu/methods-*.json``.

    python -m benchmarks.methods.readme

puts them between their marks; a further table is a further line of ``TABLES``, and its mark in the README.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import new_parser, read_json, table
from benchmarks.methods.systems import BACKBONES, BATCHES, HERE, METHODS, named
from lifedeploy import methods
from lifedeploy.text import chained

README = HERE.parents[1] / "README.md"
GPU = HERE.parent / "gpu"
SHOWN = {"deit_s": "DeiT-S", "deit_b": "DeiT-B"}
SHOWN |= {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "onnxruntime-cuda": "ONNX Runtime"}
FASTEST = "openvino:bf16"  # in floating point, on that processor
SURE = 0.1  # of a ratio: an interval that reaches further to a side is marked

Report = Mapping[str, Any]


def _reports() -> dict[str, Report]:
    """What ``compare`` found on the processor that was measured first, by backbone, engine and budget."""
    compared: Mapping[str, Any] = read_json(HERE / "results.json")["compare"]
    reports: dict[str, Report] = next(iter(compared.values()))["result"]
    return reports


def _on_gpus() -> list[tuple[str, str, Report]]:
    """What ``benchmarks.gpu.methods`` found: backbone, the GPU's short name, report."""
    records = ((name, GPU / f"methods-{name}.json") for name in BACKBONES)
    return [
        (name, record["machine"]["gpu"][0].split()[1], record["compare"])
        for name, path in records
        if path.is_file() and (record := read_json(path))
    ]


def _row(report: Report, method: str, batch: int) -> Report | None:
    """Of one request at a time, without copies to a GPU; None: the method is not there."""
    wanted = (method, batch, "latency")
    rows = (row for row in report["rows"] if (row["method"], row["batch"], row["mode"]) == wanted)
    return next((row for row in rows if not row["copies"]), None)


def _model(report: Report, method: str) -> Report:
    return next(model for model in report["models"] if model["method"] == method)


def _measured(report: Report) -> tuple[str, ...]:
    """The methods of a report, as they are listed: those that came later are in later ones."""
    there = {model["method"] for model in report["models"]}
    return tuple(method for method in METHODS if method in there)


def _is_dense(method: str) -> bool:
    return methods.role_of(method) == methods.BASELINE


def _rate(row: Report | None) -> str:
    return "–" if row is None else f"{row['images_per_s']:,.0f} img/s"


def _ratio(row: Report | None, name: str) -> str:
    """A ratio, marked where little is known of it; a dash where it was not measured."""
    if row is None or row[name] is None:
        return "–"
    half = max(row[f"{name}_high"] / row[name] - 1, 1 - row[f"{name}_low"] / row[name])
    return f"{'≈' if half > SURE else ''}{row[name]:.2f}"


def speedups() -> list[str]:
    """Speed over dense in every engine, all methods at life's GMACs, batch 8 (128 on a GPU)."""
    reports = _reports()
    columns = {
        f"{SHOWN[backbone]}, {_engine(engine)}": (report, 8)
        for backbone in BACKBONES
        for engine in dict.fromkeys(name.split()[1] for name in reports)
        if (report := reports.get(f"{backbone} {engine} macs"))
    }
    for backbone, card, report in _on_gpus():
        columns[f"{SHOWN[backbone]}, {card}, {_engine('onnxruntime-cuda:fp16')}"] = (report, 128)
    first = next(iter(columns.values()))[0]
    rows = []
    for method in _measured(first):
        model = _model(first, method)
        rows.append([named(method, model["title"]), chained(model["tokens"]), f"{model['gmacs']:.2f}"])
        for report, batch in columns.values():
            row = _row(report, method, batch)
            rows[-1].append(_rate(row) if _is_dense(method) else _ratio(row, "speedup"))
    return table(" | ".join(["", "tokens", "GMACs of DeiT-S", *columns]), rows)


def _engine(engine: str) -> str:
    name, _, precision = engine.partition(":")
    return f"{SHOWN[name]} {precision.upper()}"


def same_rounds() -> list[str]:
    """Speed over life's in the fastest float precision, at the same keep rate and at the same GMACs."""
    reports = _reports()
    same_rate, same_work = (reports[f"{BACKBONES[0]} {FASTEST} {at}"] for at in ("keep-rate", "macs"))
    batches = list(map(int, BATCHES.split(",")))
    rows = []
    measured = _measured(same_work)
    for method in (*measured[2:], *measured[1::-1]):
        if method == same_work["like"]:
            continue
        rate = _model(same_work, method)["keep_rate"]
        rows.append([f"`{method}`", f"{_model(same_rate, method)['gmacs']:.2f}"])
        rows[-1].append(" · ".join(_ratio(_row(same_rate, method, batch), "over_like") for batch in batches))
        rows[-1].append("–" if _is_dense(method) else "its own" if rate is None else f"{rate:g}")
        rows[-1].append(" · ".join(_ratio(_row(same_work, method, batch), "over_like") for batch in batches))
    each = f"batch {' · '.join(map(str, batches))}"
    return table(f" | GMACs at ρ 0.7 | {each} | keep rate at life's GMACs | {each}", rows)


def on_a_gpu() -> list[str]:
    """Speed over life's on a GPU, at the same GMACs, without copies."""
    columns = {
        f"{SHOWN[backbone]}, batch {batch}": (report, batch)
        for backbone, _, report in _on_gpus()
        for batch in dict.fromkeys(row["batch"] for row in report["rows"])
    }
    rows = []
    for method in METHODS[1:] + METHODS[:1]:
        ratios = [_ratio(_row(report, method, batch), "over_like") for report, batch in columns.values()]
        like = next(iter(columns.values()))[0]["like"]
        if method != like and set(ratios) != {"–"}:
            rows.append([f"`{method}`", *ratios])
    return table(" | ".join(["", *columns]), rows)


Made = Callable[[], Sequence[str]]
TABLES: Mapping[str, Made] = {"speedups": speedups, "same_rounds": same_rounds, "on_a_gpu": on_a_gpu}


def filled(text: str) -> str:
    """The README with its tables as they have to be.

    Raises:
        ValueError: a mark is missing, or there twice.
    """
    for name, made in TABLES.items():
        begin, end = f"<!-- benchmarks.methods.readme: {name} -->", "<!-- end -->"
        text, times = re.subn(f"{re.escape(begin)}.*?{end}", "\n".join((begin, *made(), end)), text, flags=re.DOTALL)
        if times != 1:
            raise ValueError(f"{begin} is in the README {times} times")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, write."""
    new_parser(__doc__).parse_args(arguments)
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
