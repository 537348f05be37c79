"""A method is a row and a reducer, each in a file; timm is behind one adapter. The syntax trees are asked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifedeploy import methods
from lifedeploy.model.reducers import load_reducer
from tests.architecture.test_layers import MODULES, ROOT

TABLE = "methods.py"
ROWS = "rows/"
REDUCERS = "model/reducers/"
# Words that are a method's name and something else as well: file → word → what it is there.
OTHERWISE = {
    "engines/tensorrt/fusion.py": {"topk": "what kernels that sort are called"},
    "spec.py": {"life": "the output of a graph that gives lives"},
    "training/recipes.py": {"dense": "a setting of training"},
    "typed.py": {"random": "weights that nobody trained"},
}
OURS = [methods.get(name) for name in methods.names()]
# What a timm ViT is made of, by the names of its attributes; `blocks` and `heads` are words of the adapter too.
OF_TIMM = {
    *("patch_embed", "patch_drop", "_pos_embed", "norm_pre", "cls_token", "num_prefix_tokens", "embed_dim"),
    *("attn", "qkv", "q_norm", "k_norm", "norm1", "norm2", "ls1", "ls2", "drop_path1", "drop_path2"),
    *("num_heads", "head_dim", "fused_attn", "forward_head", "forward_features", "head_dist", "num_features"),
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


def names_in(path: Path) -> Iterator[tuple[int, str]]:
    """Methods that a module calls by name: in a string, or by importing their reducer."""
    reducers = {method.reducer.partition(":")[0] for method in OURS}
    classes = {method.reducer.partition(":")[2] for method in OURS}
    words = {method.name for method in OURS}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and node.value in words:
            yield node.lineno, str(node.value)
        elif isinstance(node, ast.ImportFrom) and node.module in reducers:
            yield node.lineno, node.module
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in reducers)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in classes:
                yield node.lineno, name


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_method_is_called_by_its_name_but_in_the_table_its_row_and_its_reducer(path):
    own = relative(path)
    if own == TABLE or own.startswith((ROWS, REDUCERS)):
        return
    allowed = OTHERWISE.get(own, {})
    assert [f"{own}:{line} {name}" for line, name in names_in(path) if name not in allowed] == []


def test_what_is_allowed_is_needed():
    found = {relative(path): {name for _, name in names_in(path)} for path in MODULES}
    assert all(word in found[file] for file, words in OTHERWISE.items() for word in words)


def test_the_search_would_find_one(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(
        "from lifedeploy.model.reducers.life import LifeReducer\n"
        "import lifedeploy.model.reducers.dense\n"
        "if spec.method == 'first-k':\n    LifeReducer()\n"
    )
    assert {name for _, name in names_in(path)} == {
        "lifedeploy.model.reducers.life",
        "lifedeploy.model.reducers.dense",
        "first-k",
        "LifeReducer",
    }


@pytest.mark.parametrize("method", OURS, ids=lambda method: method.name)
def test_a_method_inside_is_one_row_and_one_file_that_knows_no_other_methods(method):
    reducer = load_reducer(method)
    file = Path(*reducer.__module__.split(".")[1:]).with_suffix(".py")
    assert (ROOT / file).is_file() and file.as_posix().startswith(REDUCERS)
    others = [other for other in OURS if other is not method]
    imported = {node.module for node in ast.walk(tree(ROOT / file)) if isinstance(node, ast.ImportFrom)}
    assert not imported & {other.reducer.partition(":")[0] for other in others}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_timm_is_known_to_its_adapter_alone(path):
    if relative(path) in ("model/blocks.py", "model/prefix_block.py"):
        return
    found = [
        f"{relative(path)}:{node.lineno} .{node.attr}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in OF_TIMM
    ]
    imported = [
        f"{relative(path)}:{node.lineno} {alias.name}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("timm.models.vision_transformer")
        for alias in node.names
        if alias.name != "checkpoint_filter_fn"  # spellings of other tools' weights: model/checkpoint.py
    ]
    assert found + imported == []
