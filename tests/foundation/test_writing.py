"""Files and folders under their final name: whole or not at all, whoever dies, writes too, or has no room."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lifedeploy import caches, files, temporary, writing
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.writing import atomic_file, atomic_folder, saving, scratch_folder, sole_writer
from tests.conftest import full_disk

INTERRUPTIONS = [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3)]
names = pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=lambda error: type(error).__name__)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def another_process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python process that runs ``code``; gives it once it has printed the line ``until``."""
    with ExitStack() as processes:

        def start(code: str, *arguments: object, until: str = "") -> subprocess.Popen[str]:
            command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes.enter_context(process)
            if until:
                assert process.stdout is not None and process.stdout.readline().strip() == until
            return process

        yield start


# --- whole or not at all ----------------------------------------------------------------------------------------


def test_atomic_file_appears_under_its_name_only_when_complete(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    with atomic_file(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("content")
        assert not path.exists()
    assert path.read_text() == "content"
    assert listing(path.parent) == ["file.bin"]


@names
def test_atomic_file_leaves_nothing_behind_when_it_fails(tmp_path, interruption):
    with pytest.raises(type(interruption)), atomic_file(tmp_path / "file.bin") as temporary:
        temporary.write_text("half")
        raise interruption
    assert listing(tmp_path) == []


@names
def test_atomic_file_keeps_the_previous_content_when_it_fails(tmp_path, interruption):
    path = tmp_path / "file.bin"
    path.write_text("previous")
    with pytest.raises(type(interruption)), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise interruption
    assert path.read_text() == "previous"
    assert listing(tmp_path) == ["file.bin"]


def test_atomic_folder_appears_under_its_name_only_when_complete(tmp_path):
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("new")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert (path / "a").read_text() == "new"
    assert listing(path.parent) == ["folder"]


def test_atomic_folder_replaces_as_a_whole(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with atomic_folder(path) as temporary:
        (temporary / "new").write_text("new")
        assert listing(path) == ["old"]
    assert listing(path) == ["new"]
    assert listing(tmp_path) == ["folder"]


@names
def test_atomic_folder_leaves_nothing_behind_when_it_fails(tmp_path, interruption):
    with pytest.raises(type(interruption)), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("half")
        raise interruption
    assert listing(tmp_path) == []


@names
def test_atomic_folder_keeps_the_previous_content_when_it_fails(tmp_path, interruption):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(type(interruption)), atomic_folder(path) as temporary:
        (temporary / "new").write_text("half")
        raise interruption
    assert (path / "old").read_text() == "old"
    assert listing(path) == ["old"]
    assert listing(tmp_path) == ["folder"]


@names
def test_atomic_folder_puts_the_previous_one_back_when_the_last_rename_fails(tmp_path, monkeypatch, interruption):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    rename = Path.rename

    def rename_but_not_the_new_one(self: Path, target: Path) -> Path:
        if (self / "new").exists() and not target.exists():
            raise interruption
        return rename(self, target)

    monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", rename_but_not_the_new_one)
    with pytest.raises(type(interruption)), atomic_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert path.is_dir() and listing(path) == ["old"]
    assert listing(tmp_path) == ["folder"]


@names
@pytest.mark.parametrize("folder", [False, True])
def test_an_interruption_while_the_name_is_made_leaves_nothing_behind(tmp_path, monkeypatch, interruption, folder):
    """It is heard of when the disk has answered, and the name is there by then."""

    def interrupted(path: Path, *, folder: bool) -> int:
        assert path.exists()
        raise interruption

    monkeypatch.setattr(temporary, "lock", interrupted)
    with pytest.raises(type(interruption)), temporary.temporary(tmp_path / "new", folder=folder):
        raise AssertionError("there is no name")
    assert listing(tmp_path) == []


def test_a_name_that_somebody_has_is_left_to_them(tmp_path, monkeypatch):
    owned = iter([".a.lifedeploy-tmp", ".b.lifedeploy-tmp"])
    monkeypatch.setattr(temporary, "_owned", lambda path, ending: next(owned))
    (tmp_path / ".a.lifedeploy-tmp").write_text("theirs")
    with temporary.temporary(tmp_path / "new", folder=False) as name:
        assert name.name == ".b.lifedeploy-tmp"
    assert listing(tmp_path) == [".a.lifedeploy-tmp"]
    assert (tmp_path / ".a.lifedeploy-tmp").read_text() == "theirs"


def test_files_and_folders_get_the_permissions_that_plain_ones_would(tmp_path):
    before = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("x")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


# --- what is at the name already --------------------------------------------------------------------------------


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("old")
    (tmp_path / "link").symlink_to("real/file")
    (tmp_path / "dangling").symlink_to("real/new")
    (tmp_path / "folder").symlink_to("real")
    with atomic_file(tmp_path / "link") as staging:
        staging.write_text("new")
    with atomic_file(tmp_path / "dangling") as staging:
        staging.write_text("made")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "file").read_text() == "new"
    assert (tmp_path / "dangling").is_symlink() and (tmp_path / "real" / "new").read_text() == "made"
    with atomic_folder(tmp_path / "folder") as staging:
        (staging / "only").touch()
    assert (tmp_path / "folder").is_symlink() and listing(tmp_path / "real") == ["only"]
    assert listing(tmp_path) == ["dangling", "folder", "link", "real"]


def test_devices_and_pipes_stay_what_they_are(tmp_path):
    with atomic_file(Path("/dev/null")) as staging:
        staging.write_text("gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)) as reader:  # there before the writer is
        with atomic_file(pipe) as staging:
            staging.write_text("through the pipe")
        assert reader.read() == "through the pipe"
    assert stat.S_ISFIFO(pipe.stat().st_mode) and listing(tmp_path) == ["pipe"]


def test_what_is_open_already_is_written_on(tmp_path):
    code = """
        from pathlib import Path
        from lifedeploy.writing import atomic_file
        print("before", flush=True)
        with atomic_file(Path("/dev/stdout")) as staging:
            staging.write_text("report\\n")
        print("after", flush=True)
        """
    log = tmp_path / "log"
    log.write_text("earlier\n")
    with log.open("a") as sink:
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], stdout=sink, check=True)
    assert log.read_text().split() == ["earlier", "before", "report", "after"]


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o600)
    with atomic_file(path) as staging:
        staging.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_does_not_take_the_place_of_a_file(tmp_path):
    path = tmp_path / "name"
    path.write_text("a file")
    with pytest.raises(NotADirectoryError) as caught, atomic_folder(path):
        pass
    assert caught.value.filename == str(path)
    assert path.read_text() == "a file" and listing(tmp_path) == ["name"]


