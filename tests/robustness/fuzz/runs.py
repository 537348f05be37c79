"""Training: configurations, and runs on disk whose files are not as they were left."""

from __future__ import annotations

import json
import os
import tomllib
from typing import Any

import tomli_w

from tests.robustness.fuzz.case import Case, Place, kind
from tests.robustness.fuzz.values import ESCAPES, MARKUP, change_json, damaged
from tests.robustness.fuzz.weights import join, split

_GIVEN = {"data", "workers"}  # options that are given beside a configuration, and go over it
_RUN = "artifacts/checkpoints/life"
_STATE = "lifedeploy.training"
_VALUES: tuple[Any, ...] = (
    -1, 2**62, 1e26, float("nan"), float("inf"), "text", "", [], [1], [[1]], {"a": 1}, True, *ESCAPES[:3], *MARKUP[:2],
    "\ufeffx", "x" * 10_000, [float("nan"), 1.0],
)  # fmt: skip


@kind("configuration", share=16)
def configuration(place: Place) -> Case:
    """A TOML file for ``train``."""
    place.take("data", "weights.safetensors")
    settings = tomllib.loads((place.inputs.root / _RUN / "config.toml").read_text(encoding="utf-8"))
    settings |= {"weights": "weights.safetensors"}
    text, about, bad = _odd_toml(settings, place)
    if text is None:
        os.mkfifo(place.folder / "odd.toml")
    else:
        place.write("odd.toml", text)
    argv = ("train", "--config=odd.toml", "--name=new", "--data=data", "--workers=0")
    about = f"train with a configuration: {about}"
    return Case(about, argv, bad=bad, writes=("artifacts",), encoding=place.one_of("utf-8", "ascii"))


@kind("run", share=14)
def run(place: Place) -> Case:
    """A run whose configuration, state, log or split is odd, to be resumed or drawn."""
    place.take("data", _RUN)
    folder = place.folder / _RUN
    name = place.one_of("config.toml", "state", "state", "log.csv", "split.csv", "report.json", "last.safetensors")
    bad = False
    if name == "config.toml":
        text, about, bad = _odd_toml(tomllib.loads((folder / name).read_text(encoding="utf-8")), place)
        (folder / name).unlink()
        os.mkfifo(folder / name) if text is None else (folder / name).write_bytes(text)
    elif name == "state":
        about = _odd_state(place)
    else:
        data, about, _ = damaged((folder / name).read_bytes(), place.rng)
        if name == "log.csv" and place.rng.random() < 0.7:
            data, about = _odd_log((folder / name).read_bytes(), place)
        (folder / name).write_bytes(data)
    resume = ("train", "--resume", *place.one_of((), ("--name=life",)))
    curves = ("visualize", _RUN, "--curves", "--output=out.png")
    argv = place.one_of(resume, resume, curves)
    bad = bad and argv is resume
    return Case(f"{argv[0]} of a run with an odd {name}: {about}", argv, bad=bad, writes=("artifacts",))


def _odd_toml(settings: dict[str, Any], place: Place) -> tuple[bytes | None, str, bool]:
    way = place.one_of("value", "value", "value", "name", "bytes", "whole", "pipe")
    if way == "pipe":
        return None, "a pipe", True
    if way == "value":
        name = place.rng.choice(sorted(settings.keys() - _GIVEN))
        value = place.rng.choice(_VALUES)
        settings = settings | {name: value}
        wrong = isinstance(value, (dict, float)) and not isinstance(settings[name], bool) and value != 1e26
        return tomli_w.dumps(settings).encode(), f"{name} = {ascii(value)[:40]}", wrong
    if way == "name":
        odd = place.one_of(*ESCAPES, *MARKUP, "", "long " * 20_000, "__class__", "but")
        return tomli_w.dumps(settings | {odd: 1}).encode(), f"a setting {ascii(odd)[:40]}", True
    text = tomli_w.dumps(settings).encode()
    if way == "bytes":
        data, about, bad = damaged(text, place.rng)
        return data, about, bad and about not in ("empty", "zeros")
    whole = {
        "nested deep": (b"a = " + b"[" * 100_000 + b"]" * 100_000, True),
        "tables nested deep": (b"[" + b"a." * 100_000 + b"a]\n", True),
        "a byte order mark before it": (b"\xef\xbb\xbf" + text, False),
        "UTF-16": (text.decode().encode("utf-16"), True),
        "lines of Windows": (text.replace(b"\n", b"\r\n"), False),
        "a number of 10,000 digits": (text + b"\nx = " + b"9" * 10_000, True),
        "megabytes": (text + b"# comment\n" * 8_000_000, False),
        "a date": (text.replace(b"batch = 8", b"batch = 1979-05-27"), True),
    }
    about = place.one_of(*whole)
    return whole[about][0], about, whole[about][1]


def _odd_state(place: Place) -> str:
    states = sorted((place.folder / _RUN / "state").iterdir())
    chosen = states if place.rng.random() < 0.5 else states[-1:]
    seed = place.rng.random()
    about = ""
    for path in chosen:  # the same change to each
        place.rng.seed(seed)
        header, content = split(path.read_bytes())
        way = place.one_of("position", "position", "header", "tensors", "damaged")
        if way == "position":
            change = change_json(json.loads(header["__metadata__"][_STATE]), place.rng)
            header["__metadata__"][_STATE] = change.text.decode("utf-8", "replace")
            data, about = join(header, content), change.about
        elif way == "header":
            change = change_json(header, place.rng)
            data, about = len(change.text).to_bytes(8, "little") + change.text + content, change.about
        elif way == "tensors":
            name = place.rng.choice(sorted(header.keys() - {"__metadata__"}))
            header[place.one_of("optimizer/x/y", "model/", ESCAPES[0], "other")] = header.pop(name)
            data, about = join(header, content), f"{name} under another name"
        else:
            data, about, _ = damaged(path.read_bytes(), place.rng)
        path.write_bytes(data)
    return f"{len(chosen)} of {len(states)}: {about}"


def _odd_log(data: bytes, place: Place) -> tuple[bytes, str]:
    lines = data.decode().splitlines()
    at = place.rng.randrange(1, len(lines))
    cells = lines[at].split(",")
    odd = place.one_of("nan", "inf", "-1", "", "text", ESCAPES[0], "9" * 5000, "x" * 200_000, '"', "\0", MARKUP[0])
    cells[place.rng.randrange(len(cells))] = odd
    lines[at] = ",".join(cells)
    return "\n".join(lines).encode(), f"line {at} has {ascii(odd)[:40]}"
