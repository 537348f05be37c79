"""Engines without a runtime: they replay recorded answers and take time in proportion to the model's MACs.

Shipped with the package, so that benchmarks, workflows and command lines, ours and others', can be tested in
milliseconds. ``--engine fake`` works wherever an engine is named, ``fake-device`` stands in for those on GPUs, and
nothing ever chooses either by itself.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from lifedeploy.artifact import TensorSpec
from lifedeploy.data.samples import digest
from lifedeploy.engines import attention_kernels
from lifedeploy.engines.attention_nodes import attention_nodes
from lifedeploy.engines.base import Availability, BuildJob, BuildOptions, Built, Engine, PrecisionPlan
from lifedeploy.engines.lanes import Array, DeviceLane, FreshLane, Lane, buffers
from lifedeploy.errors import EngineError
from lifedeploy.files import compact_json
from lifedeploy.kept import KeptTokens, is_kept_name
from lifedeploy.optional import require
from lifedeploy.reading import read_arrays, read_json
from lifedeploy.records import DetailsRecord, FusionRecord
from lifedeploy.spec import ATTENTIONS, QUANTIZED, GraphForm
from lifedeploy.typed import MethodName, Name, Patches
from lifedeploy.writing import saving

SECONDS_PER_GMAC = 0.02
_MOST_VALUES = 2**28  # of one tensor
_ENDING = ".fake.json"


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the fake engine is to play: its tensors, and how long it takes."""

    inputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    gmacs: Annotated[float, Meta(ge=0, le=10_000)]  # per image
    method: MethodName
    kept: dict[Name, Patches] = field(default_factory=dict)  # tensor of kept tokens → how many, where there are several

    def __post_init__(self) -> None:
        for tensor in (*self.inputs, *self.outputs):
            if math.prod(size or 1 for size in tensor.shape) > _MOST_VALUES:
                raise ValueError(f"{tensor} is larger than anything that is played")


