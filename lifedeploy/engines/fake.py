"""An engine without a runtime: it replays recorded answers and takes time in proportion to the model's MACs.

Shipped with the package, so that benchmarks, workflows and command lines, ours and others', can be tested in
milliseconds. ``--engine fake`` works wherever an engine is named, and nothing ever chooses it by itself.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from lifedeploy.artifact import TensorSpec
from lifedeploy.data.samples import digest
from lifedeploy.engines.base import Availability, BuildJob, Built, Engine, PrecisionPlan
from lifedeploy.engines.lanes import Array, Lane, buffers
from lifedeploy.errors import EngineError
from lifedeploy.spec import ORDER_NAME

SECONDS_PER_GMAC = 0.02


class Fake(Engine):
    """Answers what was recorded for an input; for any other input, numbers that depend only on the input."""

    name: ClassVar[str] = "fake"
    extra: ClassVar[str] = "cpu"
    taps_change_plan: ClassVar[bool] = False
    quantized: ClassVar[tuple[str, ...]] = ("int8",)

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
        script = {
            "inputs": [vars(spec) for spec in manifest.inputs],
            "outputs": [vars(spec) for spec in manifest.outputs],
            "gmacs": manifest.macs.get("total", 0) / 1e9,
            "method": manifest.spec.method,
        }
        main, answers = job.folder / f"{job.stem}.fake.json", job.folder / f"{job.stem}.npz"
        main.write_text(json.dumps(script), encoding="utf-8")
        if not manifest.reference:
            return Built(main.name, (main.name,))
        shutil.copyfile(job.source.folder / manifest.reference, answers)
        return Built(main.name, (main.name, answers.name))

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        try:
            script = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise EngineError(f"{self.path} is no script of the fake engine: {error}") from error
        self.seconds_per_image = script["gmacs"] * SECONDS_PER_GMAC
        self._recorded = self._read_answers(script["method"])
        inputs = tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in script["inputs"])
        outputs = tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in script["outputs"])
        taps = tuple(TensorSpec(tap, "int64", (None, None)) for tap in self.options.taps)
        return inputs, outputs + taps

    def _read_answers(self, method: str) -> dict[str, dict[str, Array]]:
        """Hash of an input → output name → answer."""
        path = self.path.parent / self.path.name.replace(".fake.json", ".npz")
        if not path.exists():
            return {}
        recorded: dict[str, dict[str, Array]] = {}
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                owner, question, name = key.split("/")
                if owner == method:
                    recorded.setdefault(question, {})[name] = file[key]
        return recorded

    def _close(self) -> None:
        self._recorded = {}

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        first = next(iter(feeds.values()))
        time.sleep(self.seconds_per_image * len(first))
        known = self._recorded.get(digest(first), {})
        names = {self.outputs[0].name: "logits", ORDER_NAME: "kept"}  # output → what it was recorded as
        generator = np.random.default_rng(int(digest(first)[:8], 16))
        made: dict[str, Array] = {}
        for spec in self.outputs:
            if names.get(spec.name) in known:
                made[spec.name] = known[names[spec.name]]
                continue
            shape = [len(first) if size is None else size for size in spec.shape]
            made[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        return made

    def _lane(self, batch: int) -> Lane:
        return _FakeLane(self, buffers(self.inputs, batch))


class _FakeLane(Lane):
    def __init__(self, engine: Fake, inputs: dict[str, Array]) -> None:
        super().__init__(inputs, {})
        self._engine = engine

    def infer(self) -> None:
        self.outputs = self._engine._run(self.inputs)