# --- others at the same time ------------------------------------------------------------------------------------


def test_readers_find_a_folder_at_every_moment(tmp_path):
    path = tmp_path / "folder"
    with atomic_folder(path) as staging:
        (staging / "file").write_text("0")
    missed: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                (path / "file").read_text()
            except OSError as error:
                missed.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        with atomic_folder(path) as staging:
            (staging / "file").write_text(str(number))
    done.set()
    reader.join()
    assert missed == []
    assert (path / "file").read_text() == "199" and listing(tmp_path) == ["folder"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanging names", "without"])
def test_writers_at_the_same_time_do_not_fail_each_other(tmp_path, exchange, another_process):
    code = """
        import sys
        from pathlib import Path
        from lifedeploy import writing
        if sys.argv[2] == "False":
            writing._exchange = lambda one, other: False
        for number in range(100):
            with writing.atomic_folder(Path(sys.argv[1])) as staging:
                (staging / "a").write_text(sys.argv[3])
                (staging / "b").write_text(sys.argv[3])
        """
    writers = [another_process(code, tmp_path / "folder", exchange, name) for name in ("one", "two", "three")]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert (tmp_path / "folder" / "a").read_text() == (tmp_path / "folder" / "b").read_text()
    assert listing(tmp_path) == ["folder"]


def test_a_folder_has_one_writer_at_a_time(tmp_path, another_process):
    code = """
        import sys
        from pathlib import Path
        from lifedeploy.writing import sole_writer
        with sole_writer(Path(sys.argv[1])):
            print("held", flush=True)
            sys.stdin.read()
        """
    holder = another_process(code, tmp_path, until="held")
    with pytest.raises(UsageError, match="is being written to by another process"), sole_writer(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with sole_writer(tmp_path), pytest.raises(UsageError), sole_writer(tmp_path):
        pass
    with sole_writer(tmp_path):
        assert listing(tmp_path) == []


def test_a_lock_ends_with_its_process_though_children_of_it_live(tmp_path, another_process):
    code = """
        import os, sys, time
        from pathlib import Path
        from lifedeploy.writing import sole_writer
        with sole_writer(Path(sys.argv[1])):
            if os.fork() == 0:
                print("held", flush=True)
                time.sleep(20)
                os._exit(0)
            time.sleep(20)
        """
    holder = another_process(code, tmp_path, until="held")
    holder.kill()
    holder.wait()
    with sole_writer(tmp_path):
        pass


# --- owners that die --------------------------------------------------------------------------------------------

WRITING_FOREVER = """
    import sys, time
    from pathlib import Path
    from lifedeploy.writing import atomic_file, atomic_folder, scratch_folder
    with atomic_folder(Path(sys.argv[1]) / "folder") as folder, atomic_file(Path(sys.argv[1]) / "file") as file:
        (folder / "inner").mkdir()
        (folder / "inner" / "half").write_text("half")
        file.write_text("half")
        with scratch_folder() as scratch:
            (scratch / "x").touch()
            print("writing", flush=True)
            time.sleep(60)
    """


def write(folder: Path) -> None:
    with atomic_file(folder / "other") as staging:
        staging.touch()


def test_what_a_killed_writer_left_goes_with_the_next_one_and_a_living_ones_stays(
    tmp_path, monkeypatch, another_process
):
    place, scratch = tmp_path / "place", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    writer = another_process(WRITING_FOREVER, place, until="writing")
    write(place)
    with scratch_folder():
        pass
    left = [name for name in listing(place) if name != "other"]
    assert len(left) == 2 and all(map(temporary.is_temporary, left)), "its owner lives"
    assert all(f"-{writer.pid}." in name for name in left)
    assert len(listing(scratch)) == 1
    writer.kill()
    writer.wait()
    write(place)
    with scratch_folder():
        pass
    assert listing(place) == ["other"] and listing(scratch) == []
    monkeypatch.setattr("tempfile.tempdir", None)


def test_without_locks_the_process_number_decides(tmp_path, monkeypatch, another_process):
    without = WRITING_FOREVER.replace("import sys, time", "import sys, time; sys.modules['fcntl'] = None")
    writer = another_process(without, tmp_path, until="writing")
    monkeypatch.setattr(temporary, "fcntl", None)
    write(tmp_path)
    assert len(listing(tmp_path)) == 3
    writer.kill()
    writer.wait()
    elsewhere = tmp_path / f".file.otherhost-{writer.pid}.0123abcd.lifedeploy-tmp"
    elsewhere.touch()
    write(tmp_path)
    assert listing(tmp_path) == [elsewhere.name, "other"], "of another host nobody here can tell"


def test_no_writer_loses_its_folder_to_others_that_sweep(tmp_path, another_process):
    code = """
        import sys, time
        from pathlib import Path
        from lifedeploy.temporary import temporary
        lost, end = 0, time.time() + 3
        while time.time() < end:
            with temporary(Path(sys.argv[1]) / "x", folder=True) as folder:
                for _ in range(3):
                    lost += not folder.exists()
        sys.exit(min(lost, 1))
        """
    writers = [another_process(code, tmp_path) for _ in range(8)]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 8
    assert listing(tmp_path) == []


def test_what_was_put_aside_comes_back_when_its_successor_does_not(tmp_path, another_process):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    code = """
        import os, sys
        from pathlib import Path
        from lifedeploy import writing
        writing._exchange = lambda one, other: False
        Path.rename = lambda self, target, rename=Path.rename: (
            os._exit(9) if (self / "new").exists() and not target.exists() else rename(self, target)
        )
        with writing.atomic_folder(Path(sys.argv[1])) as staging:
            (staging / "new").touch()
        """
    assert another_process(code, path).wait(timeout=60) == 9
    assert not path.exists() and all(map(temporary.is_temporary, listing(tmp_path)))
    write(tmp_path)
    assert listing(tmp_path) == ["folder", "other"] and listing(path) == ["old"]


def test_a_folder_that_is_in_use_is_not_taken_away(tmp_path, another_process):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    code = """
        import sys
        from pathlib import Path
        from lifedeploy.writing import atomic_folder
        with atomic_folder(Path(sys.argv[1])) as staging:
            (staging / "new").touch()
            print("made", flush=True)
        """
    with writing.in_use(path, tmp_path / "missing"), writing.in_use(path):
        writer = another_process(code, path, until="made")
        time.sleep(0.5)
        assert writer.poll() is None and listing(path) == ["old"]
    assert writer.wait(timeout=60) == 0 and listing(path) == ["new"]


def test_what_is_temporary_is_told_by_its_name():
    assert temporary.is_temporary(".model.onnx.host-12.0123abcd.lifedeploy-tmp")
    assert not temporary.is_temporary("model.onnx.host-12.0123abcd.lifedeploy-tmp")
    assert not temporary.is_temporary(".model.onnx.host-12345678901234567890.0123abcd.lifedeploy-tmp")  # no process
    assert not temporary.is_temporary(".model.onnx")
    assert not temporary.is_temporary(".model.lifedeploy-tmp")


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "a\nb", os.fsdecode(b"caf\xe9"), "-"])
def test_any_name_that_a_file_may_have_can_be_written(tmp_path, name):
    for place in (atomic_file, atomic_folder):
        with place(tmp_path / place.__name__ / name):
            pass
        assert listing(tmp_path / place.__name__) == [name]


