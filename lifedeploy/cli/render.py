"""Reports as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy import methods
from lifedeploy.artifact import Manifest
from lifedeploy.evaluation.parity import Parity
from lifedeploy.exporters.inspect import GraphFacts
from lifedeploy.records import EightBitsRecord, FusionRecord, ParityRecord, QuantizationRecord
from lifedeploy.spec import ModelSpec
from lifedeploy.text import printable
from lifedeploy.workflows.build import BuildReport
from lifedeploy.workflows.doctor import DoctorReport
from lifedeploy.workflows.inspect import InspectReport
from lifedeploy.workflows.predict import PredictReport
from lifedeploy.workflows.verify import VerifyReport

if TYPE_CHECKING:  # its module imports torch
    from lifedeploy.workflows.export import ExportReport


_PREDICTORS = {"identity": "identity: its start, not trained", "none": "none: the method has none of its own"}


def plain_table(*headers: str, title: str | None = None, text_columns: int = 1) -> Table:
    """A table of numbers; its first ``text_columns`` columns are text. Made to fit eighty columns."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index < text_columns else "right", no_wrap=True)
    return table


def exported(report: ExportReport) -> RenderableType:
    """What ``export`` made."""
    table = plain_table("file", "tokens", "GMACs", "MAC\nbound", "max rel.\nerror", "top-1", "kept\ntokens")
    for method, manifest in report.manifests.items():
        spec, macs = manifest.spec, manifest.macs
        role = methods.role_of(method)
        tokens = spec.schedule.patches if role == methods.BASELINE else _stages(spec)
        table.add_row(
            Text.assemble(f"{manifest.file}  ", (role, "dim")),
            str(tokens),
            f"{gmacs:.2f}" if (gmacs := macs["total"] / 1e9) >= 0.1 else f"{gmacs:.2g}",
            f"{macs['speedup_bound']:.2f}×",
            *_evidence(manifest.parity),
        )
    return Group(table, Text(printable(f"wrote {report.folder}/"), style="green"))


def _stages(spec: ModelSpec) -> str:
    return "→".join(map(str, (spec.schedule.patches, *spec.schedule.counts)))


def _evidence(parity: ParityRecord | None) -> tuple[str, str, str]:
    if parity is None:
        return "not checked", "", ""
    overlap = parity["overlap"]
    return f"{parity['max_rel']:.1e}", f"{parity['top1']:.0%}", "–" if overlap is None else f"{overlap:.1%}"


def built(report: BuildReport) -> RenderableType:
    """What ``build-engine`` made."""
    record = report.record
    verb = "reused: nothing changed since it was built" if report.reused else "built"
    headline = Text.assemble((f"{record.name} {record.runtime}", "bold"), f" · {record.precision} · {verb}")
    fused = any(manifest.engine and "fusion" in manifest.engine.details for manifest in report.members.values())
    facts: tuple[str, ...] = ("attention\nfused", "TopK", "kernels") if fused else ()
    counted = any(manifest.engine and "eight_bits" in manifest.engine.details for manifest in report.members.values())
    facts += ("products\nin 8 bits",) if counted else ()
    table = plain_table("engine", "max rel.\nerror", "top-1", "kept\ntokens", *facts)
    for method, manifest in report.members.items():
        own = manifest.engine
        evidence = own.graph.get("parity") if own and own.pending else manifest.parity
        fusion = own.details.get("fusion") if own else None
        table.add_row(
            Text.assemble(f"{manifest.file}  ", (methods.role_of(method), "dim")),
            *_evidence(evidence),
            *(_fused(fusion, manifest.spec.schedule.depth) if fusion else ()),
            *((_eight_bits(own.details["eight_bits"]),) if own and "eight_bits" in own.details else ()),
        )
    parts: list[RenderableType] = [headline, table]
    reach = _reach(report)
    if reach:
        parts.append(Text(printable(reach), style="dim"))
    for stem, text in _fusion_notes(report):
        parts.append(Text(printable(f"{stem}: {text}"), style="yellow"))
    if record.pending:
        checked = f"its {record.precision} graph was checked, emulated" if record.graph.get("parity") else "not checked"
        parts.append(Text(f"built, cannot run here: {record.pending}; {checked}", style="yellow"))
    return Group(*parts, Text(printable(f"in {report.engine.folder}/"), style="green"))


