"""A graph as ``torch.onnx.export`` traces it, without what does nothing: constants folded, reshapes joined.

The exporter would do it too (``optimize=True``), with rules for other kinds of networks among its own. One of them
(``slice_split_rule``) takes time that grows with the square of the nodes: of ToMe's export that was more than half.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.pattern import RewriteRule
from onnxscript.rewriter.rules import common as rules

# In the exporter's own order. Versions that do not have one do not apply it either.
RULES = (
    "mul_by_1_rule",
    "add_0_rule",
    "sub_0_rule",
    "div_by_1_rule",
    "collapse_slice_rule",
    "collapse_slice2_rule",
    "materialize_reshape_shape_rule",
    "cast_cast_rule",
    "no_op_cast_rule",
    "no_op_expand_rule",
    "reshape_reshape_rule",
    "no_op_transpose_rule",
    "transpose_transpose_rule",
    "unsqueeze_unsqueeze_rule",
    "squeeze_reshape_1d_rule",
    "remove_optional_bias_from_gemm_rule",
)
_COMMUTATIVE = ("mul_by_1_rule", "add_0_rule")
_ROUNDS = 2  # what the rules leave can be folded, and the other way round


def simplify(model: ir.Model) -> None:
    """Fold constants, rewrite what does nothing, merge what is computed twice; in place."""
    common.InlinePass()(model)
    rewrite = RewritePass([rule for name in RULES if hasattr(rules, name) for rule in _both_ways(name)])
    for _ in range(_ROUNDS):
        fold_constants_ir(model, onnx_shape_inference=True)
        rewrite(model)
        common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)


def _both_ways(name: str) -> Sequence[RewriteRule]:
    """A rule, also with its operands exchanged where that is the same."""
    rule: RewriteRule = getattr(rules, name)
    return rule.commute() if name in _COMMUTATIVE else [rule]
