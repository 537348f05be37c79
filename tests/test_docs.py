"""Code that the documentation shows does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch

DOCS = Path(__file__).parents[1] / "docs"
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
