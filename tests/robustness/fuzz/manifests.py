"""Manifests, and files beside them that are not those of the manifest: of exports, engines and calibrations."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.robustness.fuzz.case import Case, Place, kind, sign
from tests.robustness.fuzz.values import ESCAPES, change_json, damaged
from tests.robustness.fuzz.weights import Marker
from tests.robustness.inputs import EXPORT

# What every reader of a manifest rests on: of another type, it cannot be meant.
_TYPED = ("kind", "file", "sha256", "spec", "inputs", "outputs", "reference", "siblings")
_ENGINE_TYPED = ("name", "precision", "source", "files")
_ENGINES = {"fake": "model.fake.json", "onnxruntime": "model.onnx", "openvino": "model.xml"}


@kind("manifest", share=40)
def manifest(place: Place) -> Case:
    """One thing in a manifest changed, or its text as a whole."""
    engine = place.one_of(*_ENGINES)
    model = place.one_of(EXPORT, f"{EXPORT}/{engine}-fp32", f"{EXPORT}/int8")
    place.take_export(f"{engine}-fp32", "int8")
    path = place.folder / model / "model.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change = change_json(data, place.rng)
    path.write_bytes(change.text)
    bad = change.broken or (change.retyped and _is_typed(change.path))
    argv = _reader(place, model, engine)
    return Case(
        f"{argv[0]} of a manifest of {model.removeprefix(EXPORT) or 'an export'}: {change.about}", argv, bad=bad
    )


@kind("manifest paths", share=12)
def manifest_paths(place: Place) -> Case:
    """A manifest that speaks of files elsewhere, of too few of them, or of none that are verified."""
    engine = place.one_of("onnxruntime", "openvino", "openvino")
    model = f"{EXPORT}/{engine}-fp32"
    place.take_export(f"{engine}-fp32")
    folder = place.folder / model
    data = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    main = data["file"]
    ways = ("above", "absolute", "link", "files", "digest", "pending", "reference", "siblings", "source", "swapped")
    way = place.one_of(*ways)
    if way in ("above", "absolute"):
        for name in sorted(data["engine"]["files"]):
            (folder / name).rename(place.folder / name)
        outside = f"../../../{main}" if way == "above" else str(place.folder / main)
        data["file"], data["engine"]["files"] = outside, {outside: data["sha256"]}
    elif way == "link":
        (folder / main).rename(place.folder / main)
        (folder / main).symlink_to(place.one_of("/dev/zero", "nowhere", main, "/proc/self/mem"))
    elif way in ("files", "pending", "digest", "swapped"):
        changed = "model.bin" if engine == "openvino" else main
        with (folder / changed).open("r+b") as file:
            file.seek(-1000, os.SEEK_END)
            file.write(place.rng.randbytes(1000))
        if way == "files":  # the weights are still those of no manifest: an engine has files, whatever is said
            data["engine"]["files"] = place.one_of({}, {main: data["sha256"]})
        elif way == "pending":
            data["engine"]["pending"] = "there was no GPU where it was built"
        elif way == "digest":
            data["sha256"] = place.one_of("", "0" * 64, data["sha256"].upper() + "0")
        else:
            data["sha256"], data["engine"]["files"][main] = "0" * 64, data["sha256"]
    elif way == "reference":
        data["reference"] = place.one_of("../../../../etc/passwd", "/dev/zero", ".")
    elif way == "siblings":
        data["siblings"] = {"dense": place.one_of("../../x.json", "model.json", "/dev/zero", ESCAPES[0])}
    else:
        data["engine"]["source"] = place.one_of("../../../graph.onnx", "/dev/zero", ESCAPES[1], "")
    (folder / "model.json").write_text(json.dumps(data), encoding="utf-8")
    # Reference, siblings and source are not looked at by everybody who opens an engine.
    bad = way not in ("reference", "siblings", "source")
    argv = _reader(place, model, engine, opening=True)
    return Case(f"{argv[0]} of an engine of {engine} whose manifest has another {way}", argv, bad=bad)


@kind("engine", share=12)
def engine(place: Place) -> Case:
    """Damaged files of an engine, with a manifest that knows them or not."""
    name = place.one_of(*_ENGINES)
    model = f"{EXPORT}/{name}-fp32"
    place.take_export(f"{name}-fp32")
    folder = place.folder / model
    beside = {"fake": ("model.npz",), "openvino": ("model.bin",), "onnxruntime": ()}[name]
    path = folder / place.one_of(_ENGINES[name], *beside)
    data, about, _ = damaged(path.read_bytes(), place.rng)
    known = place.rng.random() < 0.5 and name != "openvino"  # what is signed is the user's: OpenVINO's parser is native
    changed = data != path.read_bytes()
    path.write_bytes(data)
    if known:
        sign(folder / "model.json")
    argv = _reader(place, model, name, opening=True)
    said = "with hashes that fit" if known else "unknown to the manifest"
    return Case(f"{argv[0]} of {path.name}: {about}, {said}", argv, bad=changed and not known)


@kind("arrays", share=10)
def arrays(place: Place) -> Case:
    """Recorded answers that are none, declare terabytes, or hold objects."""
    place.take_export()
    path = place.folder / EXPORT / "reference.npz"
    way = place.one_of("damaged", "declared", "objects", "bomb", "names", "values", "special")
    bad = way in ("objects", "bomb", "special")
    if way == "damaged":
        data, about, bad = damaged(path.read_bytes(), place.rng)
        way += f", {about}"
        path.write_bytes(data)
    elif way == "special":
        path.unlink()
        os.mkfifo(path)
    elif way == "values":
        with np.load(path) as file:
            whole = {name: file[name] for name in file.files}
        change = place.one_of(
            lambda array: array[:0],
            lambda array: array * np.nan,
            lambda array: array.astype(np.complex128),
            lambda array: array[None],
        )
        np.savez(path, **{name: change(array) for name, array in whole.items()})
    else:
        _odd_arrays(path, way, place)
        bad = bad or way == "declared"
    argv = place.one_of(
        ("build-engine", EXPORT, "--engine=fake", "--force"),
        ("calibrate", EXPORT, "--data=data", "--images=4", "--check-images=2"),
    )
    if argv[0] == "calibrate":
        place.take("data")
        bad = False  # what is quantised is held against answers of its own
    return Case(f"{argv[0]} with recorded answers: {way}", argv, bad=bad)


def _odd_arrays(path: Path, way: str, place: Place) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    first = min(members)
    if way == "declared":
        shape = place.one_of((2**42,), (2**20, 2**20), (-5, 3), (10**30,), (2**31, 2))
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        members[first] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    elif way == "objects":
        data = io.BytesIO()
        np.lib.format.write_array_header_1_0(data, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        members[first] = data.getvalue() + pickle.dumps([Marker()])
    elif way == "bomb":
        members[first] = bytes(2**30)
    else:
        members = {place.one_of(*ESCAPES, "../../up", "a" * 5000) + ".npy": data for data in members.values()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@kind("calibration", share=3, cheap=False)
def calibration(place: Place) -> Case:
    """A calibration that is there already, and its report or statistics are not as they were."""
    place.take("data")
    place.take_export("int8")
    path = place.folder / EXPORT / "int8" / place.one_of("report.json", "model.json", "reference.npz", "dense.onnx")
    if path.suffix == ".json":
        change = change_json(json.loads(path.read_text(encoding="utf-8")), place.rng)
        path.write_bytes(change.text)
        about = change.about
    else:
        data, about, _ = damaged(path.read_bytes(), place.rng)
        path.write_bytes(data)
    argv = ("calibrate", EXPORT, "--data=data", "--images=8", "--check-images=4")
    return Case(f"calibrate over a damaged {path.name}: {about}", argv)


def _is_typed(path: tuple[Any, ...]) -> bool:
    if path[:1] == ("engine",):
        return len(path) > 1 and path[1] in _ENGINE_TYPED
    return not path or path[0] in _TYPED


def _reader(place: Place, model: str, engine: str, *, opening: bool = False) -> tuple[str, ...]:
    """A command that reads the manifest of ``model``; ``opening``: and the model too."""
    place.take("image.png")
    readers: list[tuple[str, ...]] = [
        ("inspect", model),
        ("predict", f"--model={model}", "image.png"),
        ("visualize", model, "image.png", "--output=out.png"),
    ]
    if not opening and model == EXPORT:
        readers.append(("build-engine", model, "--engine=fake"))
    if not opening or engine == "onnxruntime":
        place.take("data")
        readers.append(("evaluate", model, "--data=data"))
    if opening:
        readers.append(("bench", model, "--batch=1", "--budget=0.1", "--no-memory"))
        readers = [reader for reader in readers if reader[0] != "visualize"]
    return place.rng.choice(readers)
