"""The engine: built where there is no GPU, refused where it must be, and run on a device made of numpy."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lifedeploy.artifact import Artifact, EngineRecord, Workspace
from lifedeploy.bench.measure import Stop
from lifedeploy.engines import cuda, registry
from lifedeploy.engines.base import Availability, BuildOptions, EngineOptions
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.engines.tensorrt.loading import require_version
from lifedeploy.engines.tensorrt.rtx import TensorRTRtx
from lifedeploy.errors import ArtifactError, EngineError, EngineInputError, EngineUnavailableError, UsageError
from lifedeploy.records import OptionsRecord, ParityRecord
from lifedeploy.spec import GraphForm
from lifedeploy.targets.evidence import Checked, prove
from lifedeploy.targets.find import find
from lifedeploy.targets.target import target_of
from lifedeploy.workflows.bench import BenchRequest, bench
from lifedeploy.workflows.build import BuildRequest, build
from tests.engines.devices import FakeCuda
from tests.engines.hammer import wrong_answers

KEPT = "kept_4"  # by an engine of the fake device
NO_DRIVER = Availability(False, "no CUDA driver", "install one")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "availability", lambda: NO_DRIVER)


@pytest.fixture(scope="module")
def plans(rtx, exported, tmp_path_factory):
    """A workspace in which TensorRT for RTX has built, with no GPU. Read only: copy it (``built``) before writing."""
    root = tmp_path_factory.mktemp("plans") / "artifacts"
    shutil.copytree(exported, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "availability", lambda: NO_DRIVER)
        build(BuildRequest(engine="tensorrt-rtx", precision="fp16"), Workspace(root))
    return root


@pytest.fixture
def built(plans, tmp_path, no_gpu):
    shutil.copytree(plans, tmp_path / "artifacts")
    return Workspace(tmp_path / "artifacts")


def newest(workspace):
    return next(engine for engine in workspace.engines() if engine.manifest.engine.name == "tensorrt-rtx")


def test_the_sidecar_says_how_it_was_built_and_what_became_of_it(built):
    artifact = newest(built)
    artifact.check()
    record, depth = artifact.manifest.engine, artifact.manifest.spec.schedule.depth
    assert set(record.files) == {"model.plan", "model.fp16.onnx"}
    assert record.source_sha256 == built.latest_export().manifest.sha256
    assert (record.precision, record.pending, record.processor) == (
        "fp16",
        "no CUDA driver",
        "all GPUs of TensorRT for RTX",
    )
    form = {"precision": "fp16", "attention": "operator", "with_order": True, "integer": "none", "least_queries": 2}
    assert record.graph.form.to_dict() == form
    assert record.graph.attentions == depth - 1  # that of a single query stays products, which are fused as well
    assert set(record.graph.islands) == {"ranking"}
    assert record.graph.parity.passed  # the graph's numbers, emulated; the plan's own need a GPU
    assert 0 < max(case.max_rel_same for case in record.graph.parity.cases) < 0.03
    assert artifact.manifest.parity is None
    fusion = record.details.fusion
    assert (fusion.attention, fusion.topk, fusion.precision) == (depth, 1, "fp16")
    assert record.details.profile["images"][2][0] == 128
    for method in ("dense", "first-k"):
        fusion = artifact.sibling(method).manifest.engine.details.fusion
        assert (fusion.attention, fusion.topk) == (depth, 0)


def test_the_same_again_is_reused_and_other_options_are_not(built):
    request = BuildRequest(engine="tensorrt-rtx", precision="fp16")
    assert build(request, built).reused
    assert build(BuildRequest(engine="tensorrt-rtx"), built).reused  # its usual precision
    other = build(replace(request, options=BuildOptions(batch=(1, 2, 4))), built)
    assert not other.reused
    assert other.record.options.to_dict() == {"batch": [1, 2, 4]}
    assert build(replace(request, options=BuildOptions(batch=(1, 2, 4))), built).reused


def test_where_there_is_no_gpu_it_says_so(built):
    for act in (
        lambda: bench(BenchRequest(), built),
        lambda: target_of(find(newest(built).folder)),
        lambda: prove(newest(built)),
    ):
        with pytest.raises(EngineUnavailableError, match=r"model.plan is built, and cannot run here: no CUDA driver"):
            act()
    with pytest.raises(EngineUnavailableError, match="engine tensorrt-rtx cannot run here: no CUDA driver"):
        registry.resolve("tensorrt-rtx")
    with (
        pytest.raises(EngineUnavailableError, match=r"model.plan is built, and cannot run here"),
        TensorRTRtx(newest(built).path),
    ):
        pass


def test_on_the_command_line_that_is_one_line_and_exit_code_1(built, lifedeploy):
    ended = lifedeploy("bench", str(newest(built).folder))
    assert ended.code == 1
    assert ended.lines[0].endswith("model.plan is built, and cannot run here: no CUDA driver")


def test_only_a_plan_with_its_manifest_is_loaded(built):
    artifact = newest(built)
    with artifact.path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArtifactError, match=r"is not the file that model.json was written for"):
        TensorRTRtx(artifact.path).open()
    alone = artifact.folder / "alone.plan"
    shutil.copy(artifact.path, alone)
    with pytest.raises(ArtifactError, match="has no manifest beside it, and a plan is executable code") as caught:
        TensorRTRtx(alone).open()
    assert "--trust" in caught.value.hint


def test_a_foreign_plan_is_measured_only_if_trusted_and_its_engine_is_named(built, device):
    alone = device.path
    quick = Stop(budget_s=5, min_rounds=3, half_width=1)
    request = BenchRequest(model=alone, batches=(2,), stop=quick, memory=False)
    with pytest.raises(ArtifactError, match="has no manifest beside it") as caught:
        bench(request, built)
    assert "--trust" in caught.value.hint
    with pytest.raises(UsageError, match="is a TensorRT plan, and auto opens none"):
        bench(replace(request, trust=True), built)
    rows = bench(replace(request, trust=True, engines=("tensorrt:fp16",)), built).rows
    assert [row.setting.copies for row in rows] == [True, False]
    for row in rows:
        assert (row.subject.model, row.subject.method, row.subject.precision, row.subject.parity) == (
            "model.plan",
            "unknown",
            "fp16",
            None,
        )
        assert row.images_per_s > 0
        assert row.device_ms["p50"] >= 0
    (only,) = bench(replace(request, trust=True, engines=("tensorrt:fp16",), copies=(False,)), built).rows
    assert only.setting.copies is False


def test_a_plan_of_another_version_is_not_loaded(built):
    artifact = newest(built)
    data = json.loads(artifact.manifest_path.read_text())
    data["engine"]["runtime"] = "1.0.0"
    artifact.manifest_path.write_text(json.dumps(data))
    with pytest.raises(EngineError, match=r"was built by tensorrt-rtx 1.0.0, and [\d.]+ is installed"):
        TensorRTRtx(artifact.path).open()


@pytest.mark.parametrize("option", ["strip_weights", "refittable"])
def test_what_rtx_builds_only_beside_a_gpu_is_refused_without(built, option):
    request = BuildRequest(engine="tensorrt-rtx", options=BuildOptions(**{option: True}))
    name = option.replace("_", "-")
    with pytest.raises(EngineUnavailableError, match=f"builds with --{name} only where there is a GPU: no CUDA driver"):
        build(request, built)


def test_forms_and_options():
    assert TensorRT.form("fp16", BuildOptions()) == GraphForm(
        precision="fp16", attention="operator", with_order=True, least_queries=2
    )
    assert TensorRT.form("fp32", BuildOptions()).attention == "products"
    assert TensorRT.form("bf16", BuildOptions(attention="products")).attention == "products"
    with pytest.raises(UsageError, match="no kernel for FP32 attention as one operator"):
        TensorRT.form("fp32", BuildOptions(attention="operator"))
    with pytest.raises(UsageError, match="no use for --target; it takes: --attention, --remainder, --batch"):
        TensorRT.require_options(BuildOptions(target=("sm89",)))
    with pytest.raises(UsageError, match=r"engine openvino has no use for --level; it takes: --attention$"):
        registry.get("openvino").require_options(BuildOptions(level=3))


def test_fp32_is_refused_because_nothing_fuses_it_and_allowed_if_asked_for(built):
    assert TensorRT.usual == TensorRTRtx.usual == "fp16"
    request = BuildRequest(engine="tensorrt-rtx", precision="fp32")
    with pytest.raises(EngineError, match=r"attention is fused in 0 of \d+ layers of model \(life\)"):
        build(request, built)
    assert not list(built.root.glob("*/tensorrt-rtx-fp32"))
    report = build(replace(request, options=BuildOptions(allow_unfused=True)), built)
    assert report.record.details.fusion.precision == "fp32"


# A device made of numpy: what the runtime does with buffers, streams and graphs is seen without a GPU.


class FakeContext:
    """Computes logits = 2 × the images' sums, and which tokens it kept."""

    def __init__(self, layer):
        self.layer, self.shapes, self.addresses, self.profiler = layer, {}, {}, None

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return shape[0] <= 8

    def get_tensor_shape(self, name):
        batch = self.shapes["images"][0]
        return {"images": self.shapes["images"], "logits": (batch, 2), KEPT: (batch, 3)}[name]

    def set_tensor_address(self, name, pointer):
        self.addresses[name] = pointer
        return True

    def execute_async_v3(self, handle):
        if self.profiler is not None:
            self.profiler.report_layer_time("blocks.0.mlp.fc1/MatMul", 3.0)
            self.profiler.report_layer_time("sort_myl0_7", 1.0)

        def work():
            images = self.layer.memory[self.addresses["images"]].view(np.float32).reshape(self.shapes["images"])
            sums = images.sum(axis=(1, 2, 3))
            logits = self.layer.memory[self.addresses["logits"]].view(np.float32).reshape(-1, 2)
            logits[:] = np.stack([sums, 2 * sums], axis=1)
            self.layer.memory[self.addresses[KEPT]].view(np.int64).reshape(-1, 3)[:] = [2, 0, 1]

        (self.layer.capturing.append(work) if self.layer.capturing is not None else work())
        return True


