"""What a plan became: which kernels it launches, whether attention is one of them, how often it sorts.

A plan of TensorRT for RTX carries its own program as text, so this needs no GPU. TensorRT's engine inspector says the
same of a plan that is open.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from lifedeploy.engines.attention_nodes import AttentionNode
from lifedeploy.errors import EngineError
from lifedeploy.reading import decode_json
from lifedeploy.records import FusionRecord

# The program of a plan, a launch in it, and the type of a tensor. Of the blocks called main, the one that launches
# compiled kernels is the plan's; others belong to single matrix products.
_MAIN = re.compile(rb"\nmain \{(.*?)\n\}", re.DOTALL)
_LAUNCH = re.compile(rb"\n\s*(function|runtime_fusion|fully_connected|corrltn)=\{ name=(\S+)([^\n]*)")
_LIBRARY = {"fully_connected": "matrix product", "corrltn": "convolution"}  # launched as they are, nothing fused in
_TENSOR = re.compile(rb"tensor=\{ [^\n]*?name=(\"[^\"]+\"|\S+) [^\n]* type=(\w+) ")
_INPUTS = re.compile(rb"input(?:_args)?=\{([^}]*)\}")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_ATTENTION, _TOPK = re.compile(r"mha", re.IGNORECASE), re.compile(r"topk", re.IGNORECASE)
_EIGHT_BITS = {"int8": "int8", "fp8_e4m3": "fp8", "fp8": "fp8"}
_PRECISIONS = {"bfloat16": "bf16", "half": "fp16", "bf16": "bf16", "float": "fp32", "fp16": "fp16", "fp32": "fp32"}


class _Tensor(msgspec.Struct):
    """A tensor as the engine inspector has it."""

    format_and_type: str | None = msgspec.field(name="Format/Datatype", default=None)
    data_type: str | None = msgspec.field(name="Datatype", default=None)

    @property
    def type(self) -> str:
        return (self.format_and_type or self.data_type or "").lower()


class _Layer(msgspec.Struct):
    """A layer as the engine inspector has it, as far as it is read."""

    name: str | None = msgspec.field(name="Name", default=None)
    kind: str | None = msgspec.field(name="LayerType", default=None)
    tactic: str | None = msgspec.field(name="TacticName", default=None)
    metadata: str | None = msgspec.field(name="Metadata", default=None)
    inputs: list[_Tensor] = msgspec.field(name="Inputs", default_factory=list)
    outputs: list[_Tensor] = msgspec.field(name="Outputs", default_factory=list)


class _Inspected(msgspec.Struct):
    """The engine inspector's answer; layers are names alone where an engine was built without detailed verbosity."""

    layers: list[str | _Layer] = msgspec.field(name="Layers")


@dataclass(frozen=True)
class FusionReport:
    """The kernels of a plan, as its manifest holds them and by the names of ONNX nodes."""

    record: FusionRecord  # its source is "plan" or "inspector"; launches are all kernels, matrix products included
    floating: str  # what most floating-point tensors are in; '' where the plan does not tell
    eight_bits: dict[str, str]  # ONNX node of a kernel that takes them → type
    attentions: frozenset[str] = frozenset()  # ONNX nodes in attention kernels; none where the plan does not tell

    def of_nodes(self, nodes: Collection[AttentionNode]) -> FusionReport:
        """With those of a graph's attentions that are not one kernel, where there are fewer kernels than attentions."""
        unfused = {}
        if self.record.attention != len(nodes) and (self.attentions or not self.record.attention):
            for node in nodes:
                if node.name not in self.attentions:
                    unfused[node.layer] = node.shape or "no fused kernel was taken"
        biased = [node.layer for node in nodes if node.layer in unfused and node.bias is not None]
        note = f"not fused with a bias on keys: {', '.join(biased)}" if biased else ""
        return replace(self, record=self.record.but(unfused=unfused, note=note))

    def require_eight_bits(self, what: str, products: Collection[str], precision: str) -> None:
        """Make sure that the ONNX nodes ``products`` are in kernels that take their factors in 8 bits.

        Raises:
            EngineError: one is not.
        """
        missing = [name for name in products if self.eight_bits.get(name) != precision]
        if missing:
            raise EngineError(
                f"{len(missing)} of {len(products)} products of {what} are not computed in {precision.upper()}: "
                f"{', '.join(missing[:3])}"
            )

    def require(self, what: str, *, attentions: int, sorts: int, allow_unfused: bool) -> None:
        """Make sure that every attention is one kernel and that tokens are sorted as often as the graph says.

        Raises:
            EngineError: they are not, and ``allow_unfused`` does not allow it.
        """
        kernels = self.record
        # What the inspector calls its kernels differs between versions: there a count can be overruled.
        if kernels.topk != sorts and not (allow_unfused and kernels.source == "inspector"):
            raise EngineError(f"{what} was compiled to {kernels.topk} TopK kernels, expected {sorts}")
        if kernels.attention != attentions and not allow_unfused:
            other = (
                "calibrate --fp8 --parts linear leaves attention in half precision (FP8 over few tokens is not fused)"
                if kernels.precision == "fp8"
                else "--fp16 or --bf16 (FP32 attention has no fused kernel)"
            )
            raise EngineError(
                f"attention is fused in {kernels.attention} of {attentions} layers of {what}"
                + (f": not in {_listed(kernels.unfused)}" if kernels.attention and kernels.unfused else ""),
                hint=f"{other}; --allow-unfused keeps the plan",
            )


