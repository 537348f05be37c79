"""Files of weights: safetensors with odd headers, and pickles that would run code."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from typing import Any

import torch
from safetensors.torch import load_file

from tests.robustness.fuzz.case import MARK, Case, Place, kind
from tests.robustness.fuzz.values import ESCAPES, MARKUP, change_json, damaged
from tests.robustness.inputs import TINY, TRAIN

_SPEC = "lifedeploy.spec"


class Marker:
    """Leaves a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (MARK, "w")


class Shell:
    """The same, by a shell."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f": > {MARK}",)


@kind("safetensors", share=20)
def safetensors(place: Place) -> Case:
    """A checkpoint of ours whose header, description or bytes are odd."""
    data = (place.inputs.root / "weights.safetensors").read_bytes()
    header, content = split(data)
    way = place.one_of("spec", "spec", "spec", "header", "header", "metadata", "length", "damaged", "facts")
    bad = False
    if way == "spec":
        change = change_json(json.loads(header["__metadata__"][_SPEC]), place.rng)
        text = change.text.decode("utf-8", "replace")
        header["__metadata__"][_SPEC] = text
        data, about, bad = join(header, content), change.about, change.broken and "UTF" not in change.about
        bad = bad or change.retyped
    elif way in ("header", "metadata"):
        change = change_json(header["__metadata__"] if way == "metadata" else header, place.rng)
        text = (
            change.text
            if way == "header"
            else json.dumps(header | {"__metadata__": "PUT"}).encode().replace(b'"PUT"', change.text)
        )
        data, about = len(text).to_bytes(8, "little") + text + content, change.about
        bad = way == "header" and change.broken
    elif way == "length":
        length = place.one_of(0, 1, 2**63, 2**64 - 1, 2**40, len(data) * 2, len(data) - 9)
        data, about, bad = length.to_bytes(8, "little") + data[8:], f"{length:,}", True
    elif way == "facts":
        del header["__metadata__"][_SPEC]
        facts = place.one_of(
            ("classes", "[1"),
            ("classes", '"cat"'),
            ("image_size", "[0, 0]"),
            ("image_size", "1e999"),
            ("classes", json.dumps([*ESCAPES, *MARKUP])),
            ("image_size", "[" * 10**5),
        )
        header["__metadata__"][facts[0]] = facts[1]
        data, about = join(header, content), f"{facts[0]} {facts[1][:40]!r}"
    else:
        data, about, bad = damaged(data, place.rng)
    place.write("odd.safetensors", data)
    argv = _reader(place, "odd.safetensors")
    return Case(
        f"{argv[0]} of safetensors with an odd {way}: {about}", argv, bad=bad, terminal=place.rng.random() < 0.1
    )


@kind("pickle", share=12)
def pickled(place: Place) -> Case:
    """A checkpoint of PyTorch's that would run code, or that is damaged."""
    name = place.one_of("odd.pth", "odd.pt", "odd.bin", "odd.safetensors", "odd.ckpt", "odd")
    way = place.one_of("plain", "archive", "inside", "old", "damaged", "deep", "storage", "keys", "special")
    evil = place.one_of(Marker(), Shell())
    bad = way != "damaged"
    if way == "plain":
        data = pickle.dumps(place.one_of(evil, {"model": evil}), protocol=place.one_of(0, 2, 4))
    elif way in ("archive", "old", "inside", "keys"):
        weights: Any = load_file(place.inputs.root / "weights.safetensors")
        keys = {escape: torch.ones(3) for escape in (*ESCAPES, *MARKUP, "a" * 10**5)}
        saved = {"keys": keys, "inside": {"state_dict": weights, "args": evil}}.get(way, evil)
        data = saved_as(saved, new=way != "old")
    elif way == "deep":
        data = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    elif way == "storage":
        data = _declared(saved_as({"a": torch.zeros(4)}), place)
    elif way == "damaged":
        data, about, bad = damaged(saved_as(load_file(place.inputs.root / "weights.safetensors")), place.rng)
        way += f", {about}"
    else:
        os.mkfifo(place.folder / name)
        data = b""
    if data:
        place.write(name, data)
    place.take("data")
    readers = [
        ("export", *TINY, f"--weights={name}", "--output=out", "--no-parity"),
        (*TRAIN, f"--weights={name}", "--name=new"),
        ("inspect", name),
    ]
    argv = place.rng.choices(readers, (5, 3, 1))[0]
    return Case(f"{argv[0]} of a pickle, {way}, named {name}", argv, bad=bad)


def saved_as(content: Any, *, new: bool = True) -> bytes:
    """What ``torch.save`` makes of it."""
    data = io.BytesIO()
    torch.save(content, data, _use_new_zipfile_serialization=new)
    return data.getvalue()


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header, and what is behind it."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict[str, Any], content: bytes) -> bytes:
    """The inverse of :func:`split`."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content


def _declared(data: bytes, place: Place) -> bytes:
    """A checkpoint whose tensor declares more numbers than there are."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith("data.pkl"):
                # BININT1 4: the storage's numbers, and the tensor's shape.
                content = content.replace(b"K\x04", b"\x8a\x06" + place.one_of(2**40, 2**46).to_bytes(6, "little"))
            new.writestr(member.filename, content)
    return made.getvalue()


def _reader(place: Place, name: str) -> tuple[str, ...]:
    place.take("image.png")
    readers = [
        ("export", *TINY, f"--weights={name}", "--output=out", "--no-parity"),
        ("visualize", name, "image.png", "--output=out.png"),
        ("inspect", name),
    ]
    return place.rng.choices(readers, (2, 3, 3))[0]
