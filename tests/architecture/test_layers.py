"""Who may import whom, and through which door a heavy library comes in. See docs/architecture.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lifedeploy

ROOT = Path(lifedeploy.__file__).parent
FOUNDATION = {
    "errors",
    "text",
    "children",
    "graphs",
    "graph_outputs",
    "bounds",
    "reading",
    "temporary",
    "writing",
    "optional",
    "schedule",
    "cost",
    "last_block",
    "budget",
    "options",
    "method",
    "methods",
    "recipe",
    "kept",
    "spec",
    "files",
    "caches",
    "artifact",
    "manifest",
    "published",
    "records",
    "section",
    "tuned",
    "typed",
    "machine",
    "processes",
    "limits",
    "progress",
}
ROOMS = {"data", "model", "exporters", "engines", "training", "evaluation", "calibration", "bench", "tuning"}
# A package may import from itself and from these.
MAY_IMPORT = {
    "rows": FOUNDATION - {"methods"},
    "data": FOUNDATION,
    "model": FOUNDATION,
    "exporters": FOUNDATION | {"model"},
    "engines": FOUNDATION | {"data"},
    "training": FOUNDATION | {"data", "model"},
    "evaluation": FOUNDATION | {"data", "engines"},
    "calibration": FOUNDATION | {"data", "exporters", "engines", "evaluation"},
    "bench": FOUNDATION | {"engines"},
    "tuning": FOUNDATION | {"data", "model", "bench"},
    "viz": FOUNDATION | {"bench", "evaluation", "training", "calibration", "tuning"},
    "targets": FOUNDATION | ROOMS - {"training"},
    "serving": FOUNDATION | {"data", "engines", "targets"},
    "scoring": FOUNDATION | {"data", "engines", "targets"},
    "workflows": FOUNDATION | ROOMS | {"viz", "targets", "serving", "scoring"},
    "cli": FOUNDATION | ROOMS - {"data"} | {"viz", "targets", "serving", "scoring", "workflows"},
}
# The torch engine makes its model from a checkpoint: the one way from engines to model, inside a function. The table is
# made of the rows.
EXCEPTIONS = {("engines/torch.py", "model"), ("methods.py", "rows")}
# Modules that may import a heavy library at the top of the file. Everyone else does it inside a function, or not.
DOORS = {
    "torch": {
        "model",
        "exporters/wrapper.py",
        "exporters/onnx.py",
        "workflows/export.py",
        "workflows/train.py",
        "training",
        "tuning/losses.py",
    },
    "timm": {"model", "training"},
    "onnx": set(),
    "onnx_ir": {"exporters", "calibration"},
    "onnxruntime": set(),
    "openvino": set(),
    "tensorrt": set(),
    "tensorrt_rtx": set(),
    "cuda": set(),
    "pycuda": set(),
    "matplotlib": set(),
    "typer": {"cli"},
    "rich": {"cli"},
    "PIL": {"data"},
    "safetensors": {"model", "training"},
    "accelerate": set(),
    "datasets": set(),
    "pyarrow": set(),
    "fsspec": set(),
    "ray": set(),
    "kserve": {"serving/kserve_models.py", "serving/kserve_server.py"},
    "grpc": {"serving/kserve_server.py"},
}
MODULES = sorted(ROOT.rglob("*.py"))


def imports(path: Path, *, top_level_only: bool) -> list[str]:
    """Modules that a file imports, as dotted names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def layer(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else Path(parts[0]).stem


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards_only(path):
    own = layer(path)
    if own in ("__init__", "__main__"):
        return
    allowed = MAY_IMPORT.get(own, FOUNDATION) | {own}
    for name in imports(path, top_level_only=False):
        parts = name.split(".")
        if parts[0] != "lifedeploy" or len(parts) < 2 or parts[1] == "__version__":
            continue
        if (str(path.relative_to(ROOT)), parts[1]) in EXCEPTIONS:
            continue
        assert parts[1] in allowed, f"{own} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_come_in_by_their_door(path):
    relative = str(path.relative_to(ROOT))
    for name in imports(path, top_level_only=True):
        doors = DOORS.get(name.split(".")[0])
        if doors is not None:
            assert relative in doors or layer(path) in doors, f"{relative} imports {name} at the top"


def test_every_package_has_its_place():
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages == set(MAY_IMPORT)


def test_every_package_has_its_tests():
    tests = Path(__file__).parents[1]
    folders = {path.name for path in tests.iterdir() if list(path.rglob("test_*.py"))}
    assert set(MAY_IMPORT) - {"rows"} | {"foundation", "methods"} <= folders
    assert list(tests.glob("test_*.py")) == [], "tests of what lies in lifedeploy itself are in tests/foundation"


def test_files_can_be_read_in_one_sitting():
    """Half of them at a glance, nearly all without scrolling back, none beyond what fits a head."""
    lines = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES)
    assert (lines[len(lines) // 2] <= 130, lines[len(lines) * 9 // 10] <= 270, lines[-1] <= 350) == (True, True, True)


def test_workflows_are_verbs():
    """Each is a command; of each other they know only that bench builds what is missing, and evaluates; and that
    compare does both in the way of bench, and exports and calibrates what is missing."""
    verbs = {path: path.relative_to(ROOT / "workflows").parts[0] for path in ROOT.glob("workflows/**/*.py")}
    assert len(set(verbs.values())) <= 16
    used = {
        (verb.removesuffix(".py"), name.split(".")[2])
        for path, verb in verbs.items()
        for name in imports(path, top_level_only=False)
        if name.startswith("lifedeploy.workflows.")
    }
    used -= {(verb, verb) for verb, _ in used}  # a verb of several files
    assert used == {
        *(("bench", verb) for verb in ("build", "evaluate")),
        *(("compare", verb) for verb in ("bench", "build", "calibrate", "evaluate", "export")),
    }


def test_models_are_opened_and_asked_by_sessions_alone():
    """Above the rooms that measure nobody opens an engine, or calls what an open one is asked by."""
    above = [path for path in MODULES if layer(path) in ("targets", "workflows", "cli", "viz")]
    asking = re.compile(r"\bengine\.(run|lane|profile)\(|enter_context\((\w+\.)?(kind|engine)\(")
    assert {str(path.relative_to(ROOT)) for path in above if asking.search(path.read_text("utf-8"))} == {
        "targets/session.py"
    }


def test_selecting_builds_and_proves_nothing():
    """Layers keep it from workflows, which build; of the evidence it may only ask whether there is some."""
    taken = imports(ROOT / "targets/select.py", top_level_only=False)
    evidence = {name.rpartition(".")[2] for name in taken if name.startswith("lifedeploy.targets.evidence.")}
    assert evidence == {"require_passed"}
    assert not [name for name in taken if "session" in name or "exporters" in name]


def test_imports_make_no_circle():
    graph = {module_name(path): set() for path in MODULES}
    for path in MODULES:
        for name in imports(path, top_level_only=True):
            parts = name.split(".")
            while parts and ".".join(parts) not in graph:
                parts.pop()
            if parts and ".".join(parts) not in ("lifedeploy", module_name(path)):
                graph[module_name(path)].add(".".join(parts))
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"a circle runs through {sorted(graph)}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_only_the_command_line_prints():
    for path in MODULES:
        if layer(path) != "cli":
            calls = [
                node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
            ]
            assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path
