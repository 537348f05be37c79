"""Names of files and classes: in order whatever is in them, and shown as text that only prints."""

from __future__ import annotations

import os
from dataclasses import asdict

from lifedeploy.data.images import read_images
from lifedeploy.data.left_out import unique
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.data.walk import natural_key
from lifedeploy.files import readable_json
from tests.pictures import names, picture


def test_names_are_in_order_whatever_digits_are_in_them():
    names = ["a²", "a10", "a9", "a٣", "a" + "9" * 10_000, "a" + "1" * 10_000, "a1", "１２", "\ufeff1"]
    ordered = sorted(names, key=natural_key)
    assert [name for name in ordered if len(name) < 5 and name.isascii()] == ["a1", "a9", "a10"]
    assert ordered.index("a1") < ordered.index("a٣") < ordered.index("a9")  # a three
    assert ordered.index("a" + "1" * 10_000) < ordered.index("a" + "9" * 10_000)
    assert sorted([*names[4:], *names[:4]], key=natural_key) == ordered


def test_what_is_left_out_is_said_in_a_line_of_what_prints(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9\x1b[31m")
    (root / "a").mkdir(parents=True)
    picture(0).save(root / "a" / "0.png")
    for name in ("x.\x1b]0;t\x07", "long." + "y" * 240, "n\nl.txt", os.fsdecode(b"caf\xe9.png")):
        (root / name).touch()
    lines = unique(read_images(str(root)).left_out)
    assert all(line.isprintable() and len(line) < 600 for line in lines)
    assert len(lines) == 2
    assert r"caf\xe9\x1b[31m" in lines[0]


def test_calibration_images_of_a_folder_that_is_no_utf8_are_read(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    root.mkdir()
    picture(5).save(root / "0.png")
    picture(6).save(root / os.fsdecode(b"\xe9.png"))
    images = read_unlabelled(str(root))
    assert names(images) == ["0.png"]
    assert images.image(0).getpixel((0, 0))[0] == 5
    written = readable_json({"source": images.source, "left_out": [asdict(left) for left in images.left_out]})
    assert r"caf\\xe9" in written and written.encode("utf-8")
