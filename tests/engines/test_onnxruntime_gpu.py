"""ONNX Runtime's engines on GPUs, run by its CPU provider on a device made of numpy; and what is said without a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.measure import Stop
from lifedeploy.engines import cuda, onnxruntime_gpu, registry
from lifedeploy.engines.base import Availability, EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.engines.onnxruntime_gpu import OnnxRuntimeCuda, OnnxRuntimeRtx, OnnxRuntimeTensorRT
from lifedeploy.errors import EngineError, EngineInputError, EngineUnavailableError
from lifedeploy.workflows.bench import BenchRequest, bench
from lifedeploy.workflows.build import BuildRequest, build
from tests.engines.devices import FakeCuda
from tests.engines.hammer import wrong_answers

KEPT = "kept_2"  # after the first drop


class OnCpu(OnnxRuntimeCuda):
    """All of the engine, but for the provider."""

    provider, memory = "CPUExecutionProvider", "cpu"

    def _prepare(self):
        pass

    def _provider_options(self, stream, batch):
        return {}


@pytest.fixture
def device(monkeypatch):
    layer = FakeCuda()
    monkeypatch.setattr(cuda, "availability", lambda: Availability(True))
    monkeypatch.setattr(cuda, "connect", lambda binding="": layer)
    return layer


@pytest.fixture
def graph(exported):
    return next(exported.glob("*/model.onnx"))


def images(batch, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3, 64, 64)).astype(np.float32)


def test_answers_are_those_of_the_cpu_engine_and_every_batch_has_its_lane(device, graph):
    with OnnxRuntime(graph, EngineOptions(taps=(KEPT,))) as engine:
        expected = {batch: engine.run({"images": images(batch)}) for batch in (1, 3)}
    with OnCpu(graph, EngineOptions(taps=(KEPT,))) as engine:
        for batch in (1, 3, 1):
            found = engine.run({"images": images(batch)})
            np.testing.assert_allclose(found["logits"], expected[batch]["logits"], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(found[KEPT], expected[batch][KEPT])
        assert len(engine._lanes) == 2
    assert (device.memory, device.pins, device.events) == ({}, 0, 0)


def test_what_the_runtime_refuses_is_an_error_of_the_engine(device, graph, monkeypatch):
    def refused(*_):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 4294967296")

    with OnCpu(graph) as engine:
        monkeypatch.setattr("onnxruntime.InferenceSession.run_with_iobinding", refused)
        with pytest.raises(EngineError, match="ONNX Runtime failed: Failed to allocate memory"):
            engine.run({"images": images(1)})


def test_threads_get_the_answers_to_their_own_inputs(device, graph):
    with OnCpu(graph) as engine:
        assert wrong_answers(engine, 200) == []
        assert len(engine._lanes) == 2  # one for each batch, not for each thread


def test_a_session_of_a_lane_is_fixed_to_its_batch(device, graph):
    with OnCpu(graph) as engine:
        assert engine.inputs[0].shape == (None, 3, 64, 64)
        lane = engine.lane(2)
        assert lane.inputs["images"].shape == (2, 3, 64, 64)
        assert lane.outputs["logits"].shape == (2, 3)
        options = engine._session_options(engine._ort, engine.options)
        assert engine._batch_names == {"batch"}
        options.add_free_dimension_override_by_name("batch", 2)
        fixed = engine._new_session(options, {})
        assert fixed.get_inputs()[0].shape == [2, 3, 64, 64]


def test_a_size_that_is_not_the_batch_is_not_taken_for_it(device, graph, tmp_path):
    model = onnx.load(graph)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, tmp_path / "model.onnx")
    with (
        OnCpu(tmp_path / "model.onnx") as engine,
        pytest.raises(EngineInputError, match="images has a dynamic size beyond the batch"),
    ):
        engine.lane(2)


def test_copies_can_be_left_out(device, graph):
    with OnCpu(graph) as engine:
        lane = engine.lane(1)
        lane.inputs["images"][...] = images(1, 1)
        lane.infer()
        before = lane.outputs["logits"].copy()
        lane.inputs["images"][...] = images(1, 2)
        lane.compute()
        np.testing.assert_array_equal(lane.outputs["logits"], before)
        lane.infer()
        assert np.abs(lane.outputs["logits"] - before).max() > 0


def test_what_fell_back_is_refused(device, graph):
    class Fell(OnCpu):
        provider = "CUDAExecutionProvider"

        def _new_session(self, options, provider_options):
            return onnxruntime_gpu.new_session(self._ort, self._model, options, ["CPUExecutionProvider"])

    with (
        Fell(graph) as engine,
        pytest.raises(EngineError, match="fell back from CUDAExecutionProvider to CPUExecutionProvider"),
    ):
        engine.lane(1)
    part = SimpleNamespace(
        ep_name="CPUExecutionProvider",
        get_nodes=lambda: [SimpleNamespace(op_type="TopK"), SimpleNamespace(op_type="Gelu")],
    )
    session = SimpleNamespace(
        get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        get_provider_graph_assignment_info=lambda: [part],
    )
    with pytest.raises(
        EngineError,
        match=r"CUDAExecutionProvider left to others of model.onnx: Gelu \(CPUExecutionProvider\), TopK \(CPU",
    ):
        Fell(graph)._require_alone(session)
    assert (device.memory, device.pins, device.events) == ({}, 0, 0)


def test_built_checked_and_measured_with_and_without_copies(device, workspace, monkeypatch):
    monkeypatch.setitem(registry._ENGINES, "onnxruntime-cuda", f"{__name__}:OnCpu")
    report = build(BuildRequest(engine="onnxruntime-cuda"), Workspace(workspace))
    assert report.engine.manifest.parity.passed
    assert report.record.processor == "numpy (sm00)"
    quick = Stop(budget_s=0.01, min_rounds=3)
    rows = bench(BenchRequest(batches=(2,), stop=quick, memory=False), Workspace(workspace)).rows
    assert {(row.subject.method, row.setting.copies) for row in rows} == {
        (method, copies) for method in ("dense", "first-k", "life") for copies in (True, False)
    }


def test_the_base_goes_without_copies_where_it_can(device, workspace, monkeypatch):
    monkeypatch.setitem(registry._ENGINES, "onnxruntime-cuda", f"{__name__}:OnCpu")
    quick = Stop(budget_s=0.01, min_rounds=3)

    def bases(*engines, **changes):
        request = BenchRequest(engines=engines, batches=(2,), stop=quick, memory=False, **changes)
        rows = bench(request, Workspace(workspace)).rows
        return {(row.subject.engine, row.setting.copies): row.base for row in rows}

    dense = "onnxruntime-cuda fp32 dense"
    assert bases("onnxruntime-cuda", "openvino") == {
        ("onnxruntime-cuda", True): dense,
        ("onnxruntime-cuda", False): f"{dense}, without copies",
        ("openvino", None): dense,
    }
    assert set(bases("openvino", "onnxruntime-cuda").values()) == {"openvino fp32 dense"}
    assert set(bases("onnxruntime-cuda", "openvino", copies=(False,)).values()) == {f"{dense}, without copies"}


def test_half_graphs_are_kept_in_their_precision(device, workspace, monkeypatch):
    monkeypatch.setitem(registry._ENGINES, "onnxruntime-cuda", f"{__name__}:OnCpu")
    report = build(BuildRequest(engine="onnxruntime-cuda", precision="fp16"), Workspace(workspace))
    artifact = Artifact.read(report.engine.folder / "model.json")
    artifact.check()
    assert artifact.manifest.engine.graph.form.precision == "fp16"
    assert artifact.path.name == "model.onnx"


def test_options_of_the_providers(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not made yet"))
    path = tmp_path / "model.onnx"
    assert OnnxRuntimeCuda(path)._provider_options(7, 2) == {"user_compute_stream": "7", "enable_cuda_graph": "1"}

    def tensorrt(model, batch):
        engine = OnnxRuntimeTensorRT(path, EngineOptions(precision="fp16"))
        engine._model = model
        return engine._provider_options(7, batch)

    options = tensorrt(b"one", 2)
    assert not {"trt_fp16_enable", "trt_bf16_enable"} & set(options)  # either would turn strong typing off
    assert Path(options["trt_engine_cache_path"]).is_dir()  # the provider would not make its parents
    prefixes = {tensorrt(model, batch)["trt_engine_cache_prefix"] for model in (b"one", b"other") for batch in (1, 3)}
    assert len(prefixes) == 4  # its own key knows neither weights nor shapes
    rtx = OnnxRuntimeRtx(path)._provider_options(7, 2)
    assert (rtx["has_user_compute_stream"], rtx["user_compute_stream"], rtx["enable_cuda_graph"]) == ("1", "7", "1")
    assert Path(rtx["nv_runtime_cache_path"]).is_dir()


@pytest.mark.parametrize(
    ("linked", "reason"), [("10", "this onnxruntime needs TensorRT 10, and 11.4.0 is installed"), ("11", "")]
)
def test_the_tensorrt_that_the_provider_needs(device, monkeypatch, tmp_path, linked, reason):
    library = tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so"
    library.parent.mkdir()
    library.write_bytes(b"\x7fELF..libnvinfer.so." + linked.encode() + b"\x00..")
    module = SimpleNamespace(__file__=str(tmp_path / "__init__.py"), __version__="11.4.0")
    monkeypatch.setattr(OnnxRuntimeCuda, "availability", classmethod(lambda cls: Availability(True)))
    monkeypatch.setattr(onnxruntime_gpu, "installed", lambda name: True)
    monkeypatch.setattr(onnxruntime_gpu, "require", lambda name, extra: module)
    found = OnnxRuntimeTensorRT.availability()
    assert (found.ok, found.reason) == (not reason, reason)


class Plugin(SimpleNamespace):
    """ONNX Runtime as far as plug-ins go."""

    __version__ = "1.32.0"

    def __init__(self, takes, failure=None):
        super().__init__(takes=takes, failure=failure, registered=[])

    def get_ep_devices(self):
        return [SimpleNamespace(ep_name=name) for name in self.registered if self.takes]

    def register_execution_provider_library(self, name, path):
        if self.failure:
            raise RuntimeError(self.failure)
        self.registered.append(name)

    def get_ep_name(self):
        return OnnxRuntimeRtx.provider

    def get_library_path(self):
        return "plugin.so"


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        (Plugin(takes=True), ""),
        (Plugin(takes=False), "TensorRT for RTX does not run on numpy (sm00)"),
        (
            Plugin(takes=False, failure="libcuda.so.1: cannot open"),
            "cannot load onnxruntime_ep_nv_tensorrt_rtx: libcuda",
        ),
    ],
)
def test_whether_the_plug_in_takes_this_gpu(device, monkeypatch, plugin, reason):
    monkeypatch.setattr(onnxruntime_gpu, "installed", lambda module: True)
    monkeypatch.setattr(onnxruntime_gpu, "require", lambda module, extra: plugin)
    found = OnnxRuntimeRtx.availability()
    assert found.ok == (not reason)
    assert reason in found.reason


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"])
def test_without_a_gpu_they_are_refused_with_the_reason(name, monkeypatch):
    monkeypatch.setattr(cuda, "availability", lambda: Availability(False, "no CUDA driver"))
    with pytest.raises(
        EngineUnavailableError, match=f"engine {name} cannot run here: (no CUDA driver|this onnxr|onnx)"
    ):
        registry.resolve(name)
