"""``lifedeploy inspect``: what is in a model, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy import methods
from lifedeploy.artifact import WORKSPACE, Manifest, Workspace
from lifedeploy.cli import console, options, tables
from lifedeploy.cli.commands.package import packaged
from lifedeploy.text import printable

if TYPE_CHECKING:
    from lifedeploy.exporters.inspect import GraphFacts
    from lifedeploy.records import QuantizationRecord
    from lifedeploy.spec import ModelSpec
    from lifedeploy.workflows.inspect import InspectReport


_FATES = {
    "dropped": "tokens that do not go on are dropped",
    "merged": "tokens that do not go on are merged into others",
    "parked": "tokens that do not go on wait, and come back",
    "halted": "tokens that halted are masked, and none is dropped",
}
_LEAVING = {"dropped": "dropped after", "merged": "merged in", "parked": "chosen after", "halted": "dropped after"}
_LAST_BLOCKS = {"prefix": "of prefix tokens alone: nobody reads others behind it", "full": "of all tokens"}
_PREDICTORS = {"identity": "identity: its start, not trained", "none": "none: the method has none of its own"}


def inspect(
    model: options.ModelArgument = None,
    workspace: options.WorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Show tokens and MACs per layer, the graph's TopK, Gather and Slice nodes, precision and provenance.

    Of a package: what is in it, whether that is what was packaged, and whether it is out of date.
    """
    options.require_apart({"--json": json}, [model])
    from lifedeploy.workflows.inspect import inspect as run

    report = run(model, Workspace(workspace))
    for line in report.outdated:
        console.warn(f"{line}: package it again", title="out of date")
    console.report(json, report.to_dict, lambda: inspected(report))


def inspected(report: InspectReport) -> RenderableType:
    """What ``inspect`` found."""
    parts: list[RenderableType] = [Text(printable(report.path), style="bold")]
    if report.package is not None:
        return Group(*parts, packaged(report.package))
    if report.spec is not None:
        parts.append(_identity(report.spec, report.manifest))
    if report.manifest is not None and report.manifest.quantization:
        parts += [Text(""), _quantization(report.manifest.quantization)]
    if report.manifest is not None:
        parts += [Text(""), _layers(report.manifest)]
    if report.graph is not None:
        parts += [Text(""), _graph(report.graph)]
    if report.manifest is None:
        parts.append(Text("Not exported by lifedeploy: no manifest, no schedule.", style="yellow"))
    return Group(*parts)


def _quantization(facts: QuantizationRecord) -> Table:
    data = facts.data
    kept = "" if facts.overlap is None else f", {facts.overlap:.1%} of the kept tokens"
    pairs = {
        "recipe": f"{facts.precision}, {facts.method}, weights "
        f"{'per channel' if facts.per_channel else 'per tensor'}, smoothing {facts.smoothing:g}",
        "parts": ", ".join(facts.parts),
        "images": f"{data.images} of {data.source}, seed {data.seed}, SHA-256 {data.sha256[:12]}…",
        "as float": f"{facts.same_top1:.1%} of the answers{kept}, on {facts.images} images",
    }
    if facts.restored:
        pairs["in float"] = ", ".join(facts.restored)
    return tables.facts(pairs, title="Calibration")


def _identity(spec: ModelSpec, manifest: Manifest | None) -> Table:
    height, width = spec.image_size
    fate = methods.fate_of(spec.method)
    origin = spec.provenance
    facts = {
        "backbone": f"{spec.backbone} ({spec.timm_name}), {height}x{width} px, {spec.num_classes} classes",
        "method": _method(spec),
        **_treatment(spec),
        "weights": " ".join(part for part in (origin.weights, origin.source, origin.sha256[:12]) if part),
        "predictor": _PREDICTORS.get(origin.predictor, origin.predictor),
        "tokens": f"{tables.stages(spec)}, and {spec.prefix_tokens} prefix; {_LEAVING[fate]} layers "
        f"{', '.join(map(str, spec.schedule.drop_layers)) or 'none'}",
    }
    if manifest is not None:
        facts["last block"] = _LAST_BLOCKS[manifest.last_block]
    if manifest is not None and manifest.predicts_lives:
        mean, deviation = spec.schedule.mean_life, spec.schedule.std_life
        counted = f"{spec.schedule.shortest_life} to {spec.schedule.depth} layers, as the image has it"
        facts["lives"] = f"mean {mean:.2f}, deviation {deviation:.2f} layers" if spec.schedule.prunes else counted
    if manifest is not None:
        tools = {name: manifest.versions.get(name, "?") for name in ("lifedeploy", "torch", "timm")}
        facts["made"] = f"{manifest.created} with {', '.join(f'{name} {version}' for name, version in tools.items())}"
        if manifest.engine is not None:
            record = manifest.engine
            facts["engine"] = f"{record.name} {record.runtime}, {record.precision}, built on {record.processor}"
            if record.note:
                facts["note"] = record.note
        if manifest.parity is not None:
            error, top1, overlap = tables.evidence(manifest.parity)
            verdict = "passed" if manifest.parity.passed else "FAILED"
            facts["parity"] = f"{verdict}: relative error {error}, top-1 {top1}, kept tokens {overlap}"
        else:
            facts["parity"] = "not checked"
    return tables.facts(facts)


