"""Readers of foreign bytes: whatever they are given, they read it, or refuse it in one line that can be shown."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lifedeploy import reading
from lifedeploy.artifact import Artifact
from lifedeploy.cli import values
from lifedeploy.data.images import read_images
from lifedeploy.data.preprocess import read_image
from lifedeploy.errors import LifedeployError, UsageError
from lifedeploy.exporters import inspect
from lifedeploy.model import checkpoint
from lifedeploy.spec import ModelSpec
from lifedeploy.training import state
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.log import read_log
from lifedeploy.training.recipes import settled
from lifedeploy.tuned import read_tuned
from tests.conftest import make_tiny
from tests.foundation.test_tuned import TUNED
from tests.robustness.fuzz.values import change_json, damaged
from tests.robustness.fuzz.weights import join, split
from tests.robustness.inputs import draw_shards, picture, png, split_csv

LONGEST = 600  # characters of a message
# Files are made for every example; pytest's fixtures are only read.
examples = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32)


def holds(read: Callable[[], Any]) -> None:
    """``read`` succeeds, or raises one of our errors with a message that is one printable line."""
    try:
        read()
    except LifedeployError as error:
        assert error.message
        assert error.message.isprintable(), ascii(error.message)
        assert len(error.message) <= LONGEST
        assert error.exit_code in (1, 2)


@dataclass(frozen=True)
class Reader:
    """A file as it should be, and who reads it."""

    path: Path
    read: Callable[[], Any]

    def given(self, data: bytes) -> None:
        """Hold the reader to it with this content."""
        self.path.write_bytes(data)
        holds(self.read)


def _manifest(folder: Path, exported: Path) -> Reader:
    shutil.copytree(next(exported.glob("*/model.json")).parent / "openvino-fp32", folder / "engine")
    path = folder / "engine" / "model.json"
    return Reader(path, lambda: Artifact.read(path).check())


def _checkpoint(folder: Path) -> Reader:
    path = folder / "tiny.safetensors"
    checkpoint.save(path, *make_tiny())
    return Reader(path, lambda: (checkpoint.read_spec(path), checkpoint.read(path)))


def _plain_weights(folder: Path, weights: Path) -> Reader:
    path = folder / "mine.safetensors"
    shutil.copy(weights, path)
    return Reader(path, lambda: (checkpoint.read_classes(path), checkpoint.read(path)))


def _pickle(folder: Path) -> Reader:
    path = folder / "mine.pth"
    torch.save({"state_dict": make_tiny()[0].backbone.state_dict()}, path)
    return Reader(path, lambda: checkpoint.read(path))


def _state(folder: Path) -> Reader:
    tensors = {"a": torch.arange(4.0)}
    position = state.Position(stage=0, epoch=0, step=7, run_epoch=0, run_step=7, log_rows=1, best=0.5, seconds=1.0)
    state.save(
        folder / "state",
        state.State(position=position, fingerprint="mine", model=tensors, ema={}, optimizer=tensors, scaler={}),
    )
    path = next((folder / "state").iterdir())
    return Reader(path, lambda: state.latest(folder / "state", "mine"))


def _config(folder: Path) -> Reader:
    path = folder / "config.toml"
    path.write_text(TrainConfig(data="data").to_toml(), encoding="utf-8")
    return Reader(path, lambda: settled({}, path))


def _log(folder: Path) -> Reader:
    path = folder / "log.csv"
    path.write_text("kind,stage,epoch,step,lr,loss,accuracy,images_per_s\ntrain,dense,1,1,0.1,0.5,0.5,100.0\n")
    return Reader(path, lambda: read_log(path))


def _arrays(folder: Path) -> Reader:
    path = folder / "reference.npz"
    np.savez_compressed(path, **{"life/a/logits": np.ones((2, 3), np.float32), "life/a/kept": np.arange(6)})
    return Reader(path, lambda: reading.read_arrays(path))


def _image(folder: Path, ending: str) -> Reader:
    path = folder / f"picture{ending}"
    picture(np.random.default_rng(0)).save(path)
    return Reader(path, lambda: read_image(path))


def _shard(folder: Path) -> Reader:
    draw_shards(folder / "shards")

    def read() -> None:
        images = read_images(f"wds/{folder / 'shards'}")
        images.image(len(images) - 1)

    return Reader(folder / "shards/1.tar", read)


def _classes(folder: Path) -> Reader:
    draw_shards(folder / "shards")
    return Reader(folder / "shards/classes.txt", lambda: read_images(f"wds/{folder / 'shards'}").classes)


def _split(folder: Path) -> Reader:
    for name in ("a", "b"):
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "0.png").write_bytes(png(picture(np.random.default_rng(0))))
    path = folder / "split.csv"
    split_csv(path, [("a/0.png", "val"), ("b/0.png", "train")])
    return Reader(path, lambda: read_images(str(folder / "data"), split=str(path)))


def _graph(folder: Path) -> Reader:
    path = folder / "graph.onnx"
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["batch", 3]) for name in "xy")
    weights = onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    opsets = [onnx.helper.make_opsetid("", 18)]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [weights])
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return Reader(path, lambda: inspect.facts(inspect.load(path)))


def _tuned(folder: Path) -> Reader:
    path = folder / "tune.json"
    TUNED.write(path)
    return Reader(path, lambda: read_tuned(path))


READERS = {
    "tuned": _tuned,
    "checkpoint": _checkpoint,
    "pickle": _pickle,
    "state": _state,
    "config": _config,
    "log": _log,
    "arrays": _arrays,
    "png": lambda folder: _image(folder, ".png"),
    "jpeg": lambda folder: _image(folder, ".jpg"),
    "tiff": lambda folder: _image(folder, ".tif"),
    "webp": lambda folder: _image(folder, ".webp"),
    "gif": lambda folder: _image(folder, ".gif"),
    "shard": _shard,
    "classes": _classes,
    "split": _split,
    "graph": _graph,
}
every_reader = pytest.mark.parametrize("name", [*READERS, "manifest", "weights"])


@pytest.fixture
def reader(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Reader:
    if name == "manifest":
        return _manifest(tmp_path, request.getfixturevalue("exported"))
    if name == "weights":
        return _plain_weights(tmp_path, request.getfixturevalue("weights_file"))
    return READERS[name](tmp_path)


@every_reader
def test_a_file_as_it_should_be_is_read(reader):
    reader.read()


@every_reader
def test_any_bytes_are_read_or_refused_in_one_line(reader):
    @examples
    @given(data=st.binary(max_size=2000))
    def check(data: bytes) -> None:
        reader.given(data)

    check()


@every_reader
def test_damaged_files_are_read_or_refused_in_one_line(reader):
    whole = reader.path.read_bytes()

    @examples
    @given(seed=seeds)
    def check(seed: int) -> None:
        reader.given(damaged(whole, random.Random(seed))[0])

    check()


@every_reader
@pytest.mark.parametrize("what", ["a folder", "a pipe", "a device", "nothing", "a link to itself"])
def test_what_is_no_file_is_refused_at_once(reader, what):
    reader.path.unlink()
    if what == "a folder":
        reader.path.mkdir()
    elif what == "a pipe":
        os.mkfifo(reader.path)
    elif what != "nothing":
        reader.path.symlink_to("/dev/zero" if what == "a device" else reader.path.name)
    holds(reader.read)


@examples
@given(seed=seeds)
def test_a_manifest_is_typed_all_the_way_down(exported, tmp_path, seed):
    source = next(exported.glob("*/model.json"))
    change = change_json(json.loads(source.read_text(encoding="utf-8")), random.Random(seed))
    path = tmp_path / "model.json"
    path.write_bytes(change.text)
    if change.broken or (not change.path and change.retyped):
        with pytest.raises(LifedeployError):
            Artifact.read(path)
    holds(lambda: Artifact.read(path))


@examples
@given(seed=seeds)
def test_a_description_is_typed_all_the_way_down(seed):
    change = change_json(make_tiny()[1].to_dict(), random.Random(seed))
    if change.broken or change.retyped:
        with pytest.raises(LifedeployError):
            ModelSpec.from_json(change.text, "the description")
    holds(lambda: ModelSpec.from_json(change.text, "the description"))


@examples
@given(seed=seeds, key=st.sampled_from(["lifedeploy.spec", "classes", "image_size"]))
def test_headers_of_weights(tmp_path, seed, key):
    path = tmp_path / "tiny.safetensors"
    if not path.exists():
        checkpoint.save(path, *make_tiny())
    rng = random.Random(seed)
    header, content = split(path.read_bytes())
    facts = header["__metadata__"]
    change = change_json(json.loads(facts["lifedeploy.spec"]), rng)
    header["__metadata__"] = {key: change.text.decode("utf-8", "replace")}
    odd = tmp_path / "odd.safetensors"
    reader = Reader(odd, lambda: (checkpoint.read_spec(odd), checkpoint.read_classes(odd), checkpoint.read(odd)))
    reader.given(join(header, content))
    text = change_json(header, rng).text
    reader.given(len(text).to_bytes(8, "little") + text + content)


@examples
@given(seed=seeds)
def test_positions_of_runs(tmp_path, seed):
    reader = _state(tmp_path)
    header, content = split(reader.path.read_bytes())
    change = change_json(json.loads(header["__metadata__"]["lifedeploy.training"]), random.Random(seed))
    header["__metadata__"]["lifedeploy.training"] = change.text.decode("utf-8", "replace")
    reader.given(join(header, content))


tomls = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5, alphabet="ab\x1b"), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(examples, max_examples=300)
@given(name=st.sampled_from(sorted(TrainConfig().to_dict())), value=tomls)
def test_settings_of_any_value(tmp_path, name, value):
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(TrainConfig(data="data").to_dict() | {name: value}), encoding="utf-8")
    holds(lambda: settled({}, path))
    no_table = isinstance(value, dict) and (name, value) != ("options", {})  # of which any may be empty
    if (isinstance(value, float) and not np.isfinite(value)) or no_table:
        with pytest.raises(UsageError):
            settled({}, path)


WHOLE = values.Whole("--n", 1, 1000)
REAL = values.Real("--x", 0.0, 1.0)
LISTS = [values.WholeList("--n", 1, 1000, 8), values.RealList("--x", 0.0, 1.0, 2), values.Pixels("--size", 1, 8192)]
texts = st.text() | st.text("0123456789.,x-+eEnaif ²٣_", max_size=30) | st.floats().map(str) | st.integers().map(str)


@settings(examples, max_examples=300)
@given(text=texts, kind=st.sampled_from([WHOLE, REAL, *LISTS]))
def test_numbers_of_the_command_line(text, kind):
    holds(lambda: kind(text))


@settings(examples, max_examples=300)
@given(text=texts)
def test_a_number_is_finite_in_its_range_and_of_ten_digits(text):
    for kind, low, high in ((WHOLE, 1, 1000), (REAL, 0, 1)):
        try:
            found = kind(text)
        except UsageError:
            continue
        assert low <= found <= high
        assert text.isascii()
        assert found == float(text)
