"""What is packaged: nothing of the user's is replaced, everything has a digest, and what changed is told by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.engines.torch import Torch
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.files import sha256
from lifedeploy.records import DetailsRecord
from lifedeploy.serving import pbtxt, record, triton
from lifedeploy.serving.pbtxt import Word
from lifedeploy.serving.plan import usual
from lifedeploy.serving.served import Served, largest_batch, require_servable, smallest_batch
from lifedeploy.targets.find import find
from lifedeploy.targets.target import of_artifact, target_of
from tests.serving.conftest import Packages
from tests.serving.triton import python, require_environment

# Reads a configuration as the server does, and says what it holds: by the server's own message type.
PARSE = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
print(json.dumps([
    json_format.MessageToDict(text_format.Parse(open(path, encoding="utf-8").read(), ModelConfig()),
                              preserving_proto_field_name=True)
    for path in sys.argv[1:]
]))
"""


def parsed(*folders: Path) -> list[dict]:
    require_environment()
    return json.loads(python(PARSE, *(folder / "config.pbtxt" for folder in folders)))


@pytest.fixture
def package(workspace: Path, lifedeploy) -> Path:
    out = workspace.parent / "repo"
    ended = lifedeploy("package", "--for", "triton", "-e", "openvino", "-o", out, "--name", "tiny")
    assert ended.code == 0, ended.err
    return out


def engine_of(workspace: Path, name: str) -> Artifact:
    export = Workspace(workspace).latest_export()
    engines = Workspace.engines_of(export)
    return next(engine for engine in engines if engine.manifest.engine and engine.manifest.engine.name == name)


def test_the_text_format_escapes_what_would_end_a_string():
    text = pbtxt.message(
        {"name": 'a "b"\n\\', "count": 3, "on": True, "kind": Word("KIND_CPU"), "dims": [1, -1]}, "of\nus"
    )
    assert text == ('# of\n# us\nname: "a \\"b\\"\\n\\\\"\ncount: 3\non: true\nkind: KIND_CPU\ndims: [1, -1]\n')
    assert pbtxt.message({"step": [{"x": 1}, {"x": 2}], "map": pbtxt.entries({"k": "v"})}) == (
        'step {\n  x: 1\n}\nstep {\n  x: 2\n}\nmap {\n  key: "k"\n  value: "v"\n}\n'
    )


def test_the_server_s_own_type_reads_every_configuration(packages: Packages) -> None:
    repository, kept = packages.repositories
    names = ("tiny", "tiny_images", "tiny_preprocess", "tiny_classes")
    model, images, preprocess, classes = parsed(*(repository / name for name in names))
    assert [config["name"] for config in (model, images, preprocess, classes)] == list(names)
    assert model["max_batch_size"] == 8
    assert model["backend"] == "python"
    assert model["input"] == [{"name": "images", "data_type": "TYPE_FP32", "dims": ["3", "64", "64"]}]
    assert model["output"] == [
        {"name": "logits", "data_type": "TYPE_FP32", "dims": ["3"], "label_filename": "labels.txt"}
    ]
    assert (repository / "tiny" / "labels.txt").read_text().split() == ["cat", "cup", "rocket"]
    assert model["dynamic_batching"]["preferred_batch_size"] == [1, 2, 4, 8]
    assert [sample["batch_size"] for sample in model["model_warmup"]] == [1, 2, 4, 8]
    assert model["version_policy"] == {"latest": {"num_versions": 1}}
    engine = Artifact.read(packages.engine("openvino"))
    parameters = {name: value["string_value"] for name, value in model["parameters"].items()}
    assert parameters["sha256"] == engine.manifest.sha256
    assert (parameters["engine"], parameters["method"], parameters["backbone"]) == ("openvino", "life", "test_vit")
    steps = images["ensemble_scheduling"]["step"]
    assert [step["model_name"] for step in steps] == ["tiny_preprocess", "tiny", "tiny_classes"]
    assert preprocess["output"] == model["input"]
    assert classes["input"][0]["dims"] == model["output"][0]["dims"]
    for root in (repository, kept):
        require_consistent(root)
    (kept_model,) = parsed(kept / "tiny_kept")
    assert [tensor["name"] for tensor in kept_model["output"]] == ["logits", "kept_2"]


def require_consistent(repository: Path) -> None:
    """Every tensor that an ensemble's step takes or gives is one that its model has."""
    configs = {
        config["name"]: config for config in parsed(*sorted(path.parent for path in repository.glob("*/config.pbtxt")))
    }
    (ensemble,) = (config for config in configs.values() if config.get("platform") == "ensemble")
    made = {tensor["name"] for tensor in ensemble["input"]}
    for step in ensemble["ensemble_scheduling"]["step"]:
        model = configs[step["model_name"]]
        assert set(step["input_map"]) == {tensor["name"] for tensor in model["input"]}
        assert set(step["output_map"]) <= {tensor["name"] for tensor in model["output"]}
        assert set(step["input_map"].values()) <= made
        made |= set(step["output_map"].values())
    assert {tensor["name"] for tensor in ensemble["output"]} <= made