def of_plan(plan: bytes) -> FusionReport:
    """Read the program text in a plan of TensorRT for RTX.

    Raises:
        EngineError: there is none in it: another version, or not such a plan.
    """
    tensors = {name.strip(b'"').decode(errors="replace"): kind.decode() for name, kind in _TENSOR.findall(plan)}
    launches: Counter[str] = Counter()
    eight_bits: dict[str, str] = {}
    attentions: set[str] = set()
    for program in _MAIN.findall(plan):
        if b"function={" not in program:
            continue
        for kind, name, rest in _LAUNCH.findall(program):
            kernel, description = name.decode(errors="replace"), rest.decode(errors="replace")
            launches[_LIBRARY.get(kind.decode(), kernel)] += 1
            attentions.update(_NODE.findall(description) if _ATTENTION.search(kernel) else ())
            taken = [
                tensors.get(entry.strip('"'), "")
                for group in _INPUTS.findall(rest)
                for entry in group.decode(errors="replace").split()
            ]
            eight_bits |= _eight_bits(description, taken)
    if not launches:
        raise EngineError("this plan names no kernels, so what was fused cannot be told from it")
    types = Counter(_PRECISIONS[kind] for kind in tensors.values() if kind in _PRECISIONS)
    return _report("plan", launches, types, eight_bits, attentions)


def _eight_bits(description: str, taken: Collection[str]) -> dict[str, str]:
    """ONNX nodes of a kernel that dequantises what it takes in 8 bits, and that type.

    A kernel that takes bytes and has no DequantizeLinear in it has other uses for them (masks, scratch memory).
    """
    types = [_EIGHT_BITS[kind] for kind in taken if kind in _EIGHT_BITS]
    nodes = _NODE.findall(description)
    if not types or not any(name.endswith("/DequantizeLinear") for name in nodes):
        return {}
    return {name: types[0] for name in nodes if "Linear" not in name.rpartition("/")[2]}


def of_inspector(information: str) -> FusionReport:
    """Read the engine inspector's JSON (detailed profiling verbosity).

    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#engine-inspector

    Raises:
        EngineError: it is not that.
    """
    layers = _inspected(information)
    launches: Counter[str] = Counter()
    types: Counter[str] = Counter()
    eight_bits: dict[str, str] = {}
    attentions: set[str] = set()
    for layer in layers:
        if isinstance(layer, str):  # the engine was built without detailed verbosity
            launches[layer] += 1
            continue
        # Only without both does the name stand in: it holds names of ONNX nodes, where anything may be called anything.
        kernel = " ".join(filter(None, (layer.kind, layer.tactic)))
        launches[kernel or layer.name or "unnamed"] += 1
        attentions.update(_NODE.findall(layer.metadata or "") if _ATTENTION.search(kernel) else ())
        for tensor in layer.outputs:
            name = next((precision for label, precision in _PRECISIONS.items() if label in tensor.type), "")
            if name:
                types[name] += 1
        taken = [label for tensor in layer.inputs for label in _EIGHT_BITS if label in tensor.type]
        eight_bits |= _eight_bits(layer.metadata or "", taken)
    return _report("inspector", launches, types, eight_bits, attentions)


def origins(information: str) -> dict[str, tuple[str, str]]:
    """Layer → its kernel, and the ONNX nodes in it, as the engine inspector says.

    Raises:
        EngineError: it is not the inspector's JSON.
    """
    kernels = {}
    for layer in _inspected(information):
        if not isinstance(layer, str):  # names alone, where the engine was built without detailed verbosity
            kernels[layer.name or ""] = layer.tactic or layer.kind or "", layer.metadata or ""
    return kernels


def _inspected(information: str) -> list[str | _Layer]:
    what = "the engine inspector's answer is not understood: it"
    return decode_json(information, _Inspected, what, EngineError).layers


def _listed(unfused: Mapping[str, str]) -> str:
    return ", ".join(f"{layer} ({why})" for layer, why in unfused.items())


def _report(
    source: str, launches: Counter[str], types: Counter[str], eight_bits: dict[str, str], attentions: Iterable[str]
) -> FusionReport:
    floating = types.most_common(1)[0][0] if types else ""
    products = Counter(eight_bits.values())
    record = FusionRecord(
        source=source,
        attention=sum(count for name, count in launches.items() if _ATTENTION.search(name)),
        topk=sum(count for name, count in launches.items() if _TOPK.search(name)),
        tensors=dict(types),
        launches=dict(launches.most_common()),
        eight_bits=dict(products),
        # 8 bits, if that is what kernels with products of quantised factors take.
        precision=products.most_common(1)[0][0] if products else floating,
    )
    return FusionReport(record, floating, eight_bits, frozenset(attentions))
