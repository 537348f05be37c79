"""What a plan became: which kernels it launches, whether attention is one of them, how often it sorts.

A plan of TensorRT for RTX carries its own program as text, so this needs no GPU. TensorRT's engine inspector says the
same of a plan that is open.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from lifedeploy.errors import EngineError

# The program of a plan, a launch in it, and the type of a tensor. Of the blocks called main, the one that launches
# compiled kernels is the plan's; others belong to single matrix products.
_MAIN = re.compile(rb"\nmain \{(.*?)\n\}", re.DOTALL)
_LAUNCH = re.compile(rb"\n\s*(function|runtime_fusion|fully_connected|corrltn)=\{ name=(\S+)")
_LIBRARY = {"fully_connected": "matrix product", "corrltn": "convolution"}  # launched as they are, nothing fused in
_TENSOR = re.compile(rb"tensor=\{ [^\n}]*\}? ?[^\n]* type=(\w+) ")
_ATTENTION, _TOPK = re.compile(r"mha", re.IGNORECASE), re.compile(r"topk", re.IGNORECASE)
_PRECISIONS = {"bfloat16": "bf16", "half": "fp16", "bf16": "bf16", "float": "fp32", "fp16": "fp16", "fp32": "fp32"}


@dataclass(frozen=True)
class FusionReport:
    """The kernels of a plan.

    ``attention`` counts fused attentions, ``topk`` sorts. ``launches`` is name → how often, matrix products included.
    """

    source: str  # "plan" or "inspector"
    attention: int
    topk: int
    tensors: dict[str, int]  # precision → tensors in it
    launches: dict[str, int] = field(repr=False)

    @property
    def precision(self) -> str:
        """What most floating-point tensors are in; '' where the plan does not tell."""
        return max(self.tensors, key=lambda name: self.tensors[name]) if self.tensors else ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "precision": self.precision}

    def require(self, what: str, *, attentions: int, sorts: int, allow_unfused: bool) -> None:
        """Make sure that every attention is one kernel and that tokens are sorted as often as the schedule says.

        Raises:
            EngineError: they are not, and ``allow_unfused`` does not allow it.
        """
        # What the inspector calls its kernels differs between versions: there a count can be overruled.
        if self.topk != sorts and not (allow_unfused and self.source == "inspector"):
            raise EngineError(f"{what} was compiled to {self.topk} TopK kernels, expected {sorts}")
        if self.attention != attentions and not allow_unfused:
            raise EngineError(
                f"attention is fused in {self.attention} of {attentions} layers of {what}",
                hint="--fp16 or --bf16 (FP32 attention has no fused kernel); --allow-unfused keeps the plan",
            )


def of_plan(plan: bytes) -> FusionReport:
    """Read the program text in a plan of TensorRT for RTX.

    Raises:
        EngineError: there is none in it: another version, or not such a plan.
    """
    launches: Counter[str] = Counter()
    for program in _MAIN.findall(plan):
        if b"function={" in program:
            launches.update(_LIBRARY.get(kind.decode(), name.decode()) for kind, name in _LAUNCH.findall(program))
    if not launches:
        raise EngineError("this plan names no kernels, so what was fused cannot be told from it")
    types: Counter[str] = Counter()
    for line in _TENSOR.findall(plan):
        name = _PRECISIONS.get(line.decode())
        if name:
            types[name] += 1
    return _report("plan", launches, types)


def of_inspector(information: str) -> FusionReport:
    """Read the engine inspector's JSON (detailed profiling verbosity).

    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#engine-inspector

    Raises:
        EngineError: it is not that.
    """
    layers = _inspected(information)
    launches: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for layer in layers:
        if isinstance(layer, str):  # the engine was built without detailed verbosity
            launches[layer] += 1
            continue
        # Only without both does the name stand in: it holds names of ONNX nodes, where anything may be called anything.
        kernel = " ".join(filter(None, (layer.get("LayerType"), layer.get("TacticName"))))
        launches[kernel or str(layer.get("Name"))] += 1
        for tensor in layer.get("Outputs", ()):
            kind = str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "").lower()
            name = next((found for label, found in _PRECISIONS.items() if label in kind), "")
            if name:
                types[name] += 1
    return _report("inspector", launches, types)


def origins(information: str) -> dict[str, tuple[str, str]]:
    """Layer → its kernel, and the ONNX nodes in it, as the engine inspector says.

    Raises:
        EngineError: it is not the inspector's JSON.
    """
    found = {}
    for layer in _inspected(information):
        if not isinstance(layer, str):  # names alone, where the engine was built without detailed verbosity
            kernel = layer.get("TacticName") or layer.get("LayerType") or ""
            found[str(layer.get("Name"))] = str(kernel), str(layer.get("Metadata", ""))
    return found


def _inspected(information: str) -> list[Any]:
    try:
        layers: list[Any] = json.loads(information)["Layers"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise EngineError(f"the engine inspector's answer is not understood: {error}") from error
    return layers


def _report(source: str, launches: Counter[str], types: Counter[str]) -> FusionReport:
    return FusionReport(
        source=source,
        attention=sum(count for name, count in launches.items() if _ATTENTION.search(name)),
        topk=sum(count for name, count in launches.items() if _TOPK.search(name)),
        tensors=dict(types),
        launches=dict(launches.most_common()),
    )
