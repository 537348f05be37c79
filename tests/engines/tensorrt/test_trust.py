"""A plan is executable code: what was just built here is trusted, what is still to be proven is not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from lifedeploy.artifact import Artifact, EngineRecord, Workspace
from lifedeploy.engines import cuda
from lifedeploy.engines.base import Availability
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.engines.tensorrt.rtx import TensorRTRtx
from lifedeploy.errors import ArtifactError, EngineError, LifedeployError
from lifedeploy.files import sha256
from lifedeploy.targets.evidence import prove
from lifedeploy.workflows.bench import BenchRequest, bench
from lifedeploy.workflows.build import BuildRequest, build
from tests.engines.tensorrt.test_engine import device  # noqa: F401  a fixture

HERE = "numpy (sm00)"


@pytest.fixture
def pending(device, exported, tmp_path, monkeypatch):  # noqa: F811
    """An engine that was built elsewhere, and what the runtime was given to make code of."""
    root = tmp_path / "artifacts"
    shutil.copytree(exported, root)
    given: list[bytes] = []
    runtime = device.trt.Runtime

    def recording(logger):
        made = runtime(logger)
        inner = made.deserialize_cuda_engine
        made.deserialize_cuda_engine = lambda data: given.append(data) or inner(data)
        return made

    device.trt.Runtime = recording
    export = Workspace(root).latest_export()
    folder = export.folder / "tensorrt-fp16"
    folder.mkdir()
    for method in export.manifest.siblings:
        member = export.sibling(method)
        stem = member.manifest_path.stem
        plan = folder / f"{stem}.plan"
        plan.write_bytes(b"plan")
        record = EngineRecord(
            name="tensorrt", precision="fp16", requested="fp16", runtime="11",
            source=f"../{member.path.name}", source_sha256=member.manifest.sha256,
            processor=HERE, files={plan.name: sha256(plan)}, pending="no GPU",
        )  # fmt: skip
        replace(
            member.manifest, kind="engine", file=plan.name, sha256=sha256(plan), engine=record, parity=None,
            reference="../reference.npz", checkpoint="../weights.safetensors",
        ).write(folder / f"{stem}.json")  # fmt: skip
    return Artifact.read(folder / "model.json"), given


def changed(folder, place, value):
    for path in folder.glob("*.json"):
        data = json.loads(path.read_text())
        data["engine"][place] = value
        path.write_text(json.dumps(data))


def opened(by, engine):
    if by == "prove":
        return prove(Artifact.read(engine.manifest_path))
    root = Workspace(engine.folder.parents[1])
    return bench(BenchRequest(model=engine.folder, trust=True, memory=False), root)  # that trust is for other files


@pytest.mark.parametrize("by", ["prove", "bench"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("byte", r"\.plan is not the file that \w+\.json was written for: its SHA-256 differs"),
        ("hash", r"\.plan is not the file that|engine\.files has another SHA-256"),
        ("version", r"was built by tensorrt 10\.9, and 11 is installed"),
        ("processor", r"was built on NVIDIA L4 \(sm89\), and this is numpy \(sm00\)"),
        ("graph", r"model\.evil\.onnx would be read with model\.plan, and model\.json has no SHA-256 of it"),
    ],
)
def test_a_plan_that_is_still_to_be_proven_is_compared_before_the_runtime_sees_it(pending, by, what, said):
    engine, given = pending
    if what == "byte":
        for path in engine.folder.glob("*.plan"):
            path.write_bytes(b"plam")
    elif what == "hash":  # the list of files vouches for what the manifest itself does not
        engine.path.write_bytes(b"plam")
        changed(engine.folder, "files", {"model.plan": sha256(engine.path)})
    elif what == "graph":
        (engine.folder / "model.evil.onnx").write_bytes(b"weights of somebody")
    else:
        changed(engine.folder, *{"version": ("runtime", "10.9"), "processor": ("processor", "NVIDIA L4 (sm89)")}[what])
    with pytest.raises(LifedeployError, match=said):
        opened(by, engine)
    assert given == []


def test_a_plan_that_is_what_its_manifest_says_is_opened_to_be_proven(pending):
    engine, given = pending
    with pytest.raises(LifedeployError, match="images"):  # the stand-in takes other images than the model
        prove(engine)
    assert given == [b"plan"] * len(given) != []


def test_trust_is_for_what_this_process_has_just_built(pending, monkeypatch):
    engine, _ = pending
    asked = []

    def check(target, graph, trust=False):
        asked.append((target.path.name, target.path.parent == engine.folder, trust))
        raise EngineError("seen")

    monkeypatch.setattr("lifedeploy.targets.evidence.check", check)
    monkeypatch.setattr("lifedeploy.workflows.build.check", check)
    with pytest.raises(EngineError, match="seen"):
        prove(engine)
    root = Workspace(engine.folder.parents[1])
    with pytest.raises(EngineError, match="seen"):
        build(BuildRequest(engine="fake", force=True), root)
    assert asked == [("model.plan", True, False), ("model.fake.json", False, True)]


def test_a_plan_of_another_library_is_not_opened(pending, monkeypatch):
    engine, given = pending
    monkeypatch.setattr(cuda, "availability", lambda: Availability(True))
    with pytest.raises(EngineError, match="was built by tensorrt, and tensorrt-rtx was to open it"):
        TensorRTRtx(engine.path).open()
    assert given == []
    with TensorRT(engine.path):
        assert given == [b"plan"]


def test_a_damaged_manifest_is_no_other_tools_file(pending):
    engine, given = pending
    text = engine.manifest_path.read_text()
    engine.manifest_path.write_text(text[: len(text) // 2])
    root = Workspace(engine.folder.parents[1])
    with pytest.raises(ArtifactError, match=r"model\.json is not a manifest"):
        bench(BenchRequest(model=engine.path, engines=("tensorrt:fp16",), trust=True, memory=False), root)
    assert given == []
