"""Files below a folder: all that is meant, in one order, one after the other; and what is passed over, counted."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lifedeploy.data.left_out import LeftOutCounter
from lifedeploy.errors import DataError
from lifedeploy.scoring.listing import files_below, is_image, is_pattern, is_shard, matches, split_pattern
from lifedeploy.scoring.places import LocalPlace
from tests.data.test_walk import files, lay_out

ABOVE = "link to a folder that it lies in"


def found(
    root: Path, pattern: str = "", *, wanted: Callable[[str], bool] = is_image, what: str = "image"
) -> tuple[list[str], dict[str, int]]:
    """The names, and how many were passed over for which reason."""
    passed = LeftOutCounter()
    names = [name for name, _ in files_below(LocalPlace(root), wanted, passed, what=what, pattern=pattern)]
    return names, {left.reason: left.count for left in passed.but((), str(root))}


# name: (layout, names that are listed, reasons for the others)
ZOO: dict[str, tuple[dict[str, str], list[str], dict[str, int]]] = {
    "order of names, a folder where its name is": (
        files("b.png", "a/2.png", "a/10.png", "a.png", "a-b.png", "B.png", "a/c/1.png", "ä.png"),
        ["B.png", "a/10.png", "a/2.png", "a/c/1.png", "a-b.png", "a.png", "b.png", "ä.png"],
        {},
    ),
    "endings": (
        files("1.webp", "2.JPG", "3.tif", "4.jpg.txt", "5", "6.npy", "x.tar", "README.md"),
        ["1.webp", "2.JPG", "3.tif"],
        {"no image by name (.md, .npy, .tar, .txt, …)": 5},
    ),
    "hidden": (files("1.png", "._1.png", ".git/HEAD", "a/.cache/2.png", "a/.x"), ["1.png"], {"hidden": 4}),
    "empty folders": (files("a/", "b/c/", "d/1.png"), ["d/1.png"], {}),
    "names that a table has to quote": (
        files("a b/#1,2.png", 'a"b".png', "line\nend.png", "back\rhome.png", "猫/²3.png"),
        ["a b/#1,2.png", 'a"b".png', "back\rhome.png", "line\nend.png", "猫/²3.png"],
        {},
    ),
    "links to files, and to a folder beside": (
        files("a/1.png") | {"a/2.png": "1.png", "b": "a", "c.png": "../outside/x/1.png"},
        ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "c.png"],
        {},
    ),
    "links to nowhere and to themselves": (
        files("1.png") | {"2.png": "nothing.png", "3": "nowhere", "4.png": "4.png", "5": "5"},
        ["1.png"],
        {"no regular file": 2, "no image by name (none)": 2},
    ),
    "links to folders above": (
        files("a/b/1.png") | {"a/here": ".", "a/up": "..", "a/b/top": "../..", "a/b/out": "../../..", "root": "/"},
        ["a/b/1.png"],
        {ABOVE: 5},
    ),
    "links in a ring": (
        files("a/1.png", "b/1.png") | {"a/b": "../b", "b/a": "../a"},
        ["a/1.png", "a/b/1.png", "b/1.png", "b/a/1.png"],
        {ABOVE: 2},
    ),
    "a ring outside": (
        files("1.png") | {"x": "../outside/x"},
        ["1.png", "x/1.png", "x/y/2.png"],
        {ABOVE: 1},
    ),
}


@pytest.mark.parametrize(("layout", "names", "left"), ZOO.values(), ids=list(ZOO))
def test_every_file_is_listed_or_counted(tmp_path, layout, names, left):
    lay_out(tmp_path / "outside", files("x/1.png", "x/y/2.png") | {"x/y/up": "../../x"})
    assert found(lay_out(tmp_path / "data", layout)) == (names, left)


def test_the_order_is_not_that_of_the_file_system(tmp_path, monkeypatch):
    lay_out(tmp_path, files("b/2.png", "b/1.png", "a/3.png", "c.png"))
    real = os.scandir

    class Backwards:
        def __init__(self, path: Path) -> None:
            with real(path) as listing:
                self._entries = sorted(listing, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self._entries

        def __exit__(self, *ended: object) -> None:
            pass

        def __iter__(self) -> object:
            return iter(self._entries)

    monkeypatch.setattr(os, "scandir", Backwards)
    assert found(tmp_path) == (["a/3.png", "b/1.png", "b/2.png", "c.png"], {})


def test_a_root_that_is_a_link_lies_where_it_leads_to(tmp_path):
    lay_out(tmp_path, files("real/deep/1.png") | {"real/deep/up": "..", "data": "real/deep"})
    assert found(tmp_path / "data") == (["1.png"], {ABOVE: 1})


def test_what_is_no_file_is_counted_and_never_opened(tmp_path):
    lay_out(tmp_path, files("1.png"))
    os.mkfifo(tmp_path / "2.png")
    (tmp_path / "3.png").symlink_to("/dev/zero")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).touch()
    assert found(tmp_path) == (["1.png"], {"no regular file": 2, "name that is not UTF-8": 1})


def test_folders_are_opened_when_their_turn_comes(tmp_path, monkeypatch):
    lay_out(tmp_path, files("a/1.png", "a/2.png", "b/1.png", "c/1.png"))
    opened: list[str] = []
    real = LocalPlace.entries

    def entries(place: LocalPlace) -> object:
        opened.append(place.name)
        return real(place)

    monkeypatch.setattr(LocalPlace, "entries", entries)
    listing = files_below(LocalPlace(tmp_path), is_image, LeftOutCounter())
    assert opened == []
    assert next(listing) == ("a/1.png", 0)
    assert opened == [tmp_path.name, "a"]
    assert [name for name, _ in listing] == ["a/2.png", "b/1.png", "c/1.png"]
    assert opened == [tmp_path.name, "a", "b", "c"]


def refusing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have the folder of this name be one that cannot be listed; root may read all there are."""
    real = os.scandir

    def scandir(path: Path | int) -> object:
        if not isinstance(path, int) and Path(path).name == name:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_opened_is_counted(tmp_path, monkeypatch):
    lay_out(tmp_path, files("a/1.png", "lost+found/2.png"))
    refusing(monkeypatch, "lost+found")
    assert found(tmp_path) == (["a/1.png"], {"folder that cannot be opened (Permission denied)": 1})


