"""Shared fixtures: a tiny model, one real export of it, and the command line in this process."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.bench import measure
from lifedeploy.cli import app as cli
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model import backbones
from lifedeploy.model.vit import SlimViT, build_model
from lifedeploy.model.weights import ModelRequest
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, PreprocessSpec, Provenance
from lifedeploy.targets import probing
from lifedeploy.workflows import tune as tuning
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.export import ExportRequest, export
from tests.once import made_once, shared_folder, tracing

# Examples are other ones every time, but the same ones in continuous integration; none are kept beside the code.
settings.register_profile("lifedeploy", database=None, deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("lifedeploy")


def pytest_collection_finish() -> None:
    """What is imported stays; the garbage collector need not look at it again and again (8% of an export)."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is frozen at the end counts as leaked where libraries look for leaks


TINY = "test_vit"  # timm's own test model: 6 layers, 64 channels
TINY_SIZE = (64, 64)  # 16 patches


def tiny_vit(**options: object) -> VisionTransformer:
    """A ViT of four layers and 16 patches, with a head that is not zero."""
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
    torch.manual_seed(1)
    vit = VisionTransformer(**(settings | options)).eval()
    for name, parameter in vit.named_parameters():
        if name.endswith("bias"):  # biases of zero are all one tensor to the exporter
            torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.normal_(vit.head.weight, std=0.5)
    return vit


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured takes short turns: speeds are not what tests look at."""
    monkeypatch.setattr(measure, "MIN_ROUND_S", 0.01)


@pytest.fixture
def quick_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tuned is measured for moments."""
    for place in (probing, tuning):
        monkeypatch.setattr(place, "_STOP", replace(place._STOP, max_rounds=3, min_rounds=1, round_s=0.001))


@pytest.fixture
def tiny() -> tuple[SlimViT, ModelSpec]:
    """A slimmed tiny ViT: 16 patches, 11 after layer 2, 6 after layer 3."""
    return make_tiny()


def make_tiny(*, ordering: str = "order-once", method: str = "life", **options: object) -> tuple[SlimViT, ModelSpec]:
    vit = tiny_vit(**options)
    patches = vit.patch_embed.num_patches
    spec = ModelSpec(
        backbone="tiny",
        timm_name="tiny",
        method=method,
        schedule=Schedule.from_counts(patches, 4, (patches * 11 // 16, patches * 6 // 16), (2, 3)),
        preprocess=PreprocessSpec(image_size=tuple(vit.patch_embed.img_size)),
        num_classes=5,
        prefix_tokens=vit.num_prefix_tokens,
        provenance=Provenance(weights="random"),
        options=methods.get(method).plain_options({}),
    )
    return build_model(vit, spec, ordering=ordering), spec


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Methods' entry points in the place of those of the packages that are installed; none, before it is called."""
    installed = metadata.entry_points

    def plug(*entries: EntryPoint) -> None:
        def listed(**wanted: Any) -> Any:
            return entries if wanted == {"group": methods.GROUP} else installed(**wanted)

        monkeypatch.setattr(metadata, "entry_points", listed)
        forget()

    def forget() -> None:
        methods.plugins.cache_clear()
        methods._loaded.cache_clear()

    plug()
    yield plug
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain state dict of the tiny timm model with three classes, as a user would bring one."""
    torch.manual_seed(3)
    vit = backbones.create(TINY, image_size=TINY_SIZE, num_classes=3)
    torch.nn.init.normal_(vit.head.weight, std=0.5)
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    save_file(vit.state_dict(), path, metadata={"classes": '["cat", "cup", "rocket"]'})
    return path


@pytest.fixture(scope="session")
def tracing_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``exporter.trace``, which traces the same model in the same way once in all workers."""
    folder = shared_folder(tmp_path_factory) / "traced"
    folder.mkdir(exist_ok=True)
    return tracing(folder)


@pytest.fixture
def traced_once(tracing_once: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test exports need not be traced again where it has been."""
    monkeypatch.setattr(exporter, "trace", tracing_once)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, weights_file: Path, tracing_once: Callable[..., Any]) -> Path:
    """A workspace with one real export in it. Read only: copy it (``workspace``) before writing."""

    def make(folder: Path) -> None:
        root = folder / "artifacts"
        request = ExportRequest(
            ModelRequest(backbone=TINY, keep_rate=0.7, weights=str(weights_file), image_size=TINY_SIZE), GraphOptions()
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporter, "trace", tracing_once)
            export(request, Workspace(root))
        for engine in ("openvino", "onnxruntime", "fake"):
            build(BuildRequest(engine=engine), Workspace(root))

    return made_once(shared_folder(tmp_path_factory) / "exported", make) / "artifacts"


@pytest.fixture
def workspace(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that workspace, as ``artifacts/`` of the current folder."""
    root = tmp_path / "artifacts"
    shutil.copytree(exported, root)
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def folder(workspace: Path) -> Path:
    """The export's folder."""
    return next(workspace.glob("*/model.json")).parent


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process gets larger than ``room`` bytes; within only, since pytest may write to a file too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # Python ignores the signal, and gets the error
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it said on standard error."""
        return [line for line in self.err.splitlines() if line.strip()]


@pytest.fixture
def lifedeploy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LIFEDEPLOY_MAX_PIXELS", "178956970")  # what --max-pixels sets is gone after the test

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lifedeploy", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run
