"""Our runtime against a bare loop over the same TensorRT plan: no checks, no classes, one CUDA graph of the kernels.

    python -m benchmarks.gpu.bare FOLDER [--batch 128] [--budget 20] [--json FILE]

FOLDER is one that ``lifedeploy build-engine --engine tensorrt`` (or tensorrt-rtx) made. Both take turns in one process,
without copies, each launching and waiting per request, which is what trtexec does by default since version 11. The
share is ours over the bare loop's throughput. Of the engine that stands in for them in a dry run, the bare loop is
another lane.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import contest, new_parser, record_of
from lifedeploy.artifact import Artifact
from lifedeploy.engines import registry
from lifedeploy.engines.base import Engine, EngineOptions
from lifedeploy.engines.fake import FakeDevice
from lifedeploy.engines.lanes import DeviceLane, Lane, WithoutCopies
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.errors import LifedeployError
from lifedeploy.files import write_json
from lifedeploy.machine import gpu_state


class Bare(Lane):
    """The least that runs a plan; what it calls it calls with everything looked up before."""

    def __init__(self, trt: Any, plan: bytes, images: np.ndarray, *, captures: bool) -> None:
        super().__init__({}, {})
        from cuda.bindings import runtime as cuda

        logger = trt.Logger(trt.Logger.ERROR)
        self._keep: list[Any] = [logger, trt.Runtime(logger)]
        engine = self._keep[-1].deserialize_cuda_engine(plan)
        if not captures:  # TensorRT for RTX, which makes its own graphs
            config = engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
            self._keep.append(config)
        else:
            context = engine.create_execution_context()
        self._keep += [engine, context]
        context.set_input_shape("images", images.shape)
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            size = int(np.prod(tuple(context.get_tensor_shape(name)))) * kind.itemsize
            error, pointer = cuda.cudaMalloc(size)
            require(error)
            context.set_tensor_address(name, int(pointer))
            if name == "images":
                to_device = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
                require(cuda.cudaMemcpy(pointer, images.ctypes.data, images.nbytes, to_device)[0])
        stream = cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)[1]
        handle = int(stream)
        for _ in range(3):
            context.execute_async_v3(handle)
        require(cuda.cudaStreamSynchronize(stream)[0])
        self._stream, self._wait = stream, cuda.cudaStreamSynchronize
        if not captures:
            self._start = partial(context.execute_async_v3, handle)
            return
        require(cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)[0])
        context.execute_async_v3(handle)
        graph = cuda.cudaStreamEndCapture(stream)[1]
        executable = cuda.cudaGraphInstantiate(graph, 0)[1]
        self._start = partial(cuda.cudaGraphLaunch, executable, stream)

    def infer(self) -> None:
        self._start()
        self._wait(self._stream)


def require(error: Any) -> None:
    """Stop at an error of CUDA."""
    if int(error):
        raise SystemExit(f"CUDA error {error}")


def bare_loop(engine: Engine, batch: int, images: np.ndarray) -> Lane:
    """What an open engine's lane is held against."""
    if isinstance(engine, TensorRT):
        plan = engine.path.read_bytes()
        return Bare(engine.library(), plan, images, captures=engine.captures)
    lane = engine.lane(batch)
    lane.inputs["images"][...] = images
    assert isinstance(lane, DeviceLane)  # the stand-in's is
    return WithoutCopies(lane)


def compare(folder: Path, batch: int, budget: float) -> dict[str, Any]:
    """Both loops over the slimmed model's plan."""
    artifact = Artifact.read(folder / "model.json")
    artifact.check()
    record = artifact.manifest.engine
    if record is None or not issubclass(registry.get(record.name), (TensorRT, FakeDevice)):
        raise SystemExit(f"{folder} holds no engine of TensorRT")
    cls = registry.running(record.name, artifact.path)
    shape = (batch, 3, *artifact.manifest.spec.image_size)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with cls(artifact.path, EngineOptions(precision=record.precision)) as engine:
        lane = engine.lane(batch)
        lane.inputs["images"][...] = images
        assert isinstance(lane, DeviceLane)  # every lane of TensorRT is
        bare = bare_loop(engine, batch, images)
        ours = contest({"bare": bare, "ours": WithoutCopies(lane)}, batch, budget, half_width=0.002)["ours"]
    facts = {"share": ours["ratio"], "low": ours["ratio_low"], "high": ours["ratio_high"]}
    facts |= {name: ours[name] for name in ("images_per_s", "rounds", "coverage")}
    return facts | {"engine": record.name, "batch": batch, "gpu_state": gpu_state()} | record_of("")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, compare, print."""
    parser = new_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    try:
        facts = compare(given.folder, given.batch, given.budget)
    except LifedeployError as error:
        raise SystemExit(f"error: {error.message}") from error
    if given.json:
        write_json(given.json, facts)
    print(json.dumps({name: facts[name] for name in ("engine", "batch", "images_per_s", "share", "low", "high")}))


if __name__ == "__main__":
    main()
