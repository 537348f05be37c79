"""A graph as ``torch.onnx.export`` traces it, without what does nothing: constants folded, reshapes joined.

The exporter would do it too (``optimize=True``), with rules for other kinds of networks among its own. One of them
(``slice_split_rule``) takes time that grows with the square of the nodes: of ToMe's export that was more than half.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

_RULES = (
    *rules.mul_by_1_rule.commute(),
    *rules.add_0_rule.commute(),
    rules.sub_0_rule,
    rules.div_by_1_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.remove_optional_bias_from_gemm_rule,
)
_ROUNDS = 2  # what the rules leave can be folded, and the other way round


def simplify(model: ir.Model) -> None:
    """Fold constants, rewrite what does nothing, merge what is computed twice; in place."""
    common.InlinePass()(model)
    rewrite = RewritePass(_RULES)
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
