"""Executed nodes are put into the right rows, and rows into the right shares of time and ceiling."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.cpu import rows


@pytest.mark.parametrize(
    ("name", "kind", "row"),
    [
        ("patch_embed.proj/Conv/WithoutBiases", "Convolution", "patch embedding"),
        ("images_f32_abcd_bf16_acdb_patch_embed.proj/Conv/WithoutBiases", "Reorder", "copies"),
        ("blocks.3.attn.qkv/Add", "FullyConnected", "qkv"),
        ("blocks.3.attn.qkv/MatMul/DequantizationMultiply", "FullyConnected", "qkv"),
        ("blocks.11.attn.kv/Add", "FullyConnected", "qkv"),
        ("blocks.11.attn.q/Add", "FullyConnected", "qkv"),
        ("blocks.3.attn/Transpose", "Transpose", "copies"),
        ("Multiply_7831", "Subgraph", "scale of Q"),
        ("blocks.3.attn/MatMul_1", "Subgraph", "attention"),
        ("blocks.3.attn/MatMul", "MatMul", "QKᵀ"),
        ("blocks.3.attn/MatMul_1", "MatMul", "P·V"),
        ("blocks.3.attn/Softmax", "Softmax", "softmax"),
        ("blocks.3.attn/Reshape_1_output_0/QuantizeLinear", "Subgraph", "quantise, dequantise"),
        ("blocks.3.norm1/LayerNormalization_output_0/QuantizeLinear", "Subgraph", "quantise, dequantise"),
        ("blocks.3.norm1/LayerNormalization", "Subgraph", "scale and shift of norms"),
        ("MVN_343", "MVN", "norms"),
        ("blocks.11.mlp.fc1/Add", "FullyConnected", "fc1"),
        ("blocks.11.mlp.fc2/MatMul/DequantizationMultiply", "FullyConnected", "fc2"),
        ("blocks.3/Add_1", "Subgraph", "sums: residuals, positions"),
        ("reducer.predictor/MatMul", "FullyConnected", "predictor"),
        ("reducer.predictor.norm/LayerNormalization", "Subgraph", "predictor"),
        ("reducer.order.4/TopK", "TopK", "TopK"),
        ("reducer.order.4/Gather", "Gather", "copies"),
        ("reducer.order.4/Add_1", "Eltwise", rows.OTHER),
        ("logits", "FullyConnected", "head"),
    ],
)
def test_nodes_are_told_by_kind_and_name(name, kind, row):
    assert rows.row_of(name, kind) == row


def test_the_products_are_deit_s():
    work = rows.shapes((rows.PATCHES,) * 12, (rows.PATCHES,) * 12, 8)
    counted = [name for name in work if name != "attention"]  # which is two others together
    assert sum(rows.macs(work[name]) for name in counted) == pytest.approx(8 * 4.60e9, rel=2e-3)
    assert rows.macs(work["attention"]) == rows.macs(work["QKᵀ"]) + rows.macs(work["P·V"])
    assert work["fc1"] == Counter({(1, 8 * 197, 384, 1536): 12})
    # Of prefix tokens alone in the last block: what is left out is exact.
    prefix = rows.shapes((rows.PATCHES,) * 12, (rows.PATCHES,) * 11 + (0,), 8)
    saved = sum(rows.macs(work[name]) - rows.macs(prefix[name]) for name in counted)
    assert saved == 8 * (4_598_882_304 - 4_280_214_528)
    assert prefix["qkv"] == Counter(
        {(1, 8 * 197, 384, 3 * 384): 11, (1, 8, 384, 384): 1, (1, 8 * 197, 384, 2 * 384): 1}
    )


def test_what_went_into_a_row_is_told_without_its_layer():
    origins = ("blocks.{}.mlp.fc1/Add", "blocks.{}.mlp.act/Gelu")
    nodes = [
        rows.Node(
            f"blocks.{layer}.mlp.fc1/Add", "FullyConnected", "bf16", tuple(name.format(layer) for name in origins)
        )
        for layer in (0, 11)
    ]
    assert rows.held(nodes) == {"fc1": ["mlp.fc1/Add", "mlp.act/Gelu"]}
    assert rows.precisions([*nodes, rows.Node("blocks.1.mlp.fc1/Add", "FullyConnected", "int8")]) == {"fc1": "bf16"}


def test_shares_and_ceilings():
    shape = (1, 1000, 1000, 500)  # 10⁹ operations
    layers = [(f"blocks.{layer}.mlp.fc1/Add", "FullyConnected", 2.0) for layer in range(2)]
    spent = rows.summed([*layers, ("MVN_1", "MVN", 1.0)])
    first, second = rows.table_rows(spent, {"fc1": "bf16"}, {"fc1": {shape: 2}}, {("bf16", shape): 1.5})
    assert (first["row"], first["ms"], first["share"], first["gmacs"]) == ("fc1", 4.0, 0.8, 1.0)
    assert first["gops"] == pytest.approx(500) and first["ceiling"] == pytest.approx(2e3 / 3)
    assert first["of_ceiling"] == pytest.approx(0.75)
    assert (second["row"], second["share"], second["gmacs"], second["ceiling"]) == ("norms", 0.2, None, None)
