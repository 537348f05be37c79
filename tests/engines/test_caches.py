"""What engines keep for the next time is code that will be run: it is nobody else's to write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from lifedeploy.caches import compiler_caches
from lifedeploy.calibration.collect import cached
from lifedeploy.calibration.ranges import TensorStatistics
from lifedeploy.engines.onnxruntime_gpu import OnnxRuntimeRtx, OnnxRuntimeTensorRT
from lifedeploy.engines.torch import TorchCompiled

VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def cache(tmp_path, monkeypatch, request) -> Path:
    """The user's cache, whatever the umask, and found with rights for all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0)
    (tmp_path / "cache" / "lifedeploy").mkdir(parents=True)
    os.umask(request.param)
    yield tmp_path / "cache" / "lifedeploy"
    os.umask(before)


def rights(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


@pytest.mark.parametrize("engine", [OnnxRuntimeTensorRT, OnnxRuntimeRtx])
def test_providers_keep_their_engines_apart(cache, engine):
    folder = Path(engine(Path("model.onnx"))._cache())
    assert folder == cache / engine.name
    assert (rights(cache), rights(folder)) == (0o700, 0o700)


def test_compiled_models_are_not_kept_where_anybody_may_be_first(cache, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    engine = TorchCompiled(Path("model.safetensors"))
    engine._torch = torch
    engine._ready(torch.nn.Identity())
    for name in VARIABLES:
        folder = Path(os.environ[name])
        assert folder.parent == cache and rights(folder) == 0o700


def test_a_place_that_the_user_chose_stays(cache, tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, str(tmp_path / "mine"))
    engine = TorchCompiled(Path("model.safetensors"))
    engine._torch = torch
    engine._ready(torch.nn.Identity())
    assert {os.environ[name] for name in VARIABLES} == {str(tmp_path / "mine")}


def made() -> dict[str, TensorStatistics]:
    statistics = TensorStatistics()
    statistics.largest = statistics.limit = 2.0
    return {"tokens": statistics}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b'"largest": 2.0', b'"largest": 3.0'),
        lambda data: data.replace(b'"limit": 2.0', b'"limit": "x"'),
        lambda data: b"[" * 100_000,
        lambda data: b"\xff\xfe" + data,
        lambda data: b"",
    ],
)
def test_damaged_statistics_are_made_anew(cache, damage):
    key = {"tensors": ["tokens"]}
    assert cached(key, made)[1] is False
    assert cached(key, made)[1] is True
    (path,) = (cache / "calibration").iterdir()
    assert rights(path.parent) == 0o700
    path.write_bytes(damage(path.read_bytes()))
    known, reused = cached(key, made)
    assert not reused and known["tokens"].largest == 2.0
    assert cached(key, made)[1] is True


def test_the_place_that_torch_takes_by_itself_is_not_taken(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    shared = tmp_path / "torchinductor_somebody"
    shared.mkdir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared))
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    compiler_caches()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache / "inductor")
    assert not shared.exists()
    monkeypatch.setattr("tempfile.tempdir", None)
