"""One word for one thing: what names, records and docstrings look like everywhere. The syntax trees are asked."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from lifedeploy.engines import registry
from tests.architecture.test_layers import MODULES
from tests.architecture.test_methods import relative, tree

NO_NAMES = {"found", "own", "made", "side", "one"}  # words that say nothing of what a thing is
MANY_FIELDS = 5  # from here on nobody remembers the order
FEWEST_WORDS = 3
DEFINED_ONCE = {"Progress": "progress.py", "Contender": "bench/measure.py"}
ENGINES = registry.names(hidden=True)
# Words that are an engine's name and something else as well: file → word → what it is there.
OTHERWISE = {
    "optional.py": {"onnxruntime": "a distribution, as pip knows it"},
    "workflows/doctor.py": {"onnxruntime": "the same"},
    "serving/triton.py": dict.fromkeys(("onnxruntime", "openvino", "tensorrt"), "a backend of Triton"),
}


def names_in(node: ast.AST) -> Iterator[str]:
    """Names that a node gives to something or calls it by; keywords of calls may be another library's."""
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
            yield name


def empty_names(module: ast.AST) -> Iterator[str]:
    for node in ast.walk(module):
        for name in names_in(node):
            if name.strip("_") in NO_NAMES:
                yield f"{getattr(node, 'lineno', 0)} {name}"


def positional_records(module: ast.AST) -> Iterator[str]:
    """Dataclasses of many fields, with those of bases in the same module, that can be made by position."""
    classes = {node.name: node for node in ast.walk(module) if isinstance(node, ast.ClassDef)}

    def fields(name: str) -> int:
        node = classes[name]
        inherited = sum(fields(base.id) for base in node.bases if isinstance(base, ast.Name) and base.id in classes)
        annotated = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        return inherited + sum("ClassVar" not in ast.unparse(item.annotation) for item in annotated)

    for name, node in classes.items():
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        dataclass = next((text for text in decorators if text.partition("(")[0].endswith("dataclass")), None)
        if dataclass is not None and "kw_only=True" not in dataclass and fields(name) >= MANY_FIELDS:
            yield f"{node.lineno} {name}: {fields(name)} fields"


def engines_by_name(module: ast.AST) -> Iterator[tuple[int, str]]:
    """Where an engine is told by its name: in a comparison, a pattern, the beginning or end of a text, or a table."""
    for node in ast.walk(module):
        match node:
            case ast.Compare():
                words = [word for operand in (node.left, *node.comparators) for word in constants(operand)]
                named = [word for word in words if word in ENGINES]
            case ast.MatchValue():
                named = [word for word in constants(node.value) if word in ENGINES]
            case ast.Dict():
                named = [word for key in node.keys if key is not None for word in constants(key) if word in ENGINES]
            case ast.Call(func=ast.Attribute(attr="startswith" | "endswith" as test)):
                words = [word for argument in node.args for word in constants(argument) if len(word) > 3]
                named = [word for word in words if any(getattr(engine, test)(word) for engine in ENGINES)]
            case _:
                continue
        yield from ((node.lineno, word) for word in named)


def constants(node: ast.AST) -> list[str]:
    """The texts that a node is, or holds as a tuple, list or set."""
    parts = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def short_docstrings(node: ast.AST, where: str = "") -> Iterator[str]:
    """Docstrings of public things that have too few words to say anything."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node)
        if text is not None and len(text.split()) < FEWEST_WORDS:
            yield f"{where or 'the module'}: {text}"
        for inner in node.body:
            name = getattr(inner, "name", "")
            if name and (not name.startswith("_") or name.startswith("__")):
                yield from short_docstrings(inner, f"{where}.{name}" if where else name)


def definitions(module: ast.Module) -> Iterator[str]:
    """What a module defines at its top."""
    for node in module.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_names_say_what_a_thing_is(path):
    assert list(empty_names(tree(path))) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_records_of_many_fields_are_made_by_keyword(path):
    assert list(positional_records(tree(path))) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_engines_are_told_by_what_they_say_of_themselves_not_by_their_names(path):
    if not relative(path).startswith("engines/"):
        allowed = OTHERWISE.get(relative(path), {})
        assert [f"{line} {word}" for line, word in engines_by_name(tree(path)) if word not in allowed] == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_docstrings_of_what_is_public_say_something(path):
    assert list(short_docstrings(tree(path))) == []


@pytest.mark.parametrize("name", DEFINED_ONCE)
def test_words_of_the_whole_house_are_defined_once(name):
    assert [relative(path) for path in MODULES if name in definitions(tree(path))] == [DEFINED_ONCE[name]]


def test_what_is_allowed_is_needed():
    root = {relative(path): path for path in MODULES}
    words = {file: {word for _, word in engines_by_name(tree(root[file]))} for file in OTHERWISE}
    assert all(word in words[file] for file, allowed in OTHERWISE.items() for word in allowed)


def test_the_searches_would_find_what_they_look_for():
    module = ast.parse(
        '"""Too short."""\n'
        "@dataclass(frozen=True)\nclass Base:\n    a: int\n    b: int\n    c: ClassVar[int]\n"
        "@dataclass\nclass Row(Base):\n    d: int\n    e: int\n    side: int\n"
        "    def run(self, one):\n        'It runs.'\n"
        "@dataclass(kw_only=True)\nclass Fine(Row):\n    f: int\n"
        "own = self.made\n_found = lambda text: f'{own}'\n"
        "name == 'torch' or name not in ('openvino', 'x') or name.startswith('onnx') or name.endswith('-rtx')\n"
        "tools = {'tensorrt': 1}\nmatch name:\n    case 'fake':\n        pass\n"
        "name == 'cpu' or name.startswith('on') or name in others\n"
    )
    assert {line.split()[1] for line in empty_names(module)} == {"_found", "made", "one", "own", "side"}
    assert [line.split()[1] for line in positional_records(module)] == ["Row:"]
    assert [word for _, word in sorted(engines_by_name(module))] == [
        *("-rtx", "onnx", "openvino", "torch"),
        *("tensorrt", "fake"),
    ]
    assert list(short_docstrings(module)) == ["the module: Too short.", "Row.run: It runs."]
    assert list(definitions(module)) == ["Base", "Row", "Fine", "own", "_found", "tools"]
