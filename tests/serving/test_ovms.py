"""The folder that OpenVINO Model Server starts from; OpenVINO itself stands in for the server, which is in no wheel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.errors import UsageError
from lifedeploy.serving import record as records
from lifedeploy.targets.find import ModelFile
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import target_of
from lifedeploy.workflows.package import PackageRequest, package

# Of the server's own schema, src/schema.cpp: anything else in an entry, and it does not start.
ENTRIES = {"name", "base_path", "shape", "nireq", "target_device", "plugin_config"}


def packaged(folder: Path, **options: object) -> Path:
    package(PackageRequest(target="ovms", out=Path("repo"), model=folder, name="vit", **options), Workspace())
    return Path("repo")


def entry(repo: Path) -> dict[str, object]:
    (model,) = json.loads((repo / "config.json").read_text())["model_config_list"]
    assert set(model["config"]) <= ENTRIES
    return model["config"]


def test_the_repository_lists_the_model_as_the_plan_says(folder):
    repo = packaged(folder, engine="openvino", instances=2, max_batch=4)
    engine = Artifact.read(next(folder.glob("openvino-*/model.json")))
    precision = {"fp32": "f32", "bf16": "bf16"}[engine.precision]
    assert entry(repo) == {
        "name": "vit",
        "base_path": "vit",
        "shape": "(1:4,3,64,64)",
        "nireq": 2,
        "target_device": "CPU",
        "plugin_config": {"NUM_STREAMS": "2", "INFERENCE_PRECISION_HINT": precision},
    }
    assert (repo / "vit/1/model.xml").read_bytes() == engine.path.read_bytes()
    assert (repo / "vit/1/model.bin").read_bytes() == engine.path.with_suffix(".bin").read_bytes()
    assert (repo / "labels.txt").read_text() == "cat\ncup\nrocket\n"
    readme = (repo / "README").read_text()
    assert "outputs  logits\n" in readme and "1 to 4 images a request" in readme
    assert f"needs    openvino {engine.manifest.engine.runtime} or later" in readme


def test_the_record_names_every_file_and_nothing_of_ours_to_install(folder):
    repo = packaged(folder, engine="openvino")
    record = records.read(repo)
    records.check(repo, record)
    assert (record.target, record.backend, record.models) == ("ovms", "ovms", ("vit",))
    assert list(record.needs) == ["openvino"]
    assert set(record.files) == {"config.json", "labels.txt", "README", "vit/1/model.xml", "vit/1/model.bin"}


@pytest.mark.parametrize(("largest", "shape"), [(4, "(1:4,3,64,64)"), (1, "(1,3,64,64)")])
def test_what_is_configured_compiles_and_answers_as_the_engine_does(folder, largest, shape):
    ov = pytest.importorskip("openvino")
    repo = packaged(folder, engine="openvino", max_batch=largest)
    listed = entry(repo)
    assert listed["shape"] == shape
    model = ov.Core().read_model(repo / "vit/1/model.xml")
    # What the server does with an entry: ModelInstance::loadOVCompiledModel.
    model.reshape(ov.PartialShape("[" + shape.strip("()").replace(":", "..") + "]"))
    compiled = ov.Core().compile_model(model, listed["target_device"], listed["plugin_config"])
    images = np.random.default_rng(0).standard_normal((largest, 3, 64, 64)).astype(np.float32)
    answers = compiled.create_infer_request().infer({"images": images})
    assert [port.any_name for port in compiled.outputs] == ["logits"]
    engine = Artifact.read(next(folder.glob("openvino-*/model.json")))
    with Session(target_of(ModelFile.of(engine))) as session:
        expected = session.answer(images).logits
    tolerance = 1e-4 if engine.precision == "fp32" else 0.1
    np.testing.assert_allclose(answers[compiled.output("logits")], expected, atol=tolerance, rtol=tolerance)


def test_an_ir_that_tells_what_it_kept_answers_with_it(folder, monkeypatch):
    ov = pytest.importorskip("openvino")
    built = next(folder.glob("openvino-*/model.xml"))
    model = ov.Core().read_model(built)
    model.add_outputs(["kept_2"])
    ov.save_model(model, built.with_name("told.xml"), compress_to_fp16=False)
    for ending in (".xml", ".bin"):
        built.with_name(f"told{ending}").rename(built.with_suffix(ending))
    monkeypatch.setattr(Artifact, "check", lambda *given: None)  # of the hashes, which are of the file before
    readme = (packaged(folder, engine="openvino") / "README").read_text()
    assert "outputs  logits, kept_2\n" in readme


def test_what_onnx_runtime_has_optimised_is_refused(folder):
    """It holds operators of its own, and passed its gate in another runtime."""
    with pytest.raises(UsageError, match=r"opens \.xml, and .*model\.onnx is none"):
        packaged(folder, engine="onnxruntime")


def test_other_files_are_refused_with_what_to_build(folder):
    with pytest.raises(UsageError, match=r"opens \.xml, and") as refused:
        packaged(folder, engine="fake")
    assert refused.value.hint == "lifedeploy build-engine --engine openvino builds one"
    assert not Path("repo").exists()