class Fake(Engine):
    """Answers what was recorded for an input; for any other input, numbers that depend only on the input."""

    name: ClassVar[str] = "fake"
    extra: ClassVar[str] = "cpu"
    taps_change_plan: ClassVar[bool] = False
    quantized: ClassVar[tuple[str, ...]] = ("int8",)
    endings: ClassVar[tuple[str, ...]] = (_ENDING,)
    speed: ClassVar[float] = 1.0  # beside SECONDS_PER_GMAC

    @classmethod
    def availability(cls) -> Availability:
        return Availability(True, version="0")

    @classmethod
    def plan(cls, requested: str) -> PrecisionPlan:
        if requested in ("fp32", *cls.quantized):
            return PrecisionPlan(requested)
        return PrecisionPlan("fp32", f"the fake engine knows FP32 only: not {requested.upper()}")

    @classmethod
    def build(cls, job: BuildJob) -> Built:
        manifest = job.source.manifest
        kept = {manifest.kept.names[layer]: manifest.kept.counts[layer] for layer in manifest.kept.leaving}
        gmacs = (manifest.macs.total or 0) / 1e9
        script = Script(
            inputs=manifest.inputs, outputs=manifest.outputs, gmacs=gmacs, method=manifest.spec.method, kept=kept
        )
        main, answers = job.folder / f"{job.stem}{_ENDING}", job.folder / f"{job.stem}.npz"
        with saving(main):
            main.write_text(compact_json(asdict(script)), encoding="utf-8")
        if not manifest.reference:
            return Built(main.name, (main.name,))
        recorded = job.source.file(manifest.reference)
        with saving(answers):
            shutil.copyfile(recorded, answers)
        return Built(main.name, (main.name, answers.name))

    @classmethod
    def files(cls, path: Path) -> tuple[Path, ...]:
        answers = _answers_of(path)
        return (*super().files(path), *([answers] if answers.exists() else []))

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        script = read_json(self.path, Script, EngineError, what=f"{self.path}, a script of the fake engine,")
        self.seconds_per_image = script.gmacs * SECONDS_PER_GMAC / self.speed
        self._recorded = self._read_answers(script.method)
        names, counts = dict(enumerate(script.kept)), dict(enumerate(script.kept.values()))
        self._kept = KeptTokens(names, counts, tuple(names))
        taps = tuple(TensorSpec(tap, "int64", (None, None)) for tap in self.options.taps)
        return script.inputs, script.outputs + taps

    def _read_answers(self, method: str) -> dict[str, dict[str, Array]]:
        """Hash of an input → output name → answer."""
        path = _answers_of(self.path)
        if not path.exists():
            return {}
        recorded: dict[str, dict[str, Array]] = {}
        for key, answer in read_arrays(path, EngineError).items():
            owner, _, rest = key.partition("/")
            question, _, name = rest.partition("/")
            if answer.ndim != 2 or not answer.size:
                raise EngineError(f"{path}: the answer {key} is of shape {answer.shape}; expected one row per image")
            if owner == method:
                recorded.setdefault(question, {})[name] = answer
        return recorded

    def _close(self) -> None:
        self._recorded = {}

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        first = next(iter(feeds.values()))
        time.sleep(self.seconds_per_image * len(first))
        known = self._recorded.get(digest(first), {})
        played = {self.outputs[0].name: known["logits"]} if "logits" in known else {}
        if "kept" in known:
            taps = {spec.name: known["kept"] for spec in self.outputs if is_kept_name(spec.name)}
            played |= taps | (self._kept.parts(known["kept"]) if len(taps) > 1 else {})
        generator = np.random.default_rng(int(digest(first)[:8], 16))
        outputs: dict[str, Array] = {}
        for spec in self.outputs:
            if spec.name in played:
                outputs[spec.name] = played[spec.name].copy()
                continue
            shape = [len(first) if size is None else size for size in spec.shape]
            outputs[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        return outputs


class FakeDevice(Fake):
    """A GPU's engine without a GPU, for dry runs: any precision, graphs in any form, lanes with copies and without.

    Its builds ask for the graphs that those engines ask for, so that the conversion to half precision and its proof run
    as they would; the kernels that it reports are the graph's operators.
    """

    name: ClassVar[str] = "fake-device"
    usual: ClassVar[str] = "fp16"
    takes: ClassVar[tuple[str, ...]] = ("attention", "remainder", "batch", "allow_unfused")
    attentions: ClassVar[tuple[str, ...]] = ATTENTIONS
    quantized: ClassVar[tuple[str, ...]] = QUANTIZED
    speed: ClassVar[float] = 5.0  # dry runs should be short
    benchmark_tool: ClassVar[str] = "fake_trtexec"  # which a dry run brings

    @classmethod
    def plan(cls, requested: str) -> PrecisionPlan:
        return PrecisionPlan(requested)

    @classmethod
    def form(cls, precision: str, options: BuildOptions) -> GraphForm:
        floating = (options.remainder or "fp16") if precision in QUANTIZED else precision
        products = precision in ("fp32", "fp8")  # as TensorRT: none is fused in FP32, FP8 quantises inside
        attention = options.attention or ("products" if products else "operator")
        return GraphForm(precision=floating, attention=attention, with_order=True, least_queries=2)

    @classmethod
    def build(cls, job: BuildJob) -> Built:
        built = super().build(job)
        fusion = _operators(job.graph, job.source.manifest.spec.schedule.depth)
        return Built(built.main, built.files, DetailsRecord(fusion=fusion))

    def _lane(self, batch: int) -> Lane:
        return _FakeDeviceLane(self._run, buffers(self.inputs, batch))


class _FakeDeviceLane(FreshLane, DeviceLane):
    """Buffers on both sides: an inference without copies answers what was copied there last."""

    def __init__(self, run: Callable[[dict[str, Array]], dict[str, Array]], inputs: Mapping[str, Array]) -> None:
        super().__init__(run, inputs)
        self._there = {name: array.copy() for name, array in inputs.items()}
        self._answer: dict[str, Array] = {}

    def infer(self) -> None:
        for name, array in self.inputs.items():
            self._there[name][...] = array
        self.compute()
        self.outputs = self._answer

    def compute(self) -> None:
        self._answer = self._run(self._there)

    def device_ms(self, *, copies: bool) -> float:
        began = time.perf_counter()
        (self.infer if copies else self.compute)()
        return 1000 * (time.perf_counter() - began)


def _answers_of(script: Path) -> Path:
    """Where the recorded answers are."""
    return script.with_name(script.name.removesuffix(_ENDING) + ".npz")


def _operators(graph: Path, layers: int) -> FusionRecord:
    """A report of kernels, one per node of the graph."""
    model = require("onnx", extra=Fake.extra).load(graph, load_external_data=False)
    launches = Counter(node.op_type for node in model.graph.node)
    nodes = attention_nodes(model)
    if not any(node.is_operator for node in nodes):
        nodes = ()  # else what is left as products is of a single query, which TensorRT fuses too
    told = {node.name: "NUMPY" for node in nodes}
    record = attention_kernels.report(nodes, layers, launches["TopK"], told, "")
    return record.but(source="fake", launches=dict(launches.most_common()))
