"""What is quantised is what the policy says."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from lifedeploy.calibration import policy
from lifedeploy.errors import UsageError

DEPTH = 4


def test_every_product_has_its_part(life):
    found = policy.products_in(life[0])
    assert Counter(product.part for product in found) == {
        "linear": 4 * DEPTH,
        "attention": 2 * DEPTH,
        "embedding": 1,
        "head": 1,
        "ranking": 2,
    }
    assert {product.name for product in found if product.part == "ranking"} == {
        "reducer.predictor/MatMul",
        "reducer.predictor/MatMul_1",
    }


def test_parts_are_found_by_what_they_do_and_the_ranking_by_where_it_was_traced(life):
    model = ir.load(life[0])
    before = [product.part for product in policy.products(model)]
    for index, node in enumerate(model.graph):
        node.name = f"reducer.any/n{index}" if node.name.startswith("reducer.") else f"n{index}"
        for number, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"v{index}.{number}"
    assert [product.part for product in policy.products(model)] == before


def test_the_default_policy():
    assert policy.default_parts("int8") == ("linear",)
    assert policy.default_parts("fp8") == ("linear", "attention")


def test_as_rows_say_what_is_quantised_and_count_it(life):
    rows = {row["part"]: row for row in policy.as_rows("int8", ("linear",), policy.products_in(life[0]))}
    assert rows["linear"]["precision"] == "int8"
    assert rows["linear"]["count"] == 4 * DEPTH
    assert {row["precision"] for name, row in rows.items() if name != "linear"} == {"float"}
    assert all(row["reason"] and row["products"] for row in rows.values())
    assert policy.as_rows("fp8", ("linear",))[0]["count"] is None


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("ranking",), "'ranking' is never quantised: scores closer than 8 bits"),
        (("linear", "softmax"), "'softmax' is unknown; there are: linear, attention, embedding, head"),
        ((), "no part to quantise was named"),
    ],
)
def test_parts_that_cannot_be_quantised(parts, said):
    with pytest.raises(UsageError, match=said):
        policy.check_parts(parts)
