"""Matrix products by themselves in OpenVINO: the ceiling that a model's products are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from benchmarks.cpu.rows import Node, Shape
from lifedeploy.engines.openvino import ELEMENT_TYPES, rt_value

RUNS = 5  # of a product per round
CONFIG = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}  # as lifedeploy profiles an engine
HINTS = {"fp32": "f32", "bf16": "bf16"}
_TIMED = ("FullyConnected", "MatMul")


def config(base: str) -> dict[str, Any]:
    """How everything is compiled; ``base``: the precision of what is in no 8 bits."""
    return CONFIG | {"INFERENCE_PRECISION_HINT": HINTS[base]}


def executed(model: Any, base: str) -> tuple[Node, ...]:
    """The nodes that a model is compiled to and that depend on its inputs: all else was computed beforehand."""
    compiled = ov.Core().compile_model(model, "CPU", config(base))
    nodes: list[Node] = []
    fed: set[str] = set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        before = [port.get_source_output().get_node().get_friendly_name() for port in node.inputs()]
        if before and fed.isdisjoint(before):
            continue
        facts = node.get_rt_info()
        told = [str(rt_value(facts, key)) for key in ("layerType", "runtimePrecision", "originalLayersNames")]
        if told[0] == "Const":
            continue
        fed.add(node.get_friendly_name())
        if told[0] in ("Input", "Output"):
            continue
        precision = ELEMENT_TYPES.get(told[1], told[1])
        nodes.append(Node(node.get_friendly_name(), told[0], precision, tuple(told[2].split(","))))
    return tuple(nodes)


class Product:
    """A product as the only one of a model, and what it took by the runtime's own clock, inputs' casts left out."""

    def __init__(self, shape: Shape, precision: str, base: str) -> None:
        several, m, k, n = shape
        random = np.random.default_rng(0)
        eight = precision == "int8"
        left = ops.parameter([several, m, k] if several > 1 else [m, k], np.float32)
        parameters, turned = [left], k < n or several == 1
        if several > 1:  # both are activations, as in attention: QKᵀ has the transposed one
            right = ops.parameter([several, n, k] if turned else [several, k, n], np.float32)
            parameters.append(right)
        else:
            right = _eight_bits(random, (n, k)) if eight else ops.constant(_filled(random, (n, k)))
        product = ops.matmul(_quantised(left) if eight else left, right, False, turned)
        # What follows keeps the product's own output in the precision that a model's inner tensors have.
        corner = ops.slice(product, *(np.array([number], np.int64) for number in (0, 1, 1, -1)))
        model = ov.Model([ops.result(corner)], parameters)
        self._feeds = [_filled(random, tuple(parameter.shape)) for parameter in parameters]
        self._request = (
            ov.Core().compile_model(model, "CPU", config(base) | {"PERF_COUNT": True}).create_infer_request()
        )
        self.ms: list[float] = []
        self._once()

    def run(self) -> None:
        """A round."""
        self.ms += [self._once() for _ in range(RUNS)]

    def _once(self) -> float:
        self._request.infer(self._feeds)
        times = [node for node in self._request.get_profiling_info() if node.node_type in _TIMED]
        (product,) = times
        return float(product.real_time.total_seconds() * 1000)


def _filled(random: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return random.standard_normal(tuple(shape), dtype=np.float32)


def _quantised(node: Any) -> Any:
    """A tensor as QuantizeLinear and DequantizeLinear leave it: OpenVINO then computes its product in 8 bits."""
    low, high = (ops.constant(np.float32(number)) for number in (-3.84, 3.81))
    return ops.fake_quantize(node, low, high, low, high, 256)


def _eight_bits(random: np.random.Generator, shape: tuple[int, int]) -> Any:
    """Weights of 8 bits with a scale per output, dequantised."""
    weights = ops.constant(random.integers(-127, 128, shape, dtype=np.int8))
    return ops.multiply(ops.convert(weights, "f32"), ops.constant(np.full((shape[0], 1), 0.01, np.float32)))


def peak(products: Mapping[tuple[str, Shape], Product]) -> dict[str, tuple[float, Shape]]:
    """Precision → the best of all its products, in 10⁹ operations a second, and its shape."""
    best: dict[str, tuple[float, Shape]] = {}
    for (precision, shape), product in products.items():
        several, m, k, n = shape
        rate = 2e-6 * several * m * k * n / min(product.ms)
        best[precision] = max(best.get(precision, (0.0, shape)), (rate, shape))
    return best