def test_a_folder_whose_folders_cannot_be_looked_at_is_counted(tmp_path, monkeypatch):
    """Its names can be read (``r--``), and nothing of what they name."""
    lay_out(tmp_path, files("a/1.png", "b/c/2.png"))
    real = LocalPlace.identity

    def identity(place: LocalPlace) -> object:
        if place.path == tmp_path / "b" / "c":
            raise DataError(f"{place} cannot be read: Permission denied")
        return real(place)

    monkeypatch.setattr(LocalPlace, "identity", identity)
    names, left = found(tmp_path)
    assert names == ["a/1.png"]
    assert sum(left.values()) == 1
    assert "Permission denied" in next(iter(left))


def test_a_root_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch):
    lay_out(tmp_path / "data", files("a/1.png"))
    refusing(monkeypatch, "data")
    with pytest.raises(DataError, match=r"data cannot be read: Permission denied"):
        found(tmp_path / "data")


def test_shards_are_listed_in_the_same_way(tmp_path):
    lay_out(tmp_path, files("b/2.tar", "a.TAR", "x.tar.gz", "1.png", ".h.tar"))
    names, left = found(tmp_path, wanted=is_shard, what="shard")
    assert names == ["a.TAR", "b/2.tar"]
    assert left == {"no shard by name (.gz, .png)": 2, "hidden": 1}


# --- patterns ---------------------------------------------------------------------------------------------------

TREE = files(
    *("x.png", "y.jpg", "notes.txt", "a1/x.png", "a1/y.jpg", "a1/deep/x.png", "a1/deep/er/z.png", "a2/x.png"),
    *("b/x.png", "b/[x].png", "[b]/x.png", "Ab/x.png", "b/a*.png"),
)


