"""Which files of a folder are the data set: every real folder once, nothing hidden, and all the rest counted."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets

from lifedeploy.data.images import read_images, read_split
from lifedeploy.data.left_out import LeftOut, unique
from lifedeploy.data.sets import describe
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.data.walk import natural_key, walk
from lifedeploy.errors import DataError
from tests.pictures import class_folders, names, picture, reasons

NOT_AN_IMAGE = "no image by ending"
ELSEWHERE = "link to a folder that is read under another name"
LINKED = "link to a file that is read under another name"
ABOVE = "link to a folder that it lies in"


def lay_out(root: Path, layout: dict[str, str]) -> Path:
    """Files by name: an image for an image's ending, else text; ``-> TARGET`` makes a link, a final slash a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for number, (name, target) in enumerate(layout.items()):
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".gif") and path.name[0] != ".":
            kind = {".jpg": "JPEG", ".tif": "TIFF"}.get(path.suffix.lower(), path.suffix[1:].upper())
            picture(number).save(path, kind)
        else:
            path.write_text("no image")
    return root


def leaves(root: Path) -> int:
    """Everything in ``root`` that is no real folder, links not followed."""
    return sum(
        len(files) + sum(Path(folder, name).is_symlink() for name in folders)
        for folder, folders, files in os.walk(root)
    )


def files(*listed: str, **links: str) -> dict[str, str]:
    return dict.fromkeys(listed, "") | links


# name: (layout, names of the images that are used, reasons for the others, files beyond links that are followed)
ZOO: dict[str, tuple[dict[str, str], list[str], dict[str, int], int]] = {
    "plain": (files("a/1.png", "b/1.png"), ["a/1.png", "b/1.png"], {}, 0),
    "natural order": (
        files("10/b.png", "2/c.png", "2/C.png", "2/B10.png", "2/b9.png"),
        ["2/b9.png", "2/B10.png", "2/C.png", "2/c.png", "10/b.png"],
        {},
        0,
    ),
    "endings": (
        files("a/1.webp", "a/2.JPG", "a/3.jpeg", "a/4.tif", "a/5.gif", "a/6.jpg.txt", "a/7", "a/8.npy", "README.md"),
        ["a/1.webp", "a/2.JPG", "a/3.jpeg", "a/4.tif", "a/5.gif"],
        {f"{NOT_AN_IMAGE} (.md, .npy, .txt, none)": 4},
        0,
    ),
    "many endings": (
        files("a/1.png", *(f"a/{ending}.{ending}" for ending in ("v", "w", "x", "y", "z")), "a/w2.w"),
        ["a/1.png"],
        {f"{NOT_AN_IMAGE} (.w, .v, .x, .y, …)": 6},
        0,
    ),
    "hidden": (
        files("a/1.png", "a/._1.png", ".DS_Store", "a/.ipynb_checkpoints/1.png", ".git/objects/ab/cd", ".git/HEAD"),
        ["a/1.png"],
        {"hidden": 5},
        0,
    ),
    "nested": (
        files("animals/big/1.png", "cars/big/1.png", "animals/2.png", "animals/big/old/3.png"),
        ["animals/2.png", "animals/big/1.png", "animals/big/old/3.png", "cars/big/1.png"],
        {},
        0,
    ),
    "empty folders": (files("a/1.png", "b/", "c/d/"), ["a/1.png"], {}, 0),
    "names": (files("käse/ö 1.png", "猫/²3.png", "a b/#1.png"), ["a b/#1.png", "käse/ö 1.png", "猫/²3.png"], {}, 0),
    "link to the folder above": (
        files("a/1.png", "b/1.png") | {"a/up": "..", "b/here": "."},
        ["a/1.png", "b/1.png"],
        {ABOVE: 2},
        0,
    ),
    "link to a class": (
        files("b/1.png", "b/2.png") | {"a": "b", "c": "b"},
        ["b/1.png", "b/2.png"],
        {ELSEWHERE: 2},
        0,
    ),
    "links in a ring": (
        files("a/1.png", "b/1.png") | {"a/b": "../b", "b/a": "../a"},
        ["a/1.png", "b/1.png"],
        {ELSEWHERE: 2},
        0,
    ),
    "links to files": (
        files("a/1.png") | {"a/2.png": "1.png", "b/1.png": "../a/1.png"},
        ["a/1.png"],
        {LINKED: 2},
        0,
    ),
    "links to files outside": (
        files("a/1.png")
        | {
            "a/2.png": "../../outside/x/1.png",
            "b/2.png": "../../outside/x/1.png",
            "b/3.png": "../../outside/x/y/2.png",
        },
        ["a/1.png", "a/2.png", "b/3.png"],
        {LINKED: 1},
        0,
    ),
    "links to nowhere": (
        files("a/1.png") | {"a/2.png": "nothing.png", "b": "nowhere", "c": "c"},
        ["a/1.png"],
        {"link that leads nowhere": 3},
        0,
    ),
    "link to a folder outside": (
        files("a/1.png") | {"b": "../outside/x"},
        ["a/1.png", "b/1.png", "b/y/2.png"],
        {ABOVE: 1},
        3 - 1,
    ),
    "links to a folder outside, and into it": (
        files("q/1.png") | {"a": "../outside/x/y", "z": "../outside/x", "q/deep": "../../outside/x"},
        ["a/2.png", "q/1.png", "z/1.png"],
        {ABOVE: 1, "folder that is read under another name": 1, ELSEWHERE: 1},
        # x has 1.png and up, y has 2.png; the folder y itself is one that is passed over, two links are followed
        3 + 1 - 2,
    ),
    "link to a folder that holds this one": (files("a/1.png") | {"b": "../.."}, ["a/1.png"], {ABOVE: 1}, 0),
}


