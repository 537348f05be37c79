"""What a container image is built from; a fresh environment stands in for the image, in which nothing else imports."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import lifedeploy
from lifedeploy.artifact import Workspace
from lifedeploy.engines import registry
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.serving import docker, pins, wheel
from lifedeploy.serving import record as records
from lifedeploy.serving.images import best_classes, prepared
from lifedeploy.targets.find import find
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import target_of
from lifedeploy.workflows.package import PackageRequest, package

NAME = f"lifedeploy-{lifedeploy.__version__}-py3-none-any.whl"
# Imports what is pinned and what Python has, and nothing else: runs before the command line, as an image would.
ALONE = """
import sys
from importlib import metadata
pinned = set(sys.argv.pop(1).split(","))
# Python adds the environment's own folder first; that of the distributions behind it stands for what pip installs.
there = {name for name, distributions in metadata.packages_distributions().items()
         if {d.lower().replace("_", "-") for d in distributions} & pinned}
class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in there | sys.stdlib_module_names | {"lifedeploy"} and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named {name!r}: it is not in requirements.txt", name=name)
sys.meta_path.insert(0, Absent())
import lifedeploy
assert lifedeploy.__file__.startswith(sys.prefix), lifedeploy.__file__
from lifedeploy.__main__ import main
main()
"""


def requirements(out: Path) -> dict[str, str]:
    lines = (out / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.fixture(scope="module")
def built(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docker") / "image"
    folder = next(exported.glob("*/model.json")).parent
    request = PackageRequest(target="docker", out=out, model=folder, engine="onnxruntime", name="vit")
    package(request, Workspace(exported))
    return out


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment in which the wheel is installed by pip; dependencies are those of this one."""
    home = tmp_path_factory.mktemp("environment")
    python = home / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--no-compile", str(built / NAME)], check=True)
    packages = next(home.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_folder_holds_what_the_image_is_built_from_and_nothing_else(built):
    record = records.read(built)
    records.check(built, record)
    assert (record.target, record.backend, record.models) == ("docker", "docker", ("vit",))
    assert set(record.files) == {
        *(".dockerignore", "Dockerfile", "requirements.txt", NAME),
        *("model/model.json", "model/model.onnx"),
    }
    text = (built / "Dockerfile").read_text()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert re.findall("^FROM (.*)$", text, re.M) == [f"python:{version}-slim"]
    assert 'ENTRYPOINT ["lifedeploy"]\nCMD ["inspect", "/model/vit"]\n' in text and "\nUSER 10001\n" in text
    assert "EXPOSE" not in text and "--no-deps /tmp/lifedeploy/" + NAME in text
    copied = {name for line in re.findall("^COPY (.*)$", text, re.M) for name in line.split()[:-1]}
    assert copied == {"requirements.txt", NAME, "model"}
    ignored = (built / ".dockerignore").read_text().split("\n")[1:-1]
    assert copied | set(ignored) == {path.name for path in built.iterdir()}


def test_versions_are_those_that_ran_here_and_of_nothing_that_trains(built):
    pinned = requirements(built)
    assert pinned["onnxruntime"] == metadata.version("onnxruntime")
    assert {"numpy", "pillow", "msgspec", "typer", "rich", "onnx", "protobuf", "markdown-it-py"} <= set(pinned)
    assert not {"torch", "timm", "openvino", "lifedeploy", "accelerate", "matplotlib"} & set(pinned)
    assert all(version == metadata.version(name) for name, version in pinned.items())


def test_every_engine_brings_its_own_runtime_alone():
    assert "openvino" in pins.pinned(registry.get("openvino"))
    assert "onnxruntime" not in pins.pinned(registry.get("openvino"))
    assert "openvino" not in pins.pinned(registry.get("onnxruntime"))


def test_requirements_are_read_with_their_extras_and_conditions(monkeypatch):
    class Installed:
        def __init__(self, version: str, *requires: str) -> None:
            self.version, self.requires = version, requires

    there = {
        "a": Installed("1", "B_b[fast] >=2 ; python_version > '3'", "absent ; sys_platform == 'win32'"),
        "b-b": Installed("2", "c ; extra == 'fast'", "d;extra=='slow'", "a"),
        "c": Installed("3"),
        "d": Installed("4"),
        "lifedeploy": Installed("0", "a", "d ; extra == 'onnxruntime'", "absent ; extra == 'export'"),
    }

    def distribution(name: str) -> Installed:
        try:
            return there[pins._normal(name)]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(metadata, "distribution", distribution)
    assert pins.pinned(registry.get("onnxruntime")) == {"a": "1", "b-b": "2", "c": "3", "d": "4"}
    monkeypatch.delitem(there, "d")
    with pytest.raises(UsageError, match="d is not installed here, so its version cannot be pinned"):
        pins.pinned(registry.get("onnxruntime"))


def test_the_wheel_is_what_runs_here_to_the_byte_and_the_same_every_time(tmp_path, built):
    path = wheel.write(tmp_path)
    assert path.name == NAME and path.read_bytes() == (built / NAME).read_bytes()
    root = Path(lifedeploy.__file__).parent
    information = f"lifedeploy-{lifedeploy.__version__}.dist-info"
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    code = {name for name in contents if name.startswith("lifedeploy/")}
    wanted = {path for ending in ("py", "jpg") for path in root.rglob(f"*.{ending}")}
    assert {f"lifedeploy/{path.relative_to(root).as_posix()}" for path in wanted} <= code
    assert all(contents[name] == (root.parent / name).read_bytes() for name in code)
    assert not [name for name in code if "__pycache__" in name]
    rows = list(csv.reader(io.StringIO(contents.pop(f"{information}/RECORD").decode())))
    assert rows.pop() == [f"{information}/RECORD", "", ""]
    for name, digest, size in rows:
        hashed = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={hashed}", len(contents[name]))
    assert [name for name, _, _ in rows] == list(contents)
    told = contents[f"{information}/METADATA"].decode()
    assert f"Name: lifedeploy\nVersion: {lifedeploy.__version__}\n" in told
    required = {line.removeprefix("Requires-Dist: ") for line in told.splitlines() if line.startswith("Requires-Dist")}
    assert required == set(metadata.distribution("lifedeploy").requires)
    assert contents[f"{information}/entry_points.txt"] == b"[console_scripts]\nlifedeploy = lifedeploy.__main__:main\n"
    assert f"{information}/licenses/LICENSE" in contents


def test_another_version_than_the_one_that_runs_makes_no_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(wheel, "__version__", "9.9")
    with pytest.raises(ArtifactError, match=r"lifedeploy 9\.9 runs, and the one installed is"):
        wheel.write(tmp_path)


def test_the_wheel_installs_as_a_program(environment):
    done = subprocess.run([environment.with_name("lifedeploy"), "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, f"lifedeploy {lifedeploy.__version__}"), done.stderr
    script = "import lifedeploy, sys; print(lifedeploy.__file__.startswith(sys.prefix))"
    assert subprocess.run([environment, "-P", "-c", script], capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize("command", ["predict", "inspect"])
def test_what_the_image_is_for_runs_on_what_is_pinned_alone(built, environment, tmp_path, command):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    model, report = str(built / "model"), tmp_path / "report.json"
    asked = ["predict", str(tmp_path / "cat.png"), "--model", model] if command == "predict" else ["inspect", model]
    call = [environment, "-P", "-c", ALONE, ",".join(requirements(built)), *asked, "--json", str(report)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text())
    if command == "predict":
        (prediction,) = told["predictions"]
        with Session(target_of(find(built / "model"))) as session:
            files = [(tmp_path / "cat.png").read_bytes()]
            logits = session.answer(
                prepared(files, session.preprocess, in_graph=session.takes_pixels, dtype="float32")
            ).logits
        names, shares = best_classes(logits, 3, session.target.spec.classes)
        assert [guess["name"].encode() for guess in prediction["guesses"]] == names[0].tolist()
        np.testing.assert_allclose([guess["probability"] for guess in prediction["guesses"]], shares[0], atol=1e-5)
    else:
        assert told["path"].endswith("model.onnx")


@pytest.mark.parametrize(
    ("engine", "file", "said"), [("torch", "a.safetensors", "runs in PyTorch"), ("tensorrt", "a.plan", "runs on a GPU")]
)
def test_what_needs_torch_or_a_gpu_is_refused(engine, file, said):
    served = SimpleNamespace(
        target=SimpleNamespace(engine=registry.get(engine)), artifact=SimpleNamespace(path=Path(file))
    )
    with pytest.raises(UsageError, match=f"{file} {said}") as refused:
        docker.write(Path("nowhere"), served, "", {})
    assert refused.value.hint