@pytest.mark.parametrize(
    ("engine", "backend", "file"),
    [("onnxruntime", "onnxruntime", "model.onnx"), ("openvino", "openvino", "model.xml")],
)
def test_backends_of_triton_s_own(workspace: Path, lifedeploy, engine: str, backend: str, file: str) -> None:
    out = workspace.parent / "repo"
    words = ("-e", engine, "--backend", backend, "--max-batch", "4", "--name", "m", "--instances", "3")
    ended = lifedeploy("package", "--for", "triton", "-o", out, *words)
    assert ended.code == 0, ended.err
    (config,) = parsed(out / "m")
    assert (config["backend"], config["default_model_filename"]) == (backend, file)
    assert config["max_batch_size"] == 4
    assert config["instance_group"] == [{"kind": "KIND_CPU", "count": 3}]
    source = engine_of(workspace, engine)
    assert (out / "m" / "1" / file).read_bytes() == source.path.read_bytes()
    assert not list((out / "m" / "1").glob("*.py"))
    require_consistent(out)
    if backend == "openvino":
        assert (out / "m" / "1" / "model.bin").is_file()


def test_a_plan_says_which_tensorrt_it_needs_and_its_profile_the_largest_batch(workspace: Path, tmp_path: Path) -> None:
    source = engine_of(workspace, "onnxruntime")
    (tmp_path / "plan").mkdir()
    plan = tmp_path / "plan" / "model.plan"
    plan.write_bytes(b"a plan")
    shapes = tuple((batch, 3, 64, 64) for batch in (1, 4, 16))
    engine = replace(
        source.manifest.engine,
        name="tensorrt",
        runtime="10.13.2",
        files={"model.plan": source.manifest.sha256},
        details=DetailsRecord(profile={"images": shapes}),
    )
    artifact = Artifact(tmp_path / "plan" / "model.json", replace(source.manifest, file="model.plan", engine=engine))
    assert largest_batch(artifact, None) == 16
    assert smallest_batch(artifact) == 1
    target = replace(of_artifact(source), engine=TensorRT, artifact=artifact, path=plan)
    served = Served(name="plan", target=target, artifact=artifact, plan=usual(16))
    triton.write(tmp_path / "repo", served, "tensorrt", {"tensorrt": "10.13.2"})
    (config,) = parsed(tmp_path / "repo" / "plan")
    assert config["instance_group"] == [{"kind": "KIND_GPU", "count": 1, "gpus": [0]}]
    assert config["max_batch_size"] == 16
    assert config["parameters"]["tensorrt"] == {"string_value": "10.13.2"}
    assert "# needs tensorrt 10.13.2" in (tmp_path / "repo" / "plan" / "config.pbtxt").read_text()
    assert (tmp_path / "repo" / "plan" / "1" / "model.plan").read_bytes() == b"a plan"


def test_a_package_holds_no_code_but_one_import(package: Path) -> None:
    scripts = [
        path for path in package.rglob("*") if path.suffix in (".py", ".so", ".sh") or path.stat().st_mode & 0o111
    ]
    files = {path.relative_to(package).as_posix(): path.read_text() for path in scripts if path.is_file()}
    assert files == {
        "tiny/1/model.py": triton.code("Model"),
        "tiny_preprocess/1/model.py": triton.code("Preprocess"),
    }
    # Python keeps bytecode in a folder of this name, and would run it in the place of the code.
    assert (package / "tiny" / "1" / "__pycache__").is_file()
    assert triton.code("Model").splitlines()[2:] == [
        "from lifedeploy.serving.backend import Model as TritonPythonModel  # noqa: F401"
    ]


def test_inspect_reads_it_back(package: Path, lifedeploy) -> None:
    ended = lifedeploy("inspect", package, "--json", "-")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["outdated"] == []
    assert found["package"]["models"] == ["tiny", "tiny_images", "tiny_preprocess"]
    listed = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert set(found["package"]["files"]) == listed - {"lifedeploy.json"}
    shown = lifedeploy("inspect", package)
    assert "openvino fp32, by python" in shown.out