@pytest.mark.parametrize("layout", ZOO.values(), ids=list(ZOO))
def test_everything_in_a_folder_is_used_or_counted(tmp_path, layout):
    described, used, left, beyond = layout
    lay_out(tmp_path / "outside", files("x/1.png", "x/y/2.png") | {"x/up": "../x"})
    root = lay_out(tmp_path / "data", described)
    images = read_images(str(root))
    assert names(images) == used
    assert reasons(images) == left
    assert len(images) + sum(left.values()) == leaves(root) + beyond
    assert images.classes == tuple(sorted({str(Path(name).parent) for name in used}, key=natural_key))
    assert [images.classes[target] for target in images.targets] == [str(Path(name).parent) for name in used]
    assert all(isinstance(images.image(index), Image.Image) for index in range(len(images)))
    assert [asked.split(": ")[0] for asked in map(str, images.left_out)] == [
        f"{left.count} file{'' if left.count == 1 else 's'} of {root} {'is' if left.count == 1 else 'are'} not used"
        for left in images.left_out
    ]


def test_class_folders_come_in_timms_order(tmp_path):
    layout = ("b/img10.png", "b/img9.jpg", "b/IMG 1.png", "10/x.png", "9/x.png", "A/1.png", "a-1/1.png", "a b/1.jpeg")
    images = read_images(str(lay_out(tmp_path, files(*layout))))
    found, numbers = find_images_and_targets(str(tmp_path))
    assert names(images) == [str(Path(path).relative_to(tmp_path)) for path, _ in found]
    assert images.targets.tolist() == [target for _, target in found]
    assert images.classes == tuple(sorted(numbers, key=numbers.__getitem__))


def test_what_is_no_file_and_what_has_no_name_is_counted(tmp_path):
    lay_out(tmp_path, files("a/1.png"))
    os.mkfifo(tmp_path / "a" / "2.png")
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(str(tmp_path / "a" / "3.png"))
    for raw in (b"a/\xff.png", b"\xfe/1.png", b"\xfe/b/2.png"):
        path = os.fsencode(tmp_path) + b"/" + raw
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        Path(os.fsdecode(path)).write_bytes(b"")
    images = read_images(str(tmp_path))
    assert names(images) == ["a/1.png"]
    assert reasons(images) == {"no regular file": 2, "name that is not UTF-8": 3}
    assert len(images) + sum(reasons(images).values()) == leaves(tmp_path)
    "".join(map(str, images.left_out)).encode()  # can be printed, whatever the names were


def test_a_folder_that_cannot_be_opened_is_counted(tmp_path, monkeypatch):
    lay_out(tmp_path, files("a/1.png", "lost+found/2.png"))
    real = os.scandir

    def scandir(path: str):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    images = read_images(str(tmp_path))
    assert names(images) == ["a/1.png"]
    assert reasons(images) == {"folder that cannot be opened (Permission denied)": 1}
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"a/1\.png/ cannot be opened: Not a directory"):
        walk(tmp_path / "a" / "1.png")