@pytest.fixture
def device(monkeypatch, tmp_path):
    """TensorRT and CUDA as far as the engine uses them."""
    layer, contexts, caches = FakeCuda(), [], []
    modes, dtypes = SimpleNamespace(INPUT="in", OUTPUT="out"), {"images": np.float32, "logits": np.float32}

    class Engine:
        num_io_tensors = 3
        refittable = False

        def get_tensor_name(self, index):
            return ("images", "logits", KEPT)[index]

        def get_tensor_mode(self, name):
            return "in" if name == "images" else "out"

        def get_tensor_dtype(self, name):
            return dtypes.get(name, np.int64)

        def get_tensor_shape(self, name):
            return {"images": (-1, 3, 2, 2), "logits": (-1, 2), KEPT: (-1, 3)}[name]

        def get_tensor_profile_shape(self, name, index):
            return [(1, 3, 2, 2), (4, 3, 2, 2), (8, 3, 2, 2)]

        def create_execution_context(self, config=None):
            contexts.append(FakeContext(layer))
            contexts[-1].config = config
            return contexts[-1]

        def create_engine_inspector(self):
            layers = [{"Name": "gemm", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]}]
            layers.append({"Name": "sort_myl0_7", "TacticName": "__myl_Topk"})
            layers[-1]["Metadata"] = "[ONNX Layer: reducer.order.4/TopK]"
            return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": layers}))

        def create_runtime_config(self):
            caches.append(SimpleNamespace(kernels=b"", serialize=lambda: caches[-1].kernels + b"+"))
            caches[-1].deserialize = lambda data: setattr(caches[-1], "kernels", data)
            return SimpleNamespace(create_runtime_cache=lambda: caches[-1], set_runtime_cache=lambda cache: True)

    class Logger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)

    trt = SimpleNamespace(
        __version__="11",
        ILogger=Logger,
        TensorIOMode=modes,
        nptype=lambda dtype: dtype,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="none"),
        EngineValidity=SimpleNamespace(INVALID="invalid"),
        EngineInvalidityDiagnostics=SimpleNamespace(
            __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4}
        ),
        IProfiler=type("IProfiler", (), {}),
        __name__="fake",
    )
    trt.Runtime = lambda logger: SimpleNamespace(
        deserialize_cuda_engine=lambda data: Engine() if data == b"plan" else None,
        get_engine_validity=lambda data: trt.validity,
    )
    trt.validity, trt.Engine = ("valid", 0), Engine
    monkeypatch.setattr(TensorRT, "library", classmethod(lambda cls: trt))
    monkeypatch.setattr("lifedeploy.engines.tensorrt.engine.installed", lambda module: True)
    monkeypatch.setattr(cuda, "availability", lambda: Availability(True))
    monkeypatch.setattr(cuda, "connect", lambda binding="": layer)
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan")
    return SimpleNamespace(layer=layer, contexts=contexts, path=path, trt=trt)