@pytest.mark.parametrize("part", ["engine", "weights", "export"])
def test_what_was_exported_or_built_anew_since_is_told_by_name(
    package: Path, workspace: Path, lifedeploy, part: str
) -> None:
    export = Workspace(workspace).latest_export()
    artifact = export if part == "export" else engine_of(workspace, "openvino")
    path = artifact.manifest_path
    kept = path.read_text()
    facts = json.loads(kept)
    if part == "weights":
        facts["engine"]["files"]["model.bin"] = "0" * 64  # the graph is the same
    else:
        facts["sha256"] = "0" * 64
        if facts.get("engine"):
            facts["engine"]["files"][facts["file"]] = "0" * 64
    path.write_text(json.dumps(facts))
    ended = lifedeploy("inspect", package, "--json", "-")
    assert ended.code == 0
    what = "export" if part == "export" else "engine"
    said = [f"the {what} {path.parent.resolve()} has changed since it was packaged"]
    assert json.loads(ended.out)["outdated"] == said
    assert "out of date" in ended.err
    path.write_text(kept)
    assert record.outdated(package, record.read(package)) == ()


def test_a_file_that_is_another_one_is_told_by_name(package: Path, lifedeploy) -> None:
    (package / "tiny" / "config.pbtxt").write_text("name: 'other'")
    ended = lifedeploy("inspect", package)
    assert (ended.code, ended.lines[0]) == (
        1,
        f"error: {package}/tiny/config.pbtxt is not the file that was packaged: its SHA-256 differs",
    )
    (package / "tiny" / "config.pbtxt").unlink()
    assert lifedeploy("inspect", package).lines[0] == f"error: {package}/tiny/config.pbtxt does not exist"


def test_a_file_that_was_not_packaged_is_told_by_name(package: Path, lifedeploy) -> None:
    (package / "tiny_preprocess" / "2").mkdir()
    (package / "tiny_preprocess" / "2" / "model.py").write_text("import os")
    ended = lifedeploy("inspect", package)
    assert ended.code == 1
    assert "holds 'tiny_preprocess/2' and 1 more, which was not packaged" in ended.lines[0]
    shutil.rmtree(package / "tiny_preprocess" / "2")
    for strange in ("tiny/2", "tiny_preprocess/1/__pycache__.d/model.cpython-311.pyc"):
        (package / strange).parent.mkdir(exist_ok=True)
        (package / strange).mkdir()
        with pytest.raises(ArtifactError, match="which was not packaged"):
            record.check(package, record.read(package))
        (package / strange).rmdir()
        if strange.endswith(".pyc"):
            (package / strange).parent.rmdir()
    record.check(package, record.read(package))


@pytest.mark.parametrize("place", ["../outside", "/etc/passwd", "a/../../b", "", "a//b", "a\\b", "."])
def test_paths_in_a_record_stay_in_its_folder(package: Path, place: str) -> None:
    path = package / "lifedeploy.json"
    facts = json.loads(path.read_text())
    facts["files"][place] = "0" * 64
    path.write_text(json.dumps(facts))
    with pytest.raises(ArtifactError):
        record.read(package)


def test_a_link_that_leads_out_is_refused(package: Path, tmp_path: Path) -> None:
    model = package / "tiny" / "1" / "model.xml"
    shutil.copy(model, tmp_path / "elsewhere.xml")
    model.unlink()
    model.symlink_to(tmp_path / "elsewhere.xml")
    with pytest.raises(ArtifactError, match="leads out of"):
        record.check(package, record.read(package))


def test_nothing_of_the_user_s_is_replaced(workspace: Path, package: Path, lifedeploy) -> None:
    mine = workspace.parent / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    ended = lifedeploy("package", "--for", "triton", "-e", "openvino", "-o", mine)
    assert ended.code == 2
    assert ended.lines[0] == f"error: {mine} is there and is no package of lifedeploy"
    assert (mine / "thesis.txt").read_text() == "years of work"
    again = ("package", "--for", "triton", "-e", "openvino", "-o", package, "--name", "tiny")
    (package / "notes").write_text("of mine")
    ended = lifedeploy(*again)
    assert (ended.code, ended.lines[0]) == (
        2,
        f"error: {package} is a package that somebody has changed: {package}/ holds 'notes', which was not packaged",
    )
    assert lifedeploy(*again, "--force").code == 0
    assert not (package / "notes").exists(), "a package is replaced as a whole"
    assert lifedeploy(*again).code == 0
    assert lifedeploy("package", "--for", "triton", "-e", "openvino", "-o", mine, "--force").code == 0
    assert not (mine / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("-e", "openvino:bf16"), 1, "holds no engine openvino:bf16"),
        (("-e", "openvino", "--backend", "tensorrt"), 2, "Triton's tensorrt backend opens .plan"),
        (("-e", "openvino", "--name", "../up"), 2, "'../up' is no name that a server takes"),
        (("-e", "openvino", "--top", "4"), 2, "--top 4 is more than the 3 classes"),
        (("-e", "openvino", "--bench", "nothing.json"), 1, "nothing.json does not exist"),
    ],
)
def test_bad_input_leaves_nothing(workspace: Path, lifedeploy, words: tuple[str, ...], code: int, said: str) -> None:
    out = workspace.parent / "repo"
    ended = lifedeploy("package", "--for", "triton", "-o", out, *words)
    assert ended.code == code, ended.err
    assert said in ended.lines[0]
    assert not out.exists()