@pytest.mark.parametrize(
    "pattern",
    [
        *("*.png", "*", "?.png", "*/x.png", "a?/x.png", "a[12]/*", "a[!1]/*.png", "[aA]*/x.png", "*/*/x.png"),
        *("**/x.png", "**", "**/*.jpg", "**/deep/*.png", "**/deep/**", "a1/**/*.png", "**/**/z.png", "a1/*/*/*.png"),
        *("[[]b]/*", "b/[[]*", "b/a[*].png", "a*/y.*", "**/[xz].png", "a?/d*p/x.png", "*.gif", "a1/**/er/z.png"),
    ],
)
def test_patterns_mean_what_glob_means(tmp_path, pattern):
    lay_out(tmp_path, TREE)
    meant = glob.glob(pattern, root_dir=tmp_path, recursive=True)  # noqa: PTH207
    expected = {name for name in meant if (tmp_path / name).is_file()}
    names, left = found(tmp_path, pattern)
    assert len(names) == len(set(names))
    assert set(names) == {name for name in expected if is_image(name)}
    assert sum(left.values()) == sum(not is_image(name) for name in expected)


def test_what_a_pattern_does_not_mean_is_not_counted(tmp_path):
    lay_out(tmp_path, files("1.png", "2.txt", "a/3.txt", "a/4.png", ".5.txt", ".6.png"))
    assert found(tmp_path, "*.png") == (["1.png"], {"hidden": 1})
    assert found(tmp_path, "*/*.txt") == ([], {"no image by name (.txt)": 1})


def test_folders_that_a_pattern_does_not_mean_are_not_counted(tmp_path, monkeypatch):
    lay_out(tmp_path, files("1.png", "a/2.png", ".git/HEAD", "b/.cache/3.png", "lost/4.png") | {"b/up": ".."})
    refusing(monkeypatch, "lost")
    assert found(tmp_path, "*.png") == (["1.png"], {})
    assert found(tmp_path, "[a]/*.png") == (["a/2.png"], {})


def test_a_pattern_without_any_number_of_folders_goes_no_deeper_than_it_is_long(tmp_path, monkeypatch):
    lay_out(tmp_path, files("a/1.png", "a/b/2.png", "a/b/c/3.png"))
    opened: list[str] = []
    real = LocalPlace.entries
    monkeypatch.setattr(LocalPlace, "entries", lambda place: opened.append(place.name) or real(place))
    assert found(tmp_path, "*/*.png") == (["a/1.png"], {})
    assert opened == [tmp_path.name, "a"]


@pytest.mark.parametrize(
    ("text", "folder", "pattern"),
    [
        ("photos/a*/*.jpg", "photos", "a*/*.jpg"),
        ("photos/2020/**/x?.jpg", "photos/2020", "**/x?.jpg"),
        ("*.jpg", ".", "*.jpg"),
        ("/*.jpg", "/", "*.jpg"),
        ("/data/[ab].jpg", "/data", "[ab].jpg"),
        ("../p*/q.jpg", "..", "p*/q.jpg"),
        ("s3://bucket/p*/q.jpg", "s3://bucket", "p*/q.jpg"),
        ("s3://bucket/*", "s3://bucket", "*"),
    ],
)
def test_a_pattern_begins_at_its_first_wildcard(text, folder, pattern):
    assert is_pattern(text)
    assert split_pattern(text) == (folder, pattern)


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("a/b.png", "*", False),
        ("a/b.png", "*.png", False),
        ("a/b.png", "**.png", False),
        ("a/b/c.png", "a/**/c.png", True),
        ("a/c.png", "a/**/c.png", True),
        ("c.png", "a/**/c.png", False),
        ("a.png", "A.png", False),
        ("a.png", "?.png", True),
        ("ab.png", "?.png", False),
    ],
)
def test_a_wildcard_stays_within_a_folder(name, pattern, expected):
    assert matches(name, pattern) is expected