def images(batch, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3, 2, 2)).astype(np.float32)


def test_answers_come_back_and_the_ranking_only_if_asked_for(device):
    with TensorRT(device.path, EngineOptions(trust=True)) as engine:
        assert [spec.name for spec in engine.outputs] == ["logits"]
        found = engine.run({"images": images(3)})
        np.testing.assert_allclose(found["logits"][:, 0], images(3).sum(axis=(1, 2, 3)), rtol=1e-5)
        assert set(found) == {"logits"}
    with TensorRT(device.path, EngineOptions(trust=True, taps=(KEPT,))) as engine:
        assert engine.run({"images": images(2)})[KEPT].tolist() == [[2, 0, 1]] * 2


def test_threads_get_the_answers_to_their_own_inputs(device):
    with TensorRT(device.path, EngineOptions(trust=True)) as engine:
        assert wrong_answers(engine, 300) == []
        assert len(device.contexts) == 2  # one for each batch, not for each thread


def test_a_batch_size_is_captured_once_and_its_buffers_are_used_again(device):
    with TensorRT(device.path, EngineOptions(trust=True)) as engine:
        for seed in range(3):
            found = engine.run({"images": images(4, seed)})
            np.testing.assert_allclose(found["logits"][:, 0], images(4, seed).sum(axis=(1, 2, 3)), rtol=1e-5)
        assert device.layer.log.count("capture") == 1
        assert device.layer.log.count("launch") == 3
        assert len(device.contexts) == 1
    assert device.layer.memory == {}
    assert device.layer.pins == 0