def test_a_line_says_what_is_not_used_and_why():
    one = LeftOut(reason="hidden", count=1, first=".DS_Store", where="data")
    more = LeftOut(reason="no image by ending (.txt)", count=1200, first="notes.txt", where="data", unit="member")
    assert unique([one, more, one]) == [
        "1 file of data is not used: hidden: .DS_Store",
        "1,200 members of data are not used: no image by ending (.txt), the first is notes.txt",
    ]


def test_a_report_holds_what_is_not_used(tmp_path):
    lay_out(tmp_path, files("a/1.png", "a/line\nend.txt"))
    assert describe(read_images(str(tmp_path)))["left_out"] == [
        {
            "reason": "no image by ending (.txt)",
            "count": 1,
            "first": "a/line\\nend.txt",
            "where": str(tmp_path),
            "unit": "file",
        }
    ]


# --- halves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "train", "val", "beside", "beyond"),
    [
        (files("Train/a/1.png", "VAL/a/2.png"), ["a/1.png"], ["a/2.png"], {}, 0),
        (
            files("train/a/1.png", "val/a/2.png", "test/a/3.png", "extra/b/4.png", "5.png", "notes.txt", ".x"),
            ["a/1.png"],
            ["a/2.png"],
            {"image outside train/ and val/": 3, f"{NOT_AN_IMAGE} (.txt)": 1, "hidden": 1},
            0,
        ),
        (
            files("train/a/1.png", "training/a/2.png", "valid/a/3.png", "validation/a/4.png"),
            ["a/1.png"],
            ["a/4.png"],
            {"image outside train/ and validation/": 2},
            0,
        ),
        # a link in one half to a folder of the other, whichever is looked at first
        (
            files("train/a/1.png", "val/b/2.png") | {"train/b": "../val/b", "val/a": "../train/a"},
            ["a/1.png"],
            ["b/2.png"],
            {},
            0,
        ),
        # halves that are links themselves, one reaching into the other
        (
            files(".pool/t/a/1.png", ".pool/v/a/2.png") | {"train": ".pool/t", "val": ".pool/v", ".pool/t/b": "../v/a"},
            ["a/1.png"],
            ["a/2.png"],
            {"hidden": 3},
            1,  # two links are followed, and the three files behind them counted as hidden where they lie
        ),
        # links to single files of the other half, and of both halves to one outside
        (
            files("train/a/1.png", "val/a/2.png", ".pool/3.png")
            | {
                "train/a/2.png": "../../val/a/2.png",
                "val/a/1.png": "../../train/a/1.png",
                "train/a/3.png": "../../.pool/3.png",
                "val/a/3.png": "../../.pool/3.png",
                "train/a/again.png": "1.png",
            },
            ["a/1.png"],
            ["a/2.png", "a/3.png"],
            {"hidden": 1},
            0,
        ),
        # halves that choose among what lies beside them
        (
            files("all/a/1.png", "all/b/2.png", "all/c/3.png")
            | {"train/a": "../all/a", "val/a": "../all/b", "train/again": "../all/a", "val/b": "../all/a"},
            ["a/1.png"],
            ["a/2.png"],
            {"image outside train/ and val/": 1, "folder that is read under another name": 2},
            0,  # two links are followed, and two folders passed over
        ),
    ],
    ids=["case", "beside", "precedence", "linked classes", "linked halves", "linked files", "linked beside"],
)
def test_no_image_is_in_both_halves(tmp_path, layout, train, val, beside, beyond):
    root = lay_out(tmp_path, layout)
    halves = {half: read_images(str(root), split=half) for half in ("train", "val")}
    assert {half: names(images) for half, images in halves.items()} == {"train": train, "val": val}
    both = [images.left_out for images in halves.values()]
    shared = [left for left in both[0] if left in both[1]]
    assert {left.reason: left.count for left in shared} == beside
    own = sum(left.count for lefts in both for left in lefts if left not in shared)
    assert len(train) + len(val) + own + sum(beside.values()) == leaves(root) + beyond
    real = [{(root / half / name).resolve() for name in listed} for half, listed in (("train", train), ("val", val))]
    assert not real[0] & real[1]


def test_a_training_half_that_is_a_link_to_the_other_is_none(tmp_path):
    lay_out(tmp_path, files("val/a/1.png", "val/a/2.png") | {"train": "val"})
    split = read_split(str(tmp_path), val_share=0.5)
    assert (len(split.train), len(split.val), split.train.source) == (1, 1, str(tmp_path / "val"))
    assert reasons(split.train) == {ELSEWHERE: 1}


