"""What ``score`` is given, and what it finds where it is to go on: lists of images, records and rows."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tests.robustness.fuzz.case import Case, Place, kind
from tests.robustness.fuzz.values import ESCAPES, MARKUP, change_json, damaged
from tests.robustness.inputs import EXPORT, LIST, ROWS, score_line

_NAMES = (
    *ESCAPES, *MARKUP, "nowhere.png", "", "  ", "caf\udce9.png", "/dev/zero", "/proc/self/mem", "../../../etc/passwd",
    "x" * 300, "ftp://", "s3://", "http://127.0.0.1:1/0.png", "file:///etc/passwd", "reference://x", "jinja::file://x",
    "many", "many/000.png/more", "text.txt", "~",
)  # fmt: skip


@kind("list of images", share=8)
def list_of_images(place: Place) -> Case:
    """A table that names images: odd names, odd columns, odd bytes."""
    place.take("many/000.png", "many/001.png")
    place.take_export("fake-fp32")
    place.write("text.txt", b"just text\n")
    ending = place.one_of("csv", "csv", "tsv", "parquet")
    names = [f"many/{number:03}.png" for number in range(2)]
    way = place.one_of("names", "names", "columns", "bytes", "types" if ending == "parquet" else "fields")
    table: dict[str, Any] = {"image": names, "label": ["0"] * len(names)}
    bad = False
    if way == "names":
        odd = place.rng.sample(_NAMES, place.one_of(1, 3))
        about = ascii(odd)
        names += odd
        table = {"image": names, "label": ["0"] * len(names)}
    elif way == "columns":
        column = place.one_of(*ESCAPES, *MARKUP, "", "Image", "x" * 100_000)
        table, about, bad = {column: names, "label": ["0"] * len(names)}, ascii(column)[:60], True
    elif way == "types":
        values = place.one_of([1, 2], [None, None], [[b"a"], [b"b"]], [b"\xff", b"\xfe"], [{"path": "x"}] * 2)
        table, about = {"image": values}, ascii(values)
        bad = True
    else:
        about = ""
    data = _encoded(table, ending)
    if way == "bytes":
        data, about, _ = damaged(data, place.rng)
    elif way == "fields":
        data += place.one_of(
            b"many/000.png,0,1\n", b'"many/000.png,0\n', b"x" * 2_000_000, b"\0\n", b"\xff,0\n", b"a\rb,0\n"
        )
        about = ascii(data[-20:])
    place.write(f"list.{ending}", data)
    out = place.one_of("rows", "rows.csv", "rows.jsonl", "rows.parquet")
    argv = ("score", f"{EXPORT}/fake-fp32", f"list.{ending}", f"--out={out}", "--part=2", "--threads=1")
    argv += place.one_of((), ("--max-bad=0",), ("--column=image",))
    # What is done is kept, whatever comes after it.
    return Case(f"a .{ending} list of images, odd {way}: {about}", argv, bad=bad, writes=("rows", f"{out}.parts"))


def _encoded(table: dict[str, Any], ending: str) -> bytes:
    if ending == "parquet":
        texts = [isinstance(value, str) for values in table.values() for value in values]
        columns = table if not all(texts) else {_text(name): [*map(_text, table[name])] for name in table}
        data = io.BytesIO()
        parquet.write_table(pa.table(columns), data)
        return data.getvalue()
    between = "\t" if ending == "tsv" else ","
    rows = [list(table), *zip(*table.values(), strict=True)]
    lines = [between.join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in rows]
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")


def _text(value: str) -> str:
    """As a table of text can have it."""
    return value.encode("utf-8", "replace").decode()


@kind("rows", share=10)
def rows(place: Place) -> Case:
    """Rows that were finished, of which a file is not as it was left; and the same command, or another one."""
    place.take(ROWS, LIST)
    place.take_export("fake-fp32")
    folder = place.folder / ROWS
    record = folder / "_score.json"
    part = place.one_of(*sorted(folder.glob("part-*")))
    way = place.one_of("record", "record", "record", "part", "part", "missing", "special", "names")
    said = json.loads(record.read_text(encoding="utf-8"))
    underway = place.rng.random() < 0.7
    if underway:  # as it is while there is something to do
        said |= {"complete": False, "parts": 0, "tally": {"images": 0, "bad": 0, "examples": []}}
        record.write_text(json.dumps(said), encoding="utf-8")
    bad = False
    if way == "record":
        change = change_json(said, place.rng)
        record.write_bytes(change.text)
        about, bad = change.about, change.broken
    elif way == "part":
        data, about, _ = damaged(part.read_bytes(), place.rng)
        part.write_bytes(data)
    elif way == "missing":
        about = place.one_of(part.name, "_score.json", "_input.csv")
        (folder / about).unlink(missing_ok=True)
    elif way == "special":
        part.unlink()
        about = place.one_of("a folder", "dangling", "/dev/zero", "a loop")
        if about == "a folder":
            part.mkdir()
        else:
            part.symlink_to({"dangling": "nowhere", "/dev/zero": "/dev/zero", "a loop": part.name}[about])
    else:
        about = place.one_of(f"part-00007-{'0' * 12}.jsonl", "part-99999999999999999999-aaaaaaaaaaaa.csv", ESCAPES[0])
        place.write(f"{ROWS}/{about}", b"{}\n")
    more: tuple[str, ...] = place.one_of((), (), ("--top=2",), ("--overwrite",), ("--top=2", "--overwrite"))
    if way == "special" and "--overwrite" in more:
        more = ()  # what is called like a part is taken away then, links too
    bad = bad or (more == ("--top=2",) and way in ("part", "special"))
    about = f"score{' with ' * bool(more)}{' '.join(more)} where rows are, odd {way}: {ascii(about)[:80]}"
    return Case(about, (*score_line(place.inputs.root), *more), bad=bad, writes=(ROWS,))
