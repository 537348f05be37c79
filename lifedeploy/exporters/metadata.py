"""What an export says of itself: its work for the manifest, and facts for other tools in the ONNX file."""

from __future__ import annotations

from dataclasses import asdict

from lifedeploy import methods
from lifedeploy.cost import Cost, Work
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.optional import versions
from lifedeploy.records import MacsRecord
from lifedeploy.spec import ModelSpec
from lifedeploy.typed import LastBlock


def macs(spec: ModelSpec, cost: Cost, last_block: LastBlock = "full", of_dense: LastBlock = "full") -> MacsRecord:
    """Work per image, for the manifest; with what its last block computes, and that of the baseline beside it.

    Raises:
        UsageError: the method is not known here.
    """
    method = methods.get(spec.method)
    work = method.count_work(spec.schedule, spec.options, cost, last_block)
    plain = Work.dense(spec.schedule)
    total, dense = cost.total(work), cost.total(plain.with_prefix_block() if of_dense == "prefix" else plain)
    return MacsRecord(
        total=total,
        dense=dense,
        plain=cost.total(plain),
        per_layer=tuple(cost.per_layer(work)),
        attention_tokens=tuple(work.attention),
        query_tokens=tuple(work.attending),
        mlp_tokens=tuple(work.mlp),
        embed=cost.embed,
        predictor=work.scoring,
        head=cost.head,
        speedup_bound=dense / total,
    )


def metadata(spec: ModelSpec, cost: Cost, options: GraphOptions, last_block: LastBlock = "full") -> dict[str, object]:
    """What another tool may want to know, in the ONNX file itself."""
    drops = methods.role_of(spec.method) != methods.BASELINE
    layout = "NHWC uint8 RGB" if options.with_preprocess else "NCHW float32 RGB"
    return {
        "lifedeploy.version": versions(("lifedeploy",)).get("lifedeploy", ""),
        "lifedeploy.backbone": spec.timm_name,
        "lifedeploy.method": spec.method,
        "lifedeploy.graph": options.ordering,
        "lifedeploy.last_block": last_block,
        "lifedeploy.tokens": list(spec.schedule.tokens) if drops else [spec.schedule.patches],
        "lifedeploy.drop_layers": list(spec.schedule.drop_layers) if drops else [],
        "lifedeploy.prefix_tokens": spec.prefix_tokens,
        "lifedeploy.macs": macs(spec, cost, last_block).total,
        "lifedeploy.weights": spec.provenance.weights,
        "lifedeploy.predictor": spec.provenance.predictor,
        "preprocess": asdict(spec.preprocess) | {"in_graph": options.with_preprocess, "layout": layout},
        "classes": list(spec.classes),
    }