# --- no room ----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_reported_with_the_file_that_could_not_be_written(tmp_path):
    path = tmp_path / "report.json"
    with full_disk(4096), pytest.raises(OSError) as caught:
        files.write_json(path, {"text": "x" * 10_000})
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    with full_disk(4096), pytest.raises(OSError) as caught, atomic_folder(tmp_path / "export") as staging:
        model = staging / "model.onnx"
        with saving(model), model.open("wb") as file:
            file.write(bytes(10_000))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "export" / "model.onnx"))
    with full_disk(4096), pytest.raises(OSError) as caught, atomic_folder(tmp_path / "export") as staging:
        (staging / "model.onnx").write_bytes(bytes(10_000))
    assert caught.value.filename == str(tmp_path / "export"), "nobody said which of its files"
    assert listing(tmp_path) == []


def test_a_library_that_does_not_know_of_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(OSError) as caught, saving(tmp_path / "picture.pdf"):
        raise AttributeError("'Stream' object has no attribute 'pos'")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "picture.pdf"))


def test_what_a_library_raises_when_it_cannot_write_names_the_file(tmp_path):
    with pytest.raises(OSError) as caught, atomic_file(tmp_path / "weights") as staging, saving(staging):
        raise RuntimeError("unexpected pos 64\n\nvs 0")
    assert caught.value.filename == str(tmp_path / "weights")
    assert caught.value.strerror == "it cannot be written: unexpected pos 64 vs 0"
    with pytest.raises(OSError) as caught, atomic_file(tmp_path / "weights"):
        (tmp_path / "missing").read_text()
    assert caught.value.filename == str(tmp_path / "missing"), "that was not written but read"


