"""PyTorch to ONNX: the only call of ``torch.onnx`` in the package, and the checks on what it gave."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch

from lifedeploy import __version__, methods
from lifedeploy.errors import ExportError, UsageError
from lifedeploy.exporters import passes
from lifedeploy.exporters.simplification import simplify
from lifedeploy.exporters.wrapper import ExportModel
from lifedeploy.files import compact_json
from lifedeploy.kept import kept_layer
from lifedeploy.limits import MOST_IN_BATCH, require_within
from lifedeploy.model.blocks import plain_attention
from lifedeploy.model.vit import SlimViT
from lifedeploy.progress import quiet_loggers
from lifedeploy.spec import GROUPS_NAME, LIVES_NAME, ORDERINGS, SCORES_NAME, ModelSpec
from lifedeploy.text import quoted
from lifedeploy.typed import LAST_BLOCKS
from lifedeploy.writing import saving

OPSET = 20  # the first with Gelu as one operator; every runtime we build for takes it
INPUT = "images"
_EXAMPLE_BATCH = 2  # an example batch of 1 would silently be exported as the only one
_PROTOBUF_LIMIT = 2 * 1024**3 - 64 * 1024**2


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """How the graph is to look."""

    ordering: str = ""  # "order-once" or "per-stage"; '': the method's usual one
    batch_size: int | None = None  # None: dynamic
    with_life: bool = False
    with_preprocess: bool = False
    last_block: str = ""  # "prefix" or "full"; '': prefix tokens alone, wherever they are enough

    def __post_init__(self) -> None:
        if self.last_block not in ("", *LAST_BLOCKS):
            raise UsageError(f"last block {quoted(self.last_block)} is unknown; there are: {', '.join(LAST_BLOCKS)}")
        if self.ordering not in ("", *ORDERINGS):
            raise UsageError(f"graph form {quoted(self.ordering)} is unknown; there are: {', '.join(ORDERINGS)}")
        require_within(self.batch_size, MOST_IN_BATCH, "images per batch", optional=True)


def output_name(spec: ModelSpec) -> str:
    """``logits``, or ``features`` for a backbone without a head."""
    return "logits" if spec.num_classes else "features"


def trace(model: SlimViT, spec: ModelSpec, options: GraphOptions) -> ir.Model:
    """Trace the model into an ONNX graph with one file's worth of weights in it, its kept tokens named.

    Raises:
        ExportError: the exporter failed, or what it gave is not what was asked for.
    """
    method = methods.get(spec.method)
    told: list[tuple[str, ...]] = []
    wrapper = ExportModel(
        model,
        output=output_name(spec),
        preprocess=spec.preprocess if options.with_preprocess else None,
        selection=method.selection,
        told=told.append,
    ).eval()
    batch = options.batch_size or _EXAMPLE_BATCH
    height, width = spec.image_size
    if options.with_preprocess:
        example = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    else:
        example = torch.zeros(batch, 3, height, width)
    dynamic = None if options.batch_size else ({0: torch.export.Dim("batch")},)
    try:
        with plain_attention(model), torch.no_grad(), _quiet(), method.blamed("its reducer"):
            program = torch.onnx.export(
                wrapper,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                dynamic_shapes=dynamic,
                verbose=False,
                optimize=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"torch could not export {spec.backbone}: {str(error).splitlines()[0]}") from error
    assert program is not None  # with dynamo=True it always is one
    graph = program.model
    simplify(graph)
    for value, name in zip(graph.graph.outputs, told[-1], strict=True):
        value.name = name
    passes.relative_reshapes(graph)
    _require_kept(graph, replace(spec, schedule=model.schedule), method)
    passes.keep_outputs(graph, (output_name(spec), *([LIVES_NAME] if options.with_life else [])))
    passes.clean(graph)
    return graph


def _require_kept(graph: ir.Model, spec: ModelSpec, method: methods.Method) -> None:
    """Make sure that the model says what it keeps, that it is as much as the schedule says, and lives if there are any.

    Raises:
        ExportError: it does not, or keeps others.
    """
    schedule = spec.schedule
    sizes = {value.name: None if value.shape is None else value.shape[1] for value in graph.graph.outputs}
    kept = {layer: size for name, size in sizes.items() if (layer := kept_layer(name or "")) is not None}
    leaving = schedule.leaving_layers
    for layer in leaving if method.selection != "none" else ():
        if layer not in kept and (method.selection == "every drop" or not kept):
            raise ExportError(f"{spec.method} drops tokens after layer {layer} and does not say which: no positions")
    for layer, size in kept.items():
        if size != schedule.after(layer):
            wanted = schedule.after(layer)
            raise ExportError(f"{spec.method} keeps {size} tokens after layer {layer}, and its schedule says {wanted}")
    if method.gives_lives(schedule) and SCORES_NAME not in sizes:
        raise ExportError(f"{spec.method} is said to predict lives, and gives none")
    if method.fate == "merged" and leaving and GROUPS_NAME not in sizes:
        raise ExportError(f"{spec.method} is said to merge tokens, and does not say which: no groups")


def derive(graph: ir.Model, spec: ModelSpec, method: methods.Method) -> ir.Model:
    """The baseline's or the bound's graph, over the same nodes as that of a traced method that derives them.

    Raises:
        ExportError: the graph is not one that :func:`trace` made of such a method, or ``method`` has another role.
    """
    if method.role == methods.SLIMMED or not methods.get(spec.method).derives:
        raise ExportError(f"the graph of {method.name} cannot be derived from one of {spec.method}")
    derived = graph.clone()
    kept = {layer: spec.prefix_tokens + spec.schedule.after(layer) for layer in spec.schedule.drop_layers}
    passes.keep_outputs(derived, (output_name(spec),))
    passes.without_drops(derived, slices=kept if method.role == methods.BOUND else None)
    passes.forget_names(derived)
    passes.clean(derived)
    cuts = ("Slice",) if method.role == methods.BOUND else ()
    left = [node for node in derived.graph if _is_of_reducer(node) and node.op_type not in cuts]
    if left:
        raise ExportError(
            f"{method.name} cannot be derived from the graph of {spec.method}, whose drops have another form: "
            f"{left[0].op_type} is left of them"
        )
    return derived


def _is_of_reducer(node: ir.Node) -> bool:
    """Whether a node, which has no name of ours yet, was traced inside the reducer."""
    return re.search(r"(^|\.)reducer(\.|$)", passes.scope_of(node)) is not None


def require_one_file(weight_bytes: int) -> None:
    """Make sure that weights fit into one ONNX file: protobuf's limit, less what a graph takes.

    Raises:
        ExportError: they do not.
    """
    if weight_bytes > _PROTOBUF_LIMIT:
        raise ExportError(
            f"the weights take {weight_bytes / 1024**3:.1f} GiB, and one ONNX file holds at most 2 GiB",
            hint="a smaller backbone",
        )


def save(graph: ir.Model, path: Path, *, metadata: Mapping[str, object]) -> None:
    """Name everything well, put ``metadata`` into the file's own, and write it.

    Raises:
        ExportError: it would not fit into one ONNX file.
    """
    require_one_file(
        sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    )
    passes.read_well(graph)
    graph.producer_name, graph.producer_version = "lifedeploy", __version__
    graph.graph.name = str(metadata.get("lifedeploy.method", "model"))
    for key, value in metadata.items():
        graph.metadata_props[key] = value if isinstance(value, str) else compact_json(value)
    with saving(path):
        ir.save(graph, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress lines and deprecation notes are not the user's business."""
    with quiet_loggers("torch.onnx"), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