def test_rtx_has_its_own_graphs_and_keeps_its_kernels_with_the_user(device, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for opened in (1, 2):
        with TensorRTRtx(device.path, EngineOptions(trust=True)) as engine:
            found = engine.run({"images": images(2)})
        np.testing.assert_allclose(found["logits"][:, 0], images(2).sum(axis=(1, 2, 3)), rtol=1e-5)
        (kept,) = (tmp_path / "cache" / "lifedeploy" / "tensorrt-rtx").iterdir()
        assert kept.read_bytes() == b"+" * opened  # read again, and written again
    config = device.contexts[0].config
    assert (config.dynamic_shapes_kernel_specialization_strategy, config.cuda_graph_strategy) == ("eager", "whole")
    assert "capture" not in device.layer.log


def test_lanes_have_a_context_and_buffers_of_their_own(device):
    with TensorRT(device.path, EngineOptions(trust=True)) as engine:
        first, second = engine.lane(2), engine.lane(2)
        assert len(device.contexts) == 2
        assert not set(device.contexts[0].addresses.values()) & set(device.contexts[1].addresses.values())
        first.inputs["images"][...] = images(2, 1)
        first.infer()
        assert (second.outputs["logits"] == 0).all()
    assert (device.layer.memory, device.layer.pins) == ({}, 0)  # closed with their engine
    context = weakref.ref(device.contexts.pop())
    assert context() is None  # a lane that outlives its engine does not keep what belongs to it
    with pytest.raises(EngineError, match="this lane is closed: its engine is"):
        second.infer()


def test_without_copies_the_device_computes_on_what_it_has(device):
    with TensorRT(device.path, EngineOptions(trust=True)) as engine:
        lane = engine.lane(2)
        lane.inputs["images"][...] = images(2, 1)
        lane.infer()
        before = lane.outputs["logits"].copy()
        lane.inputs["images"][...] = images(2, 2)  # stays here
        lane.compute()
        np.testing.assert_array_equal(lane.outputs["logits"], before)
        assert (
            lane.device_ms(copies=False) == lane.device_ms(copies=True) > 0
        )  # one launch either way, as the log has it
        assert device.layer.log.count("capture") == 2  # with copies, and without
        assert lane.outputs["logits"][:, 0] == pytest.approx(images(2, 2).sum(axis=(1, 2, 3)), rel=1e-5)
    assert device.layer.log[-1] == "retire"
    assert (device.layer.memory, device.layer.pins, device.layer.events) == ({}, 0, 0)


def test_a_lane_that_cannot_be_made_gives_back_what_it_took(device, monkeypatch):
    monkeypatch.setattr(FakeContext, "execute_async_v3", lambda self, handle: False)
    with TensorRT(device.path, EngineOptions(trust=True)) as engine:
        with pytest.raises(EngineError, match="tensorrt did not take the work: no reason was given"):
            engine.lane(2)
        assert (device.layer.memory, device.layer.pins, device.layer.events) == ({}, 0, 0)


def test_what_does_not_fit_is_refused_before_it_reaches_the_device(device):
    with TensorRT(device.path, EngineOptions(trust=True)) as engine:
        with pytest.raises(EngineInputError, match="does not take batch 9: it was built for batches 1 to 8"):
            engine.run({"images": images(9)})
        with pytest.raises(EngineInputError, match="float64"):
            engine.run({"images": images(1).astype(np.float64)})


def test_a_plan_that_does_not_load_says_why(device):
    device.path.write_bytes(b"damaged")
    with pytest.raises(EngineError, match=r"tensorrt cannot load .*model.plan: no reason was given"):
        TensorRT(device.path, EngineOptions(trust=True)).open()


def test_layers_are_timed_without_graphs_and_without_the_warm_up(device):
    with TensorRT(device.path, EngineOptions(trust=True)) as engine:
        layers = engine.profile({"images": images(2)}, runs=4)
    assert [(layer.name, layer.kind, layer.ms) for layer in layers] == [
        ("blocks.0.mlp.fc1/MatMul", "", 3.0),
        ("[ONNX Layer: reducer.order.4/TopK]", "__myl_Topk", 1.0),
    ]
    assert "capture" not in device.layer.log
    with TensorRTRtx(device.path, EngineOptions(trust=True)) as engine:
        engine.profile({"images": images(2)}, runs=1)
    assert device.contexts[-1].config.cuda_graph_strategy == "none"


def test_a_plan_that_this_gpu_cannot_run_is_not_loaded(device):
    device.trt.validity = ("invalid", 6)
    with pytest.raises(EngineError, match=r"model.plan cannot run on this machine: unsupported cc, old cuda driver$"):
        TensorRTRtx(device.path, EngineOptions(trust=True)).open()
    for answer in (("suboptimal", 0), ("invalid", 0)):  # the latter: it cannot tell
        device.trt.validity = answer
        with TensorRTRtx(device.path, EngineOptions(trust=True)) as engine:
            engine.run({"images": images(1)})


@pytest.mark.parametrize(
    ("options", "runtime", "processor", "refusal"),
    [
        ({}, "11", "numpy (sm00)", None),
        ({}, "11", "NVIDIA L4 (sm89)", r"was built on NVIDIA L4 \(sm89\), and this is numpy \(sm00\)"),
        ({"hardware_compatible": True}, "11", "NVIDIA L4 (sm89)", None),
        ({}, "11.0", "numpy (sm00)", r"was built by tensorrt 11.0, and 11 is installed"),
        ({"version_compatible": True}, "11", "numpy (sm00)", None),
        ({"version_compatible": True}, "10.9", "numpy (sm00)", None),
        ({"version_compatible": True}, "12.0", "numpy (sm00)", r"was built by tensorrt 12.0, and 11 is installed"),
    ],
)
def test_what_a_plan_was_built_for_and_what_is_here(device, monkeypatch, options, runtime, processor, refusal):
    record = SimpleNamespace(name="tensorrt", options=OptionsRecord(**options), runtime=runtime, processor=processor)
    monkeypatch.setattr("lifedeploy.engines.tensorrt.engine.vouched", lambda path, name: record)
    engine = TensorRT(device.path)
    if refusal:
        with pytest.raises(EngineError, match=refusal):
            engine.open()
    else:
        engine.open()
        engine.close()


def test_a_newer_version_of_the_same_runtime_takes_a_compatible_plan(tmp_path):
    record = EngineRecord(
        name="tensorrt",
        precision="fp16",
        requested="fp16",
        options=OptionsRecord(version_compatible=True),
        runtime="10.9.0",
    )
    require_version(tmp_path, record, "10.14.1")
    with pytest.raises(EngineError):
        require_version(tmp_path, record, "10.8.0")


@pytest.fixture
def stripped(device, monkeypatch):
    """A plan without weights; what it is given is written down."""
    given = []
    device.trt.Engine.refittable = True
    device.trt.missing = ["blocks.0.mlp.fc1.weight"]
    device.trt.Refitter = lambda engine, logger: SimpleNamespace(
        get_missing_weights=lambda: device.trt.missing, refit_cuda_engine=lambda: bool(given)
    )
    device.trt.OnnxParserRefitter = lambda refitter, logger: SimpleNamespace(
        refit_from_file=lambda name: given.append(name) or "good" in Path(name).read_text()
    )
    return SimpleNamespace(given=given, path=device.path, graph=device.path.parent / "model.fp16.onnx", trt=device.trt)


def test_a_stripped_plan_gets_its_weights_from_the_graph_beside_it(stripped):
    engine = TensorRT(stripped.path, EngineOptions(trust=True))
    with pytest.raises(EngineError, match="built without its weights, and the graph that has them is not beside it"):
        engine.open()
    stripped.graph.write_text("another model")
    with pytest.raises(EngineError, match=r"did not take the 1 weights of model.fp16.onnx: no reason was given"):
        engine.open()
    stripped.graph.write_text("good")
    with engine:
        assert stripped.given[-1] == str(stripped.graph)
    stripped.given.clear()
    stripped.trt.missing = []  # refittable, and complete
    with engine:
        assert stripped.given == []


def test_evidence_is_completed_where_the_engine_runs(built, monkeypatch):
    """Built where there was no GPU, then asked for where there is one: checked, written down, not built again."""
    asked = []

    def check(target, graph):
        asked.append(target.path.name)
        manifest = Artifact.read(target.path.with_suffix(".json")).manifest
        same = ParityRecord(passed=True, precision="fp16", max_abs=0.0, max_rel=0.0, top1=1.0, overlap=1.0)
        return Checked(parity=same, precision="fp16", inputs=manifest.inputs, outputs=manifest.outputs, eight_bits=None)

    monkeypatch.setattr("lifedeploy.targets.evidence.check", check)
    monkeypatch.setattr(cuda, "availability", lambda: Availability(True))
    monkeypatch.setattr(FakeCuda, "device", lambda self: "NVIDIA L4 (sm89)")
    monkeypatch.setattr(cuda, "connect", lambda binding="": FakeCuda())
    before = newest(built).path.stat().st_mtime_ns
    report = build(BuildRequest(engine="tensorrt-rtx", precision="fp16"), built)
    assert report.reused
    assert sorted(asked) == ["dense.plan", "first-k.plan", "model.plan"]
    artifact = newest(built)
    assert artifact.path.stat().st_mtime_ns == before
    assert artifact.manifest.parity.passed
    assert artifact.manifest.engine.pending == ""
    assert prove(artifact) is artifact


@pytest.mark.parametrize(
    ("device", "runs"),
    [("NVIDIA H100 80GB HBM3 (sm90)", False), ("NVIDIA L4 (sm89)", True), ("NVIDIA Thor (sm110)", False)],
)
def test_rtx_runs_only_on_generations_that_it_has_kernels_for(device, runs, monkeypatch):
    monkeypatch.setattr(cuda, "availability", lambda: Availability(True))
    monkeypatch.setattr(FakeCuda, "device", lambda self: device)
    monkeypatch.setattr(cuda, "connect", lambda binding="": FakeCuda())
    found = registry.examine(registry.get("tensorrt-rtx"))
    assert found.ok is runs
    if not runs:
        assert found.reason == f"it has no kernels for {device}, only for sm75, sm80, sm86, sm89, sm120, sm121"
        with pytest.raises(EngineUnavailableError, match="engine tensorrt-rtx cannot run here: it has no kernels"):
            registry.resolve("tensorrt-rtx")
    assert registry.examine(registry.get("tensorrt-rtx"), to_build=True).ok
