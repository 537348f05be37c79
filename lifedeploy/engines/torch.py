"""PyTorch, eager: the reference. What it opens is a checkpoint, not a graph."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from lifedeploy.artifact import TensorSpec
from lifedeploy.engines.base import Array, Availability, BuildJob, Built, Engine, Lane, PrecisionPlan, buffers
from lifedeploy.errors import EngineError
from lifedeploy.optional import require
from lifedeploy.spec import ORDER_NAME, SCORES_NAME


class Torch(Engine):
    """The PyTorch model itself, on the CPU, in FP32."""

    name: ClassVar[str] = "torch"
    extra: ClassVar[str] = "cpu"
    taps_change_plan: ClassVar[bool] = False

    @classmethod
    def availability(cls) -> Availability:
        torch = require("torch", extra=cls.extra)
        return Availability(True, version=str(torch.__version__))

    @classmethod
    def plan(cls, requested: str) -> PrecisionPlan:
        if requested == "fp32":
            return PrecisionPlan("fp32")
        return PrecisionPlan("fp32", f"the torch engine is the FP32 reference: not running {requested.upper()}")

    @classmethod
    def build(cls, job: BuildJob) -> Built:
        source = job.source
        checkpoint = source.folder / source.manifest.checkpoint
        if not source.manifest.checkpoint or not checkpoint.is_file():
            raise EngineError(f"{source.manifest_path} names no checkpoint, and the torch engine runs from one")
        if source.manifest.graph.get("with_preprocess"):
            raise EngineError("the torch engine takes normalised images, and this export takes uint8 pixels")
        # Nothing to compile, and the weights are large: the engine is the export's own checkpoint.
        target = job.folder / f"{job.stem}.safetensors"
        try:
            target.hardlink_to(checkpoint)
        except OSError:  # a file system without hard links
            shutil.copyfile(checkpoint, target)
        return Built(target.name, (target.name,))

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        self._torch: Any = require("torch", extra=self.extra)
        from lifedeploy.model import checkpoint

        self._model, spec = checkpoint.load(self.path, method=self.options.method or None)
        if self.options.threads is not None:
            self._torch.set_num_threads(self.options.threads)
        height, width = spec.image_size
        width_out = spec.num_classes or self._model.backbone.num_features
        self._name = "logits" if spec.num_classes else "features"
        outputs = [TensorSpec(self._name, "float32", (self.options.batch, width_out))]
        self._ordered = spec.schedule.after(spec.schedule.base_layer) if spec.schedule.drop_layers else 0
        widths = {ORDER_NAME: ("int64", self._ordered), SCORES_NAME: ("float32", spec.schedule.patches)}
        for tap in self.options.taps:
            dtype, size = widths[tap]
            outputs.append(TensorSpec(tap, dtype, (self.options.batch, size)))
        return (TensorSpec("images", "float32", (self.options.batch, 3, height, width)),), tuple(outputs)

    def _close(self) -> None:
        del self._model

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._infer(feeds["images"])

    def _infer(self, images: Array) -> dict[str, Array]:
        with self._torch.inference_mode():
            output = self._model(self._torch.from_numpy(np.ascontiguousarray(images)))
        results = {self._name: output.logits.numpy()}
        if ORDER_NAME in self.options.taps:
            order = output.scores.topk(self._ordered, dim=1).indices
            # The model's own survivors first, as it kept them; then those that left on the way.
            results[ORDER_NAME] = np.concatenate(
                [output.kept.numpy(), order[:, output.kept.shape[1] :].numpy()], axis=1
            )
        if SCORES_NAME in self.options.taps:
            results[SCORES_NAME] = output.scores.numpy()
        return results

    def _lane(self, batch: int) -> Lane:
        return _TorchLane(self, buffers(self.inputs, batch))


class _TorchLane(Lane):
    def __init__(self, engine: Torch, inputs: dict[str, Array]) -> None:
        super().__init__(inputs, {})
        self._engine = engine

    def infer(self) -> None:
        self.outputs = self._engine._infer(self.inputs["images"])