def test_what_is_packaged_is_not_replaced_by_its_package(workspace: Path, lifedeploy) -> None:
    export = Workspace(workspace).latest_export().folder
    for out in (export, export.parent, engine_of(workspace, "openvino").folder):
        ended = lifedeploy("package", "--for", "triton", "-e", "openvino", "-o", out, "--force")
        assert ended.code == 2
        assert "which is to be packaged" in ended.lines[0]
    assert (export / "model.onnx").is_file()


@pytest.mark.parametrize("backend", ["python", "openvino"])
def test_a_file_in_an_engine_that_is_none_of_its_parts_is_not_packaged(
    workspace: Path, lifedeploy, backend: str
) -> None:
    path = engine_of(workspace, "openvino").manifest_path
    code = path.with_name("model.py")
    code.write_text("import os")
    facts = json.loads(path.read_text())
    facts["engine"]["files"]["model.py"] = sha256(code)
    path.write_text(json.dumps(facts))
    ended = lifedeploy(
        "package", "--for", "triton", "-e", "openvino", "--backend", backend, "-o", workspace.parent / "repo"
    )
    assert ended.code == 1
    assert "names model.py, which is no part of an engine" in ended.lines[0]
    assert not (workspace.parent / "repo").exists()


def test_which_engine_is_meant(workspace: Path, lifedeploy) -> None:
    export = Workspace(workspace).latest_export()
    out = workspace.parent / "repo"
    for built in Workspace.engines_of(export):
        if built.manifest.engine.name == "fake":
            shutil.rmtree(built.folder)
    newest = Workspace.engines_of(export)[0].manifest.engine
    assert lifedeploy("package", export.folder, "--for", "triton", "-o", out).code == 0
    assert (record.read(out).engine, record.read(out).precision) == (newest.name, newest.precision)
    ended = lifedeploy("package", export.folder / "dense.json", "--for", "triton", "-o", out, "-e", "openvino")
    assert ended.code == 0, ended.err
    assert (record.read(out).method, record.read(out).engine) == ("dense", "openvino")
    for built in Workspace.engines_of(export):
        shutil.rmtree(built.folder)
    ended = lifedeploy("package", export.folder, "--for", "triton", "-o", out)
    assert (ended.code, ended.lines) == (
        1,
        [f"error: {export.folder}/ holds no engine", f"hint: lifedeploy build-engine {export.folder}"],
    )


def test_the_baseline_can_be_served_too(workspace: Path, lifedeploy) -> None:
    dense = engine_of(workspace, "openvino").manifest_path.with_name("dense.json")
    out = workspace.parent / "repo"
    ended = lifedeploy("package", dense, "--for", "triton", "-o", out)
    assert ended.code == 0, ended.err
    target = target_of(find(out / "test_vit_dense" / "1" / "model.json"))
    assert (target.method, target.path.name) == ("dense", "dense.xml")


def test_an_engine_that_did_not_pass_its_gate_is_not_packaged(workspace: Path, lifedeploy) -> None:
    path = engine_of(workspace, "openvino").manifest_path
    facts = json.loads(path.read_text())
    facts["parity"]["passed"] = False
    facts["parity"]["failures"] = ["photographs, batch 1: relative error 0.5"]
    path.write_text(json.dumps(facts))
    ended = lifedeploy("package", "--for", "triton", "-e", "openvino", "-o", workspace.parent / "repo")
    assert ended.code == 1
    assert "did not pass its parity gate" in ended.lines[0]


def test_an_engine_that_needs_pytorch_is_not_packaged(workspace: Path) -> None:
    target = of_artifact(engine_of(workspace, "openvino"))
    require_servable(target)
    with pytest.raises(UsageError, match=r"engine torch needs PyTorch, which no server of ours has"):
        require_servable(replace(target, engine=Torch))


def test_a_batch_that_an_export_fixed(workspace: Path) -> None:
    artifact = engine_of(workspace, "onnxruntime")
    fixed = replace(
        artifact.manifest,
        graph=artifact.manifest.graph.but(batch_size=4),
        inputs=(replace(artifact.manifest.inputs[0], shape=(4, 3, 64, 64)),),
    )
    served = Served(
        name="m", target=of_artifact(artifact), artifact=Artifact(artifact.manifest_path, fixed), plan=usual(4)
    )
    assert largest_batch(served.artifact, None) == 4
    with pytest.raises(Exception, match="more than the 4 images"):
        largest_batch(served.artifact, 8)
    with pytest.raises(Exception, match="fixed to batch 4, and Triton's onnxruntime backend fills no batch"):
        triton.require_backend(served, "onnxruntime")
    triton.require_backend(served, "python")
    assert asdict(served.plan)["max_batch"] == 4