def test_outputs_are_looked_at_before_the_work(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for good in (tmp_path / "new.json", tmp_path / "file", Path("/dev/null")):
        writing.require_writable(good)
    for path, problem in (
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "none" / "x.json", "is no folder"),
        (tmp_path / "file" / "x.json", "is no folder"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "a\0b", "null"),
        (Path("/proc/x.json"), "cannot be written to"),
    ):
        with pytest.raises(UsageError, match=problem):
            writing.require_writable(path)
    for good in (tmp_path / "folder", tmp_path / "deep" / "er"):
        writing.require_folder(good)
    for path, problem in (
        (tmp_path / "file", "is no folder"),
        (tmp_path / "file" / "below", "is no folder"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "a\0b", "null"),
    ):
        with pytest.raises(UsageError, match=problem):
            writing.require_folder(path)
    assert listing(tmp_path) == ["file", "folder"]


# --- caches and times -------------------------------------------------------------------------------------------


def test_caches_are_for_nobody_else_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "lifedeploy").mkdir(mode=0o777)
    before = os.umask(0)
    try:
        folder = caches.private_cache("kernels")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "lifedeploy").stat().st_mode) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ArtifactError, match="belongs to another user"):
        caches.private_cache("kernels")


def test_the_time_can_be_set_for_builds_that_are_to_be_equal(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert files.now() == "2023-11-14T22:13:20+00:00"
    for nonsense in ("", "soon", "²", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", nonsense)
        assert files.now()[:2] == "20" and files.now() != "2023-11-14T22:13:20+00:00"


def test_nobody_waits_for_a_run_of_training_to_read_what_is_in_it(tmp_path, another_process):
    code = """
        import sys
        from pathlib import Path
        from lifedeploy.targets.find import unchanged
        with unchanged(Path(sys.argv[1])):
            print("read", flush=True)
        """
    (tmp_path / "last.safetensors").touch()
    with sole_writer(tmp_path):
        assert another_process(code, tmp_path / "last.safetensors", until="read").wait(timeout=60) == 0