def _method(spec: ModelSpec) -> str:
    """Name, title, and the options that it was made with."""
    title = methods.title_of(spec.method)
    options = ", ".join(f"{name} {value}" for name, value in spec.options.items() if value != "")
    return spec.method + (f": {title}" if title != spec.method else "") + (f" ({options})" if options else "")


def _treatment(spec: ModelSpec) -> dict[str, str]:
    """What becomes of tokens, and the budget that the method has by itself, where it is that."""
    if methods.role_of(spec.method) != methods.SLIMMED:
        return {}
    fate = {"fate": _FATES[methods.fate_of(spec.method)]}
    return fate | {"budget": f"its own: {spec.own_budget}"} if spec.own_budget else fate


def _layers(manifest: Manifest) -> Table:
    """Tokens in each layer; where a method drops inside a block, in its attention and in its MLP."""
    table = tables.plain_table("layer", "patch tokens", "MMACs", title="Tokens and MACs")
    macs, schedule = manifest.macs, manifest.spec.schedule
    usual = schedule.tokens
    if methods.role_of(manifest.spec.method) == methods.BASELINE:
        usual = (schedule.patches,) * schedule.depth
    attention, mlp = macs.attention_tokens or usual, macs.mlp_tokens or usual
    attending = macs.query_tokens or attention
    table.add_row("embed", "", f"{macs.embed / 1e6:.1f}")
    places = zip(attention, attending, mlp, macs.per_layer, strict=True)
    for layer, (seen, asking, fed, work) in enumerate(places, start=1):
        where = f"{seen} as keys" if asking < seen else str(seen) if seen == fed else f"{seen}, MLP {fed}"
        table.add_row(str(layer), where, f"{work / 1e6:.1f}")
    if macs.predictor:
        table.add_row("scoring", "", f"{macs.predictor / 1e6:.1f}")
    table.add_row("head", "", f"{macs.head / 1e6:.1f}")
    table.add_section()
    table.add_row("in all", "", f"{macs.total / 1e6:.1f}")
    table.add_row(methods.baseline().name, "", f"{macs.dense / 1e6:.1f}")
    if macs.plain is not None and macs.plain != macs.dense:
        table.add_row("timm's own", "", f"{macs.plain / 1e6:.1f}")
    table.add_row("MAC bound", "", f"{macs.speedup_bound:.3f}×")
    if macs.over_plain and macs.plain != macs.dense:
        table.add_row("over timm's own", "", f"{macs.over_plain:.3f}×")
    return table


def _graph(graph: GraphFacts) -> Table:
    sizes = ", ".join(str(k or "computed") for k in graph.topk)
    pruning = ", ".join(
        part
        for part in (
            f"{len(graph.topk)} TopK (k = {sizes})" if graph.topk else "no TopK",
            f"{graph.gathers_after_topk} Gather fed by it" if graph.topk else "",
            f"{graph.operators.get('Slice', 0)} Slice",
        )
        if part
    )
    return tables.facts(
        {
            "inputs": "; ".join(map(str, graph.inputs)),
            "outputs": "; ".join(map(str, graph.outputs)),
            "precision": f"{graph.precision}, {graph.parameters / 1e6:.2f} M parameters",
            "pruning": pruning,
            "operators": ", ".join(f"{count} {name}" for name, count in graph.operators.items()),
            "opset": f"{graph.opset}, made by {graph.producer or 'unknown'}",
        },
        title="Graph",
    )
