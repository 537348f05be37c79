"""Scoring on Ray: a real cluster on this machine, with room for two actors of a core each; and actors that die.

What a worker opens is watched there: an image whose name ends with ``deadly.png`` ends the process as ``kill -9`` does;
one that ends with ``once.png`` does so the first time that it is opened; one with ``slow.png`` takes some seconds.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lifedeploy.artifact import Workspace
from lifedeploy.errors import ArtifactError, DataError, EngineError, UsageError
from lifedeploy.progress import Step
from lifedeploy.scoring import on_ray
from lifedeploy.scoring.on_ray import Actors
from lifedeploy.temporary import is_temporary, sweep
from lifedeploy.workflows.score import ScoreReport, ScoreRequest, score
from tests.pictures import encoded, shard

# Ray's own, of settings that nobody has touched: it warns when it makes its own defaults.
pytestmark = pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated:DeprecationWarning")
IMAGES, PART = 24, 4
SECONDS = 120  # more than enough for a cluster of its own, on a machine that has much else to do


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, which :func:`score_on_ray` finds initialised."""
    import ray

    def watch_what_is_opened() -> None:
        def look(event: str, arguments: tuple[object, ...]) -> None:
            path = arguments[0] if event == "open" else None
            if not isinstance(path, str) or not path.endswith(("deadly.png", "once.png", "slow.png")):
                return
            if path.endswith("slow.png"):
                time.sleep(5)  # longer than Ray lets an actor go on that nobody waits for
                return
            if path.endswith("once.png"):
                try:
                    died = os.open(path + ".died", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    return
                rows = os.path.join(os.path.dirname(path), "../rows")  # noqa: PTH118, PTH120
                there = {entry.name: entry.inode() for entry in os.scandir(rows) if entry.name.startswith("part-")}
                os.write(died, json.dumps(there).encode())
            os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))  # it would make one, and leave it at home
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"worker_process_setup_hook": watch_what_is_opened},
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def photos(workspace: Path) -> Path:
    """Noise, and one file that is no image."""
    folder = workspace.parent / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        shown = Image.fromarray(generator.integers(0, 255, (20, 30, 3), dtype=np.uint8))
        shown.save(folder / f"{number:02}.png")
    (folder / "05.png").write_bytes(b"no image")
    return folder


def run(
    output: str,
    on: str = "ray",
    *,
    images: str = "photos",
    actors: Actors | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[Step], None] = lambda step: None,
) -> ScoreReport:
    request = ScoreRequest(
        model=next(Path("artifacts").glob("*/onnxruntime-fp32")),
        images=(images,),
        output=output,
        format="" if output.endswith(".parquet") else "jsonl",
        keep="logits",
        part=PART,
        batch=2,
        threads=1,
        workers=1,
        on=on,
        actors=actors or Actors(count=2, cores=1),
    )
    return score(request, Workspace(Path("artifacts")), say, progress)


def rows(folder: str) -> dict[str, list[str]]:
    """File → its rows; nothing else is there but the record and the listing."""
    wait_for_the_dying(Path(folder))
    parts = {path.name: path.read_text().splitlines() for path in sorted(Path(folder).glob("part-*"))}
    assert {path.name for path in Path(folder).iterdir()} == {*parts, "_score.json", "_input.csv"}
    return parts


def wait_for_the_dying(folder: Path) -> None:
    """Ray ends actors after the run that had them: what one of them was writing goes when somebody writes next."""
    until = time.monotonic() + 30
    while any(is_temporary(path.name) for path in folder.iterdir()) and time.monotonic() < until:
        sweep(folder)
        time.sleep(0.1)


def inodes(folder: str) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in Path(folder).glob("part-*")}


class Enough(Exception):
    """Somebody ends a run."""


def at_half(step: Step) -> None:
    if step.share >= 0.5:
        raise Enough