def _reach(report: BuildReport) -> str:
    """How near the graphs come to the end of their type, where they were looked at."""
    graphs = [manifest.engine.graph for manifest in report.members.values() if manifest.engine]
    found = max((graph["reach"] for graph in graphs if "reach" in graph), key=lambda one: one["largest"], default=None)
    if found is None:
        return ""
    return f"largest activation {found['largest']:.3g} of {found['limit']:.3g} that it may be: {found['tensor']}"


def _eight_bits(found: EightBitsRecord) -> Text:
    """Those of the quantised graph that run in 8 bits; less than all is said out loud."""
    text = f"{found['products']}/{found['of']}"
    return Text(text, style="" if found["products"] >= found["of"] else "yellow")


def _fused(fusion: FusionRecord, layers: int) -> tuple[Text, str, str]:
    """Fused attentions, sorts and kernels; what the runtime does not tell is a question mark."""
    attention = fusion["attention"]
    text = f"{'?' if attention is None else attention}/{layers}"
    launches = fusion.get("launches")
    kernels = str(sum(launches.values())) if launches else "?"
    return Text(text, style="" if attention == layers else "yellow"), str(fusion["topk"]), kernels


def _fusion_notes(report: BuildReport) -> Iterator[tuple[str, str]]:
    """What has to be said about attention that is not fused, or not known to be; once where all are alike."""
    notes = {
        manifest.file: fusion["note"]
        for manifest in report.members.values()
        if manifest.engine and (fusion := manifest.engine.details.get("fusion", {})).get("note")
    }
    alike = len(set(notes.values())) == 1 and len(notes) == len(report.members)
    yield from {"all": next(iter(notes.values()))}.items() if alike else notes.items()


def inspected(report: InspectReport) -> RenderableType:
    """What ``inspect`` found."""
    parts: list[RenderableType] = [Text(printable(report.path), style="bold")]
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
    data = facts["data"]
    kept = "" if facts["overlap"] is None else f", {facts['overlap']:.1%} of the kept tokens"
    pairs = {
        "recipe": f"{facts['precision']}, {facts['method']}, weights "
        f"{'per channel' if facts['per_channel'] else 'per tensor'}, smoothing {facts['smoothing']:g}",
        "parts": ", ".join(facts["parts"]),
        "images": f"{data['images']} of {data['source']}, seed {data['seed']}, SHA-256 {data['sha256'][:12]}…",
        "as float": f"{facts['same_top1']:.1%} of the answers{kept}, on {facts['images']} images",
    }
    if facts["restored"]:
        pairs["in float"] = ", ".join(facts["restored"])
    return _facts(pairs, title="Calibration")


