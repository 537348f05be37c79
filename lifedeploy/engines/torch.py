"""PyTorch, eager: the reference. What it opens is a checkpoint, not a graph."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from lifedeploy.artifact import TensorSpec
from lifedeploy.caches import compiler_caches
from lifedeploy.engines.base import Availability, BuildJob, BuildOptions, Built, Engine, PrecisionPlan
from lifedeploy.engines.lanes import Array, DeviceLane, Lane, buffers
from lifedeploy.engines.torch_attention import TRACED, Choice, Job, cuda_clock, measured, prioritised
from lifedeploy.errors import EngineError
from lifedeploy.kept import kept_layer
from lifedeploy.optional import require
from lifedeploy.spec import GROUPS_NAME, SCORES_NAME
from lifedeploy.writing import saving

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Torch(Engine):
    """The PyTorch model itself, on the CPU, in FP32."""

    name: ClassVar[str] = "torch"
    extra: ClassVar[str] = "export"
    taps_change_plan: ClassVar[bool] = False
    endings: ClassVar[tuple[str, ...]] = (".safetensors",)
    device: ClassVar[str] = "cpu"

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
        if not source.manifest.checkpoint:
            raise EngineError(f"{source.manifest_path} names no checkpoint, and the torch engine runs from one")
        checkpoint = source.file(source.manifest.checkpoint)
        if source.manifest.graph.with_preprocess:
            raise EngineError("the torch engine takes normalised images, and this export takes uint8 pixels")
        # Nothing to compile, and the weights are large: the engine is the export's own checkpoint.
        target = job.folder / f"{job.stem}.safetensors"
        try:
            target.hardlink_to(checkpoint)
        except OSError:  # a file system without hard links
            with saving(target):
                shutil.copyfile(checkpoint, target)
        return Built(target.name, (target.name,))

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        self._torch: Any = require("torch", extra=self.extra)
        from lifedeploy.model import checkpoint

        self._dtype = getattr(self._torch, _DTYPES[self.options.precision])
        model, spec = checkpoint.load(self.path, method=self.options.method or None)
        if self.options.last_block == "prefix":
            model = model.with_prefix_block()
        self._model = model.to(self.device, self._dtype)
        self._threads = self._torch.get_num_threads()
        if self.options.threads is not None:
            self._torch.set_num_threads(self.options.threads)  # of the whole process: there is no other way
        height, width = spec.image_size
        width_out = spec.num_classes or model.adapted.features
        self._name = "logits" if spec.num_classes else "features"
        outputs = [TensorSpec(self._name, "float32", (self.options.batch, width_out))]
        for tap in self.options.taps:
            layer = kept_layer(tap)
            if layer is None and tap not in (SCORES_NAME, GROUPS_NAME):
                raise EngineError(f"{self.path} has no tensor {tap}")
            dtype = "float32" if tap == SCORES_NAME else "int64"
            size = spec.schedule.patches if layer is None else spec.schedule.after(layer)
            outputs.append(TensorSpec(tap, dtype, (self.options.batch, size)))
        return (TensorSpec("images", "float32", (self.options.batch, 3, height, width)),), tuple(outputs)

    def _called(self, batch: int) -> Any:
        """The model as it is called with ``batch`` images."""
        return self._model

    def _close(self) -> None:
        if self.options.threads is not None:
            self._torch.set_num_threads(self._threads)
        del self._model

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        images = self._torch.from_numpy(np.ascontiguousarray(feeds["images"]))
        with self._torch.inference_mode():
            output = self._called(len(images))(images.to(self.device, self._dtype))
        results = {self._name: self._on_host(output.logits)}
        for tap in self.options.taps:
            layer, told = kept_layer(tap), {SCORES_NAME: output.scores, GROUPS_NAME: output.groups}
            results[tap] = self._on_host(told[tap] if layer is None else output.kept[layer])
        return results

    def _on_host(self, tensor: Any) -> Array:
        """As numpy has it: floating-point numbers in FP32."""
        host: Array = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
        return host


class TorchCuda(Torch):
    """PyTorch on an NVIDIA GPU, eager, the whole model in the precision asked for.

    ``attention`` says by batch size which backend computes attention, and what all of them took.
    """

    name: ClassVar[str] = "torch-cuda"
    on_gpu: ClassVar[bool] = True
    device: ClassVar[str] = "cuda"

    @property
    def chooses(self) -> bool:
        """Whether the backends of attention are measured, or PyTorch's own order holds.

        That order is the process's: threads that infer at the same time would set it for each other.
        """
        return self.options.streams == 1

    @classmethod
    def availability(cls) -> Availability:
        status = super().availability()
        if not require("torch", extra=cls.extra).cuda.is_available():
            return Availability(
                False, "this torch has no CUDA, or there is no NVIDIA GPU that it can use", "nvidia-smi"
            )
        return status

    @classmethod
    def plan(cls, requested: str) -> PrecisionPlan:
        return PrecisionPlan(requested)

    @classmethod
    def processor(cls, options: BuildOptions) -> str:
        return str(require("torch", extra=cls.extra).cuda.get_device_name())

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        self.attention: dict[int, Choice] = {}
        self._by_batch: dict[int, Any] = {}
        self._choosing = threading.Lock()
        return super()._open()

    def _close(self) -> None:
        super()._close()
        del self._by_batch

    def _called(self, batch: int) -> Any:
        with self._choosing:
            if batch not in self._by_batch:
                model: Any = self._model
                if self.chooses:
                    shape = batch, *self.inputs[0].shape[1:]
                    images = self._torch.randn(shape, device=self.device, dtype=self._dtype)
                    self.attention[batch] = choice = measured(model, images, self._times)
                    model = prioritised(model, choice.order)
                self._by_batch[batch] = self._ready(model)
            return self._by_batch[batch]

    def _times(self, jobs: Mapping[Job, Callable[[], Any]]) -> Mapping[Job, float]:
        """How long attentions take on this device, in ms."""
        return cuda_clock(jobs)

    def _ready(self, model: Any) -> Any:
        """The model as it runs."""
        return model

    def _lane(self, batch: int) -> Lane:
        return _CudaLane(self, buffers(self.inputs, batch))

    def note(self, batch: int) -> str:
        """What was chosen for ``batch`` images, in words; '' of nothing."""
        note = self.attention[batch].note if batch in self.attention else ""
        return note and f"{self.name} {self.precision}, batch {batch}: {note}"


class TorchCompiled(TorchCuda):
    """PyTorch on an NVIDIA GPU through ``torch.compile``: fused kernels, replayed as CUDA graphs."""

    name: ClassVar[str] = "torch-compiled"
    chooses = True  # the order is compiled in

    def _ready(self, model: Any) -> Any:
        compiler_caches()
        # All models share their code, and beyond its limit of compilations torch would go on in eager mode, in silence.
        self._torch._dynamo.config.recompile_limit = max(256, self._torch._dynamo.config.recompile_limit)
        self._torch._dynamo.config.fail_on_recompile_limit_hit = True
        from torch._inductor import config

        marked = dict.fromkeys(TRACED, str(self._torch.__version__))
        config.unsafe_marked_cacheable_functions = config.unsafe_marked_cacheable_functions | marked
        return self._torch.compile(model, mode="reduce-overhead", dynamic=False, fullgraph=True)


class _CudaLane(DeviceLane):
    """Page-locked buffers, images that stay on the GPU, and a stream of its own."""

    def __init__(self, engine: TorchCuda, inputs: dict[str, Array]) -> None:
        self._torch, self._engine = engine._torch, engine
        self._host = self._torch.from_numpy(inputs["images"]).pin_memory()
        self._resident = self._torch.empty_like(self._host, device=engine.device, dtype=engine._dtype)
        self._stream = self._torch.cuda.Stream()
        self._events = [self._torch.cuda.Event(enable_timing=True) for _ in range(2)]
        super().__init__({"images": self._host.numpy()}, {})
        self._model, self.note = engine._called(len(self._host)), engine.note(len(self._host))
        for _ in range(3):  # compilation, and the warm-up that CUDA graphs need
            self.infer()

    def infer(self) -> None:
        with self._torch.inference_mode(), self._torch.cuda.stream(self._stream):
            self._resident.copy_(self._host, non_blocking=True)
            logits = self._engine._on_host(self._answer())  # the copy to the host waits for the stream
        self.outputs = {self._engine._name: logits}

    def compute(self) -> None:
        with self._torch.inference_mode(), self._torch.cuda.stream(self._stream):
            self._answer()
        self._stream.synchronize()

    def _answer(self) -> Any:
        """Logits on the GPU, of the images there."""
        return self._model(self._resident).logits

    def device_ms(self, *, copies: bool) -> float:
        began, ended = self._events
        began.record(self._stream)
        (self.infer if copies else self.compute)()
        ended.record(self._stream)
        ended.synchronize()
        return float(began.elapsed_time(ended))