def test_what_was_begun_here_goes_on_on_two_actors_and_is_the_file_of_a_local_run(cluster, photos):
    here = run("here.parquet", "here")
    with pytest.raises(Enough):
        run("rows.parquet", "here", progress=at_half)
    there = inodes("rows.parquet.parts")
    report = run("rows.parquet")
    assert Path("rows.parquet").read_bytes() == Path("here.parquet").read_bytes()
    assert (report.images, report.bad, report.parts) == (IMAGES, 1, IMAGES // PART)
    assert (report.parts_before, report.scored) == (len(there), IMAGES - PART * len(there))
    assert 0 < len(there) < IMAGES // PART
    assert report.examples == here.examples and report.examples[0][0] == "05.png"
    assert not Path("rows.parquet.parts").exists()


def test_what_was_begun_on_ray_goes_on_here(cluster, photos):
    (photos / "23.png").rename(photos / "23-slow.png")
    with pytest.raises(Enough):
        run("rows", progress=at_half)
    there = inodes("rows")
    report = run("rows", "here")
    assert 0 < len(there) <= report.parts_before < IMAGES // PART  # an actor may have ended one more since
    assert there.items() <= inodes("rows").items()
    run("here", "here")
    assert rows("rows") == rows("here")


def test_an_actor_that_is_killed_costs_nothing_but_the_part_it_was_in(cluster, photos):
    (photos / "22.png").rename(photos / "22-once.png")  # in the last part, and not its first
    assert run("rows").scored == IMAGES
    there = json.loads((photos / "22-once.png.died").read_text())
    assert there  # when it died
    assert there.items() <= inodes("rows").items()
    run("here", "here")
    assert rows("rows") == rows("here")


def test_a_part_that_ends_its_process_every_time_is_given_up(cluster, photos, monkeypatch):
    class Late(on_ray._Tries):
        """As if two processes had died before: each takes seconds to start."""

        def begun(self, number: int) -> int:
            return super().begun(number) + 2

    monkeypatch.setattr(on_ray, "_Tries", Late)
    (photos / "06.png").rename(photos / "06-deadly.png")
    with pytest.raises(EngineError, match=r"^part 1 has ended 4 processes of the cluster$"):
        run("rows", actors=Actors(count=1, cores=1))
    assert "part-00001" not in {name[:10] for name in inodes("rows")}


def _take_away_the_model() -> None:
    next(Path("artifacts").glob("*/onnxruntime-fp32/model.json")).unlink()


def _take_away_the_shard() -> None:
    Path("shards/0.tar").unlink()


@pytest.mark.parametrize(("kind", "taken"), [(ArtifactError, _take_away_the_model), (DataError, _take_away_the_shard)])
def test_what_an_actor_raises_is_said_as_it_is_here(cluster, workspace, kind, taken):
    """When it opens the model, and when it scores a part."""
    said = []
    before = {path: path.read_bytes() for path in workspace.glob("*/onnxruntime-fp32/model.json")}
    for where in ("here", "ray"):
        Path("shards").mkdir(exist_ok=True)
        shard(Path("shards/0.tar"), {"a.png": encoded(1)})
        for path, data in before.items():
            path.write_bytes(data)
        with pytest.raises(kind) as raised:
            run(where, where, images="shards", say=lambda text: taken() if text.startswith("opening") else None)
        said.append((raised.value.message, raised.value.hint))
    assert said[0] == said[1]


def test_more_cores_than_any_machine_has_are_refused(cluster, photos):
    with pytest.raises(UsageError, match="no machine of the cluster has 3 cores for an actor"):
        run("rows", actors=Actors(cores=3))


def test_modules_in_the_current_folder_are_not_imported_by_a_cluster_of_our_own(photos):
    """By the command, whose cluster ends with it. A module that somebody left there says so when it is imported."""
    for name in ("numpy", "json", "pyarrow", "lifedeploy", "sitecustomize"):
        Path(f"{name}.py").write_text(f"open({str(photos.parent / 'executed')!r}, 'w').write({name!r})\n")
    line = ["score", str(next(Path("artifacts").glob("*/onnxruntime-fp32"))), "photos", "-o", "rows", "--format=jsonl"]
    line += ["--keep=logits", f"--part={PART}", "--on=ray", "--actors=1", "--actor-cores=1"]
    program = str(Path(sys.executable).with_name("lifedeploy"))
    # The path of a socket is short, whatever folder tests have.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_AUTH_TOKEN": secrets.token_hex(16), "PYTHONPATH": ""}
        done = subprocess.run([program, *line], capture_output=True, text=True, timeout=SECONDS, env=environment)
        assert done.returncode == 0, done.stderr
        ends = time.monotonic() + 10
        while (left := processes_of(folder)) and time.monotonic() < ends:
            time.sleep(0.1)
    assert left == []
    assert not Path("executed").exists()
    assert sum(map(len, rows("rows").values())) == IMAGES


def processes_of(folder: str) -> list[str]:
    """Command lines of processes that were started with files below a folder."""
    said = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said.append(path.read_text(errors="replace"))
        except OSError:  # it has ended
            continue
    return [line for line in said if f"{folder}/" in line]
