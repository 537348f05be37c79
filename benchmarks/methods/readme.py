"""The README's tables of methods, from ``results.json`` beside this file and ``../gpu/methods-*.json``.

    python -m benchmarks.methods.readme

puts them between their marks; a further table is a further line of ``TABLES``, and its mark in the README.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import new_parser, read_json, table
from benchmarks.methods.systems import BACKBONES, HERE, METHODS, named
from lifedeploy import methods
from lifedeploy.text import chained

README = HERE.parents[1] / "README.md"
GPU = HERE.parent / "gpu"
SHOWN = {"deit_s": "DeiT-S", "deit_b": "DeiT-B"}
SHOWN |= {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "onnxruntime-cuda": "ONNX Runtime"}
FASTEST = ("openvino:bf16", "openvino:int8")
SURE = 0.1  # of a ratio: an interval that reaches further to a side is marked

Report = Mapping[str, Any]


def _reports() -> dict[str, Report]:
    """What ``compare`` found, by backbone, engine and budget: on the first processor where timm's own model took part,
    else on the first."""
    compared: Mapping[str, Any] = read_json(HERE / "results.json")["compare"]
    found = [entry["result"] for entry in compared.values()]
    names = dict.fromkeys(name for reports in found for name in reports)
    each = {name: [reports[name] for reports in found if name in reports] for name in names}
    return {name: next(filter(_has_plain, reports), reports[0]) for name, reports in each.items()}


def _has_plain(report: Report) -> bool:
    """Whether timm's own model took part; where it did not, the last block was computed in full by all."""
    return any(model["method"] == "plain" for model in report["models"])


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
        f"{SHOWN[backbone]}, {_engine(engine)}{_mark(report)}": (report, 8)
        for backbone in BACKBONES
        for engine in dict.fromkeys(name.split()[1] for name in reports)
        if (report := reports.get(f"{backbone} {engine} macs"))
    }
    for backbone, card, report in _on_gpus():
        columns[f"{SHOWN[backbone]}, {card}, {_engine('onnxruntime-cuda:fp16')}{_mark(report)}"] = (report, 128)
    first = max((report for report, _ in columns.values()), key=lambda report: len(report["models"]))
    rows = []
    for method in _measured(first):
        model = _model(first, method)
        rows.append([named(method, model["title"]), chained(model["tokens"]), f"{model['gmacs']:.2f}"])
        for report, batch in columns.values():
            row = _row(report, method, batch)
            rows[-1].append(_rate(row) if _is_dense(method) else _ratio(row, "speedup"))
    return table(" | ".join(["", "tokens", "GMACs of DeiT-S", *columns]), rows)


def _mark(report: Report) -> str:
    """Behind a column in which all computed the whole last block."""
    return "" if _has_plain(report) else " ¹"


def _engine(engine: str) -> str:
    name, _, precision = engine.partition(":")
    return f"{SHOWN[name]} {precision.upper()}"


def same_rounds() -> list[str]:
    """Speed over life's in OpenVINO's two fast precisions, at the same keep rate and at the same GMACs."""
    reports = _reports()
    pairs = {
        at: [reports[f"{BACKBONES[0]} {engine} {at}"] for engine in FASTEST] for at in ("keep-rate", "macs")
    }  # "same keep rate" and "same work", a report for each engine
    work = pairs["macs"]
    fullest = max(range(len(work)), key=lambda index: len(work[index]["models"]))  # a gate may refuse one elsewhere
    batches = list(dict.fromkeys(row["batch"] for row in work[0]["rows"]))
    measured = _measured(work[fullest])
    rows = []
    for method in (*measured[2:], *measured[1::-1]):
        if method == work[fullest]["like"]:
            continue
        rate = _model(work[fullest], method)["keep_rate"]
        told = "–" if _is_dense(method) else "its own" if rate is None else f"{rate:g}"
        ratios = {
            at: [" · ".join(_ratio(_row(it, method, batch), "over_like") for batch in batches) for it in found]
            for at, found in pairs.items()
        }
        gmacs = f"{_model(pairs['keep-rate'][fullest], method)['gmacs']:.2f}"
        rows.append([f"`{method}`", gmacs, *ratios["keep-rate"], told, *ratios["macs"]])
    each = " | ".join(f"{_engine(engine)}, batch {' · '.join(map(str, batches))}" for engine in FASTEST)
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