def test_a_validation_half_alone_is_read_as_one_whatever_is_hidden_beside_it(tmp_path):
    lay_out(tmp_path, files("val/a/1.png", ".cache/x.png", "labels.csv"))
    images = read_images(str(tmp_path), split="val")
    assert images.source == str(tmp_path / "val")
    assert reasons(images) == {"hidden": 1, f"{NOT_AN_IMAGE} (.csv)": 1}
    lay_out(tmp_path, files("cat/a.png"))  # now val/ is a class like others
    assert read_images(str(tmp_path)).classes == ("cat", "val/a")


def test_both_halves_say_what_is_left_out_of_them_and_once_what_lies_beside(tmp_path):
    lay_out(tmp_path, files("train/a/1.png", "train/x.txt", "val/a/2.png", "val/y.csv", "README"))
    split = read_split(str(tmp_path))
    assert unique((*split.train.left_out, *split.val.left_out)) == [
        f"1 file of {tmp_path}/train is not used: no image by ending (.txt): x.txt",
        f"1 file of {tmp_path} is not used: no image by ending (none): README",
        f"1 file of {tmp_path}/val is not used: no image by ending (.csv): y.csv",
    ]


def test_a_share_that_is_held_out_says_the_same_as_the_whole(tmp_path):
    class_folders(tmp_path, {"a": 10})
    (tmp_path / "notes.txt").touch()
    split = read_split(str(tmp_path))
    assert split.train.left_out == split.val.left_out == read_images(str(tmp_path)).left_out != ()


def test_a_folder_without_images_says_what_there_is(tmp_path):
    lay_out(tmp_path, files("a/1.npy", "a/2.npy"))
    for read in (read_images, read_unlabelled):
        with pytest.raises(
            DataError, match=r"holds no images; 2 files of .* are not used: no image by ending \(\.npy\)"
        ):
            read(str(tmp_path))


# --- without classes --------------------------------------------------------------------------------------------


def test_loose_images_are_found_by_the_same_rules(tmp_path):
    lay_out(tmp_path, files("b.webp", "a.JPG", "10.png", "9.png", "._a.jpg", "notes.txt", "empty/"))
    images = read_unlabelled(str(tmp_path))
    assert names(images) == ["10.png", "9.png", "a.JPG", "b.webp"]  # as names sort
    assert reasons(images) == {"hidden": 1, f"{NOT_AN_IMAGE} (.txt)": 1}
    assert len(images) + 2 == leaves(tmp_path)
    (tmp_path / "here").symlink_to(".")  # no folder with images: it is this one
    assert reasons(read_unlabelled(str(tmp_path)))[ABOVE] == 1
    lay_out(tmp_path, files("more/c.tif"))
    with pytest.raises(DataError, match=r"images and folders with images: 10\.png, more/c\.tif"):
        read_unlabelled(str(tmp_path))


def test_class_folders_are_calibrated_on_by_their_training_half(tmp_path):
    lay_out(tmp_path, files("train/a/1.webp", "val/a/2.png", "notes.txt"))
    assert names(read_unlabelled(str(tmp_path))) == ["a/1.webp"]
    assert names(read_unlabelled(str(tmp_path), split="val")) == ["a/2.png"]
    assert reasons(read_unlabelled(str(tmp_path))) == {f"{NOT_AN_IMAGE} (.txt)": 1}
    assert names(read_unlabelled(str(tmp_path / "val"))) == ["a/2.png"]


def test_a_share_that_is_held_out_has_no_image_that_is_trained_on(tmp_path):
    """Not by another name either."""
    layout = files(*(f"{name}/{index}.png" for name in "ab" for index in range(6)))
    layout |= {f"{name}/copy{index}.png": f"{index}.png" for name in "ab" for index in range(6)}
    root = lay_out(tmp_path, layout)
    split = read_split(str(root), val_share=0.5)
    train, val = ({(root / name).resolve() for name in names(half)} for half in (split.train, split.val))
    assert (len(train), len(val)) == (6, 6)
    assert not train & val
    assert reasons(split.train) == {LINKED: 12}


def test_data_that_is_not_named_is_not_the_current_folder():
    for read in (read_images, read_split, read_unlabelled):
        with pytest.raises(DataError, match="no data is named"):
            read("")
