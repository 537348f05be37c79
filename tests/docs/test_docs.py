"""Code that the documentation shows does what it says."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch

from lifedeploy import methods
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.inspect import kept_layers
from tests.conftest import make_tiny

DOCS = Path(__file__).parents[2] / "docs"
# timm's name → that of transformers, as it writes files and as it names its own parameters.
SAVED = [
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^norm\.", "layernorm."),
]
OWN = [
    (r"^blocks\.(\d+)\.", r"layers.\1."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^norm\.", "layernorm."),
]
ENDS = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
PARTS = {"saved": ("attention.attention.query", "attention.attention.key", "attention.attention.value")}
PARTS["own"] = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


@pytest.mark.parametrize("names", ["saved", "own"])
@pytest.mark.parametrize("prefix", ["vit.", ""])
def test_a_state_dict_of_transformers_is_turned_into_timms(names, prefix):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "weights.md").read_text(encoding="utf-8"), re.DOTALL)
    space: dict = {}
    exec(blocks[0], space)
    wanted = timm.create_model("test_vit", num_classes=3).state_dict()
    given = {}
    for name, tensor in wanted.items():
        if ".qkv." in name:
            block, kind = re.fullmatch(r"(blocks\.\d+)\.attn\.qkv\.(\w+)", name).groups()
            number = block.partition(".")[2]
            layer = f"encoder.layer.{number}" if names == "saved" else f"layers.{number}"
            for part, rows in zip(PARTS[names], tensor.chunk(3), strict=True):
                given[f"{prefix}{layer}.{part}.{kind}"] = rows
            continue
        other = ENDS.get(name, name)
        for old, new in SAVED if names == "saved" else OWN:
            other = re.sub(old, new, other)
        other = re.sub(r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection.", other)
        other = re.sub(r"^head\.", "classifier.", other)
        given[other if other.startswith("classifier.") else prefix + other] = tensor
    found = space["to_timm"](
        given | {f"{prefix}embeddings.mask_token": torch.ones(1), "pooler.dense.bias": torch.ones(1)}
    )
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def blocks_of(section: str, language: str) -> list[str]:
    """Code of one language in a section of docs/architecture.md, as it stands there."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    body = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", body, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def test_the_method_that_the_how_to_adds_is_one(monkeypatch):
    package, module = ModuleType("my_package"), ModuleType("my_package.reducer")
    monkeypatch.setitem(sys.modules, "my_package", package)
    monkeypatch.setitem(sys.modules, "my_package.reducer", module)
    reducer, row = blocks_of("Adding a method", "python")
    exec(reducer, vars(module))
    exec(row, vars(package))
    (added,) = blocks_of("Adding a method", "toml")
    entries = tomllib.loads(added)["project"]["entry-points"][methods.GROUP]
    found = {name: (EntryPoint(name, value, methods.GROUP),) for name, value in entries.items()}
    monkeypatch.setattr(methods, "plugins", lambda: found)

    model, spec = make_tiny(method="strongest", ordering="per-stage")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = model(images)
    assert {layer: tuple(kept.shape) for layer, kept in output.kept.items()} == {2: (2, 11), 3: (2, 6)}
    assert all(
        set(late) < set(early) for early, late in zip(output.kept[2].tolist(), output.kept[3].tolist(), strict=True)
    )
    graph = exporter.trace(model, spec, exporter.GraphOptions(ordering="per-stage"))
    exporter.passes.read_well(graph)
    assert kept_layers(exporter.ir.to_proto(graph)) == (2, 3)
    assert [node.name for node in graph.graph if node.op_type == "TopK"] == ["reducer/TopK", "reducer/TopK_1"]
