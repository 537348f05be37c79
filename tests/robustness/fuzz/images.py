"""Images that are none, or too much of one, wherever images are read: single ones, class folders, shards, lists."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.robustness.fuzz.case import MARK, Case, Place, kind
from tests.robustness.fuzz.values import ESCAPES, MARKUP, damaged
from tests.robustness.inputs import EXPORT, devices, picture, png, split_csv

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
_POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 40\n%%EndComments\nshowpage\n"
_NAMES = (*ESCAPES, *MARKUP, "caf\udce9", "\ufeffcat", "two\nlines", "a" * 200, " ", "-", "--json", "$x$")


@kind("image", share=14)
def image(place: Place) -> Case:
    """One file that is read as an image, under an odd name now and then."""
    place.take_export("fake-fp32")
    name = _name(place)
    about, bad = odd_image(place, name)
    model = f"--model={EXPORT}/fake-fp32"
    argv = place.one_of(("predict", model, "--", name), ("visualize", "--output=out.png", "--", EXPORT, name))
    return Case(f"{argv[0]} of {ascii(name)[:50]}: {about}", argv, bad=bad, terminal=place.rng.random() < 0.15)


@kind("folder", share=12)
def folder(place: Place) -> Case:
    """Class folders, of which one, or one of its images, is odd."""
    place.take("data")
    place.take_export("fake-fp32")
    name, half = _name(place), place.one_of("val", "val", "train")
    ways = ("image", "class", "nested", "empty class", "loop", "outside", "devices", "only odd")
    way = place.one_of(*ways)
    above = place.folder / "data" / half
    about, bad = "", False
    if way == "image":
        about, _ = odd_image(place, f"data/{half}/cat/{name}")
    elif way in ("class", "nested"):
        inside = "/".join([name] * (3 if way == "nested" and len(name) < 50 else 1))
        place.write(f"data/{half}/{inside}/0.png", (place.inputs.root / "image.png").read_bytes())
    elif way == "empty class":
        (above / name).mkdir()
    elif way == "loop":
        (above / "cat" / "again").symlink_to("..")
    elif way == "outside":
        (above / "far").symlink_to(place.one_of("/proc", "/dev", "nowhere", "far"))
    elif way == "devices":
        (above / "cat" / "zero.png").symlink_to("../../../zero")
        (above / "cat" / "pipe.png").symlink_to("../../../pipe")
        devices(place.folder)
    else:
        for path in sorted((place.folder / "data").rglob("*.png")):
            path.write_bytes(place.rng.randbytes(50))
        bad = True
    skip = place.one_of((), (), ("--on-error=skip",))
    evaluate = ("evaluate", f"{EXPORT}/fake-fp32", "--data=data", f"--split={half}", *skip)
    score = ("score", f"{EXPORT}/fake-fp32", f"data/{half}", "--out=rows", "--part=4", "--batch=2")
    argv = place.one_of(evaluate, evaluate, score)
    about = f"{argv[0]} of a folder with an odd {way} {ascii(name)[:50]} {about}"
    return Case(
        about,
        argv,
        bad=bad,
        writes=("rows",),  # what is done is kept
        terminal=place.rng.random() < 0.15,
        encoding=place.one_of("utf-8", "utf-8", "ascii"),
    )


@kind("shards", share=10)
def shards(place: Place) -> Case:
    """A tar file whose members, labels, names or bytes are odd."""
    place.take("shards")
    place.take_export("fake-fp32")
    shard = place.folder / "shards/0.tar"
    ways = ("label", "name", "link", "special", "bytes", "classes", "huge", "pipe", "folder", "json", "compressed")
    way = place.one_of(*ways)
    label = place.one_of(
        b"1000000000", b"-1", b"nan", b"", b"1e9", b"9" * 5000, "²".encode(), b"\xff\xfe", b"1" * 10**6, b"0\n0"
    )
    bad = False
    if way in ("pipe", "folder"):
        shard.unlink()
        os.mkfifo(shard) if way == "pipe" else shard.mkdir()
    elif way == "bytes":
        data, about, _ = damaged(shard.read_bytes(), place.rng)
        shard.write_bytes(data)
        way += f", {about}"
    elif way == "classes":
        names = place.one_of(
            b"", b"\xff\xfec\0", b"cat\n" * 3, b"\xef\xbb\xbfcat\ncup", b"one", "\x1b[31mcat\ncup\u202e".encode()
        )
        (place.folder / "shards/classes.txt").write_bytes(names)
        way += f" {names!r}"
    else:
        _odd_tar(shard, way, label, place)
        if place.rng.random() < 0.5:
            (place.folder / "shards/classes.txt").unlink()
        way += f" {label[:20]!r}" if way == "label" else ""
    evaluate = ("evaluate", f"{EXPORT}/fake-fp32", "--data=wds/shards", *place.one_of((), ("--on-error=skip",)))
    score = ("score", f"{EXPORT}/fake-fp32", "shards", place.one_of("--out=rows", "--out=rows.csv"))
    argv = place.one_of(evaluate, evaluate, score)
    about = f"{argv[0]} of shards with odd {way}"
    writes = ("rows", "rows.csv.parts")  # what is done is kept
    return Case(about, argv, bad=bad, writes=writes, terminal=place.rng.random() < 0.1)


def _odd_tar(path: Path, way: str, label: bytes, place: Place) -> None:
    good = (place.inputs.root / "image.png").read_bytes()
    name = _name(place).replace("/", "_")
    with tarfile.open(path, "w:gz" if way == "compressed" else "w") as archive:

        def add(member: str, data: bytes, **facts: object) -> None:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            for key, value in facts.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))

        add("ok.png", good)
        add("ok.cls", b"0")
        if way == "label":
            add("odd.png", good)
            add("odd.cls", label)
        elif way == "name":
            for member in (name, f"../{name}", f"/{name}"):
                add(f"{member}.png", good)
                add(f"{member}.cls", b"1")
        elif way == "link":
            add(
                "link.png",
                b"",
                type=place.one_of(tarfile.SYMTYPE, tarfile.LNKTYPE),
                linkname=place.one_of("nowhere", "link.png", "/dev/zero"),
            )
            add("link.cls", b"1")
        elif way == "special":
            add("odd.png", b"", type=place.one_of(tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE))
            add("odd.cls", b"1")
        elif way == "huge":
            add("odd.cls", b"1")
            info = tarfile.TarInfo("odd.png")
            info.size = place.one_of(2**40, 2**33, 10**9)
            archive.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
        elif way == "json":
            add("odd.png", good)
            add("odd.json", place.one_of(b"[" * 10**5, b"{", b'{"label": NaN}', b"\xff"))
            add("odd.cls", b"1")


@kind("split list", share=6)
def split_list(place: Place) -> Case:
    """A list of images that is none, or of others."""
    place.take("data")
    place.take_export("fake-fp32")
    path = place.path("split.csv")
    good = [(f"{name}/{number}.png", "val") for name in ("cat", "cup") for number in range(3)]
    ways = {
        "other names": [*good, (place.one_of("nowhere.png", *_NAMES), "val")],
        "columns missing": [(name,) for name, _ in good],
        "nothing of it": [(name, "train") for name, _ in good],
        "a megabyte of a field": [*good, ("x" * 1_000_000, "val")],
    }
    way = place.one_of(*ways, "bytes", "pipe", "null bytes", "byte order mark")
    bad = way in ways or way in ("pipe", "null bytes")
    if way in ways:
        rows = ways[way]
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            file.write("file,split\n" if way != "columns missing" else "file\n")
            file.writelines(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows)
    elif way == "pipe":
        os.mkfifo(path)
    else:
        split_csv(path, good)
        data = path.read_bytes()
        if way == "bytes":
            data, way, bad = damaged(data, place.rng)
        else:
            data = b"\xef\xbb\xbf" + data if way == "byte order mark" else data.replace(b"cat", b"c\0t")
        path.write_bytes(data)
    argv = ("evaluate", f"{EXPORT}/fake-fp32", "--data=data", "--split=split.csv")
    return Case(f"a split list: {way}", argv, bad=bad)


def odd_image(place: Place, name: str) -> tuple[str, bool]:
    """Write an odd image; what is odd, and whether nothing can be seen on it."""
    path = place.path(name)
    way = place.one_of("damaged", "damaged", "damaged", "size", "size", "special", "postscript", "mode", "other")
    if way == "damaged":
        data, about, bad = damaged(_encoded(place), place.rng)
        path.write_bytes(data)
        return about, bad
    if way == "special":
        return _special(path, place), True
    if way == "postscript":
        path.write_bytes(_POSTSCRIPT)
        place.path("bin/gs").write_text(f"#!/bin/sh\n: > {place.folder}/{MARK}\n")
        (place.folder / "bin/gs").chmod(0o755)
        return "PostScript", True
    if way == "size":
        width, height = place.one_of(
            (1, 200_000), (200_000, 1), (1, 20_000), (1, 1), (65_000, 65_000), (2**31 - 1, 2**31 - 1), (0, 5)
        )
        whole = width * height < 10**6
        path.write_bytes(png(Image.new("L", (width, height))) if whole and width * height else _declared(width, height))
        return f"{width}x{height} pixels", not whole or not width * height
    if way == "mode":
        mode = place.one_of("1", "L", "LA", "P", "PA", "CMYK", "I;16", "F", "I")
        kind_of = "TIFF" if mode in ("CMYK", "F", "I", "I;16", "PA") else "PNG"
        shown = Image.new(mode if mode != "PA" else "LA", (40, 48))
        shown.save(path, kind_of)
        return f"of mode {mode}", False
    path.write_bytes(
        place.one_of(
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%PDF-1.4\n",
            b"SIMPLE  =                    T",
            b"\x00\x00\x02\x00",
        )
    )
    return "of a format that is not opened", True


def _special(path: Path, place: Place) -> str:
    way = place.one_of("pipe", "folder", "zero", "loop", "dangling")
    if way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    else:
        path.symlink_to({"zero": "/dev/zero", "loop": path.name, "dangling": "nowhere"}[way])
    return f"a {way}"


def _encoded(place: Place) -> bytes:
    data = io.BytesIO()
    shown = picture(np.random.default_rng(place.rng.randrange(100)))
    for name in place.rng.sample(_FORMATS, len(_FORMATS)):
        try:
            shown.save(data, name)
        except (KeyError, OSError):  # not in this Pillow
            continue
        break
    return data.getvalue()


def _declared(width: int, height: int) -> bytes:
    """A PNG that declares more than it holds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def _name(place: Place) -> str:
    if place.rng.random() < 0.6:
        return "odd.png"
    ending = place.one_of(".jpg", ".png", ".JPEG", ".tif")
    return place.one_of(*_NAMES).replace("/", "_") + ending