def _facts(pairs: dict[str, str], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in pairs.items():
        table.add_row(name, printable(value))
    return table


def _identity(spec: ModelSpec, manifest: Manifest | None) -> Table:
    height, width = spec.image_size
    origin = spec.provenance
    facts = {
        "backbone": f"{spec.backbone} ({spec.timm_name}), {height}x{width} px, {spec.num_classes} classes",
        "method": _method(spec),
        "weights": " ".join(part for part in (origin.weights, origin.source, origin.sha256[:12]) if part),
        "predictor": _PREDICTORS.get(origin.predictor, origin.predictor),
        "tokens": f"{_stages(spec)}, and {spec.prefix_tokens} prefix; dropped after layers "
        f"{', '.join(map(str, spec.schedule.drop_layers)) or 'none'}",
    }
    if manifest is not None and manifest.predicts_lives:
        facts["lives"] = f"mean {spec.schedule.mean_life:.2f}, deviation {spec.schedule.std_life:.2f} layers"
    if manifest is not None:
        tools = {name: manifest.versions.get(name, "?") for name in ("lifedeploy", "torch", "timm")}
        facts["made"] = f"{manifest.created} with {', '.join(f'{name} {version}' for name, version in tools.items())}"
        if manifest.engine is not None:
            record = manifest.engine
            facts["engine"] = f"{record.name} {record.runtime}, {record.precision}, built on {record.processor}"
            if record.note:
                facts["note"] = record.note
        if manifest.parity is not None:
            error, top1, overlap = _evidence(manifest.parity)
            verdict = "passed" if manifest.parity["passed"] else "FAILED"
            facts["parity"] = f"{verdict}: relative error {error}, top-1 {top1}, kept tokens {overlap}"
        else:
            facts["parity"] = "not checked"
    return _facts(facts)


def _method(spec: ModelSpec) -> str:
    """Name, title, and the options that it was made with."""
    title = methods.title_of(spec.method)
    options = ", ".join(f"{name} {value}" for name, value in spec.options.items())
    return spec.method + (f": {title}" if title != spec.method else "") + (f" ({options})" if options else "")


def _layers(manifest: Manifest) -> Table:
    """Tokens in each layer; where a method drops inside a block, in its attention and in its MLP."""
    table = plain_table("layer", "patch tokens", "MMACs", title="Tokens and MACs")
    macs, schedule = manifest.macs, manifest.spec.schedule
    usual = schedule.tokens
    if methods.role_of(manifest.spec.method) == methods.BASELINE:
        usual = (schedule.patches,) * schedule.depth
    attention, mlp = macs.get("attention_tokens", usual), macs.get("mlp_tokens", usual)
    table.add_row("embed", "", f"{macs['embed'] / 1e6:.1f}")
    for layer, (seen, fed, work) in enumerate(zip(attention, mlp, macs["per_layer"], strict=True), start=1):
        table.add_row(str(layer), str(seen) if seen == fed else f"{seen}, MLP {fed}", f"{work / 1e6:.1f}")
    if macs["predictor"]:
        table.add_row("scoring", "", f"{macs['predictor'] / 1e6:.1f}")
    table.add_row("head", "", f"{macs['head'] / 1e6:.1f}")
    table.add_section()
    table.add_row("in all", "", f"{macs['total'] / 1e6:.1f}")
    table.add_row(methods.baseline().name, "", f"{macs['dense'] / 1e6:.1f}")
    table.add_row("MAC bound", "", f"{macs['speedup_bound']:.3f}×")
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
    return _facts(
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


def verified(report: VerifyReport) -> RenderableType:
    """What ``verify`` compared."""
    return Group(
        Text.assemble("reference ", (printable(report.first), "bold")),
        Text.assemble("against   ", (printable(report.second), "bold")),
        _cases(report.parity),
        Text("same" if report.parity.passed else "not the same", style="green" if report.parity.passed else "bold red"),
    )


def _cases(parity: Parity) -> Table:
    table = plain_table("input", "batch", "max abs", "max rel", "top-1", "kept tokens")
    for case in parity.cases:
        overlap = "–" if case.overlap is None else f"{case.overlap:.1%}"
        table.add_row(
            case.kind, str(case.batch), f"{case.max_abs:.1e}", f"{case.max_rel:.1e}", f"{case.top1:.0%}", overlap
        )
    return table


def predicted(report: PredictReport) -> RenderableType:
    """What ``predict`` says."""
    parts: list[RenderableType] = [Text(printable(f"{report.model} on {report.engine}"), style="dim")]
    for prediction in report.predictions:
        # No title of the table, which rich wraps to its width: the name of an image is longer.
        headline = f"{printable(prediction.image)}  ({prediction.inference_ms:.1f} ms)"
        parts.append(Text(headline, style="bold", overflow="fold"))
        table = plain_table("class", "probability")
        for guess in prediction.guesses:
            table.add_row(printable(guess.name), f"{guess.probability:.1%}")
        parts.append(table)
    return Group(*parts)


def examined(report: DoctorReport) -> RenderableType:
    """What ``doctor`` found."""
    machine = report.machine
    facts = {
        "cpu": f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['features']) or 'features unknown'})",
        "gpu": ", ".join(machine["gpu"]) or "none",
        "memory": f"{machine['memory_gib']} GiB",
        "system": f"{machine['system']}, Python {machine['python']}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
    }
    table = Table(
        title="Engines", title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
    )
    for header in ("engine", "runs here", "--fp32 / --fp16 /\n--bf16 run"):
        # Names must not lose their ends: they are what one types.
        table.add_column(header, no_wrap=header == "engine", overflow="fold")
    for health in report.engines:
        found = health.availability
        no = ("builds only", "yellow") if health.builds.ok else ("no", "red")
        said = (("yes", "green"), f", {found.version}") if found.ok else (no, f": {found.reason}")
        state = Text.assemble(*said)
        if health.name == report.auto:
            state.append(" (auto)", style="dim")
        if found.hint:
            state.append(f"\n{found.hint}", style="dim")
        table.add_row(health.name, state, " / ".join(health.precisions.values()) or "–")
    known = Table(
        title="Methods", title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
    )
    for method in report.methods:
        fine = Text(printable(f"{method.title}, of {method.package}"))
        known.add_row(printable(method.name), Text(printable(method.problem), style="red") if method.problem else fine)
    problems = [Text(problem, style="bold red") for problem in report.problems]
    return Group(_facts(facts), Text(""), table, Text(""), known, *problems)
