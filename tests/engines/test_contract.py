"""One suite over every engine in the registry: whatever runs here keeps the same contract."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.data.preprocess import normalise
from lifedeploy.data.samples import parity_samples
from lifedeploy.engines import registry
from lifedeploy.engines.base import Availability, EngineOptions
from lifedeploy.engines.fake import Fake
from lifedeploy.engines.openvino import choose_precision
from lifedeploy.engines.torch import Torch
from lifedeploy.errors import EngineError, EngineInputError, EngineUnavailableError, UsageError, WeightsError
from lifedeploy.evaluation import parity
from lifedeploy.kept import KeptTokens
from lifedeploy.spec import SCORES_NAME
from lifedeploy.workflows.build import BuildRequest, build
from tests.engines.hammer import wrong_answers

SIZE = (3, 64, 64)


@pytest.fixture(scope="session")
def built(exported, tmp_path_factory):
    """The exported model, and what an engine opens of it: compiled in FP32, in a workspace of these tests."""
    root = tmp_path_factory.mktemp("contract") / "artifacts"
    shutil.copytree(exported, root)

    def build_for(name: str) -> Artifact:
        return build(BuildRequest(engine=name, precision="fp32"), Workspace(root)).engine

    return Workspace(root).latest_export(), build_for


@pytest.fixture(params=registry.names(hidden=True))
def unopened(request, built):
    """Every engine that runs here: a function that makes one of the slimmed tiny model, and the export behind it."""
    cls = registry.get(request.param)
    availability = registry.examine(cls)
    if not availability.ok:
        pytest.skip(availability.reason)
    source, build_for = built
    path = build_for(request.param).path
    return lambda **options: cls(path, EngineOptions(method="life", **options)), source


@pytest.fixture
def opened(unopened):
    """The same, open as it is by default."""
    make, source = unopened
    with make() as engine:
        yield engine, source


def sample(source: Artifact, batch: int = 1):
    """Normalised images that PyTorch was asked about."""
    preprocess = source.manifest.spec.preprocess
    return next(normalise(one.pixels, preprocess) for one in parity_samples(preprocess) if one.batch == batch)


def recorded(source: Artifact, images):
    """What PyTorch answered."""
    return parity.recorded(source.folder / source.manifest.reference, "life", [images])[0]


def test_specs_say_what_goes_in_and_out(opened):
    engine, _ = opened
    (images,) = engine.inputs
    assert (images.name, images.dtype, images.shape[1:]) == ("images", "float32", SIZE)
    assert [spec.name for spec in engine.outputs] == ["logits"]
    assert engine.precision == "fp32"


@pytest.mark.parametrize("batch", [1, 3])
def test_run_gives_pytorchs_answers(opened, batch):
    engine, source = opened
    images = sample(source, batch)
    np.testing.assert_allclose(engine.run({"images": images})["logits"], recorded(source, images).logits, atol=1e-4)


def test_a_lane_gives_what_run_gives(opened):
    engine, source = opened
    images = sample(source, 3)
    lane = engine.lane(len(images))
    for order in (1, -1):
        lane.inputs["images"][...] = images[::order]
        lane.infer()
        np.testing.assert_allclose(lane.outputs["logits"], engine.run({"images": images[::order]})["logits"], atol=1e-5)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "inputs given: none; the engine takes images: float32 (batch, 3, 64, 64)"),
        ({"pixels": np.zeros((1, *SIZE), np.float32)}, "inputs given: pixels"),
        ({"images": np.zeros((1, *SIZE), np.float64)}, "input images is float64 (1, 3, 64, 64)"),
        ({"images": np.zeros((1, 3, 32, 64), np.float32)}, "input images is float32 (1, 3, 32, 64)"),
        ({"images": np.zeros(SIZE, np.float32)}, "input images is float32 (3, 64, 64)"),
    ],
    ids=["nothing", "name", "dtype", "shape", "rank"],
)
def test_wrong_inputs_are_refused_before_they_reach_the_runtime(opened, feeds, said):
    engine, _ = opened
    with pytest.raises(EngineInputError) as caught:
        engine.run(feeds)
    assert said in caught.value.message
    assert "images: float32 (batch, 3, 64, 64)" in caught.value.message


def test_a_closed_engine_says_so_and_can_be_opened_again(opened):
    engine, _ = opened
    images = np.ones((1, *SIZE), np.float32)
    before = engine.run({"images": images})["logits"]
    engine.close()
    with pytest.raises(EngineError, match="is not open"):
        engine.run({"images": images})
    engine.open()
    np.testing.assert_allclose(engine.run({"images": images})["logits"], before, atol=1e-6)


def test_a_static_engine_refuses_another_batch(unopened):
    make, _ = unopened
    with make(batch=2) as fixed:
        if fixed.inputs[0].shape[0] is None:
            pytest.skip("this runtime takes any batch at full speed, and compiles for none")
        with pytest.raises(EngineInputError, match="is fixed to batch 2, and batch 3 was asked for"):
            fixed.lane(3)
        assert fixed.lane(2).inputs["images"].shape == (2, *SIZE)


def test_the_tapped_ranking_is_the_one_pytorch_kept(unopened):
    make, source = unopened
    images, kept = sample(source), source.manifest.kept
    with make(taps=kept.last_tap) as engine:
        survivors = kept.survivors(engine.run({"images": images}))
    assert survivors.shape == (len(images), source.manifest.spec.schedule.tokens[-1])
    assert parity.overlap(recorded(source, images).kept, survivors) == 1.0


def test_the_tapped_scores_rank_as_the_tokens_that_are_kept(unopened):
    make, source = unopened
    engine, schedule = make(), source.manifest.spec.schedule
    if isinstance(engine, Fake):
        pytest.skip("it replays answers, and no scores are recorded")
    # A graph names the first ones alone, since the later ones are the first of them; PyTorch has them all.
    kept = KeptTokens.of(schedule, schedule.drop_layers) if isinstance(engine, Torch) else source.manifest.kept
    images = sample(source)
    with make(taps=(*kept.taps, SCORES_NAME)) as engine:
        answer = engine.run({"images": images})
    assert answer[SCORES_NAME].shape == (len(images), schedule.patches)
    ranked = np.argsort(-answer[SCORES_NAME], axis=1)
    for layer in schedule.drop_layers:
        assert np.array_equal(kept.after(layer, answer), ranked[:, : schedule.after(layer)])


def test_a_tap_that_is_not_there_is_an_engine_error(unopened):
    engine = unopened[0](taps=("life_order",))
    if isinstance(engine, Fake):
        pytest.skip("it answers whatever it is asked")
    with pytest.raises(EngineError, match=rf"{engine.path.name} has no tensor life_order"):
        engine.open()


def test_lanes_infer_at_the_same_time(unopened):
    with unopened[0](streams=2, threads=2) as engine:
        lanes = [engine.lane(1) for _ in range(2)]
        for number, lane in enumerate(lanes):
            lane.inputs["images"][...] = number + 0.5
        threads = [threading.Thread(target=lane.infer) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, lane in enumerate(lanes):
            images = np.full((1, *SIZE), number + 0.5, np.float32)
            np.testing.assert_allclose(lane.outputs["logits"], engine.run({"images": images})["logits"], atol=1e-5)


def test_threads_get_the_answers_to_their_own_inputs(opened):
    """4 x 5,000 inferences where the runtime takes several at once; fewer where they take turns."""
    engine, _ = opened
    assert wrong_answers(engine, 5000 if engine.concurrent else 200) == []


@pytest.mark.parametrize("batch", [None, 2], ids=["dynamic", "static"])
def test_a_lane_beside_runs_disturbs_nobody(unopened, batch):
    with unopened[0](batch=batch, threads=2) as engine:
        runs, lanes = ((2, 2), (2,)) if batch else ((1, 2), (3,))
        assert wrong_answers(engine, 60, runs, lanes) == []
        for _ in range(5):  # and lanes that are gone are gone
            engine.lane(2).infer()
        assert wrong_answers(engine, 10, runs) == []


def test_pytorch_gets_its_threads_back(exported):
    """They are the whole process's: what trains after an engine was asked should be what it would have been."""
    import torch

    source = Workspace(exported).latest_export()
    before = torch.get_num_threads()
    with registry.get("torch")(source.folder / source.manifest.checkpoint, EngineOptions(threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_an_engine_that_is_closed_meanwhile_says_so(opened):
    engine, source = opened
    feeds, said = {"images": sample(source)}, []

    def ask():
        while True:
            try:
                engine.run(feeds)
            except Exception as error:
                said.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    engine.close()
    for thread in threads:
        thread.join()
    assert {type(error) for error in said} == {EngineError}
    assert "is not open" in str(said[0])


def test_an_answer_is_the_callers_to_change(opened):
    engine, source = opened
    feeds = {"images": sample(source)}
    answer = engine.run(feeds)["logits"]
    before = answer.copy()
    answer[...] = -1
    np.testing.assert_allclose(engine.run(feeds)["logits"], before, atol=1e-5)


def test_a_damaged_file_is_an_error_in_one_line(unopened, tmp_path):
    engine = unopened[0]()
    path = tmp_path / f"bad{engine.endings[0]}"
    path.write_bytes(b"garbage")
    with pytest.raises((EngineError, WeightsError)) as caught:
        type(engine)(path).open()
    assert "bad" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", registry.names(hidden=True))
def test_an_engine_that_cannot_run_here_is_refused_with_the_reason(name):
    availability = registry.examine(registry.get(name))
    if availability.ok:
        assert registry.resolve(name).name == name
        return
    with pytest.raises(EngineUnavailableError) as caught:
        registry.resolve(name)
    assert caught.value.message == f"engine {name} cannot run here: {availability.reason}"


def test_auto_takes_the_first_of_its_order_that_runs(monkeypatch):
    running = set(registry.AUTO_ORDER)
    monkeypatch.setattr(registry, "examine", lambda engine, to_build=False: Availability(engine.name in running))
    for fastest in registry.AUTO_ORDER:
        assert registry.resolve(registry.AUTO).name == fastest
        running.remove(fastest)
    with pytest.raises(EngineUnavailableError, match="no inference runtime is installed"):
        registry.resolve(registry.AUTO)


def test_an_unknown_engine_is_a_usage_error_that_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"engine 'tensorflow' is unknown; there are: auto, .*openvino"):
        registry.get("tensorflow")


@pytest.mark.parametrize(
    ("requested", "bf16", "runs", "said"),
    [
        ("fp32", False, "fp32", ""),
        ("fp32", True, "fp32", ""),
        ("bf16", True, "bf16", ""),
        ("fp16", True, "bf16", "building BF16"),
        ("fp16", False, "fp32", "building FP32 instead of FP16"),
        ("bf16", False, "fp32", "building FP32 instead of BF16"),
    ],
)
def test_a_precision_the_cpu_has_not_is_replaced_aloud(requested, bf16, runs, said):
    plan = choose_precision(requested, bf16=bf16)
    assert plan.precision == runs
    assert said in plan.note
    assert bool(plan.note) == (requested != runs)


def test_onnxruntime_on_the_cpu_says_that_it_stays_in_fp32():
    plan = registry.get("onnxruntime").plan("fp16")
    assert plan.precision == "fp32"
    assert "FP16" in plan.note
    assert "FP32 instead" in plan.note


def test_a_foreign_graph_goes_to_an_engine_that_opens_graphs(monkeypatch):
    """Where TensorRT is the fastest it is not the one: it opens its own plans only."""
    monkeypatch.setattr(registry, "examine", lambda engine, to_build=False: Availability(True))
    assert registry.resolve(registry.AUTO).name == "tensorrt"
    assert registry.resolve(registry.AUTO, opens_onnx=True).name == "onnxruntime-cuda"
    with pytest.raises(UsageError, match="engine tensorrt opens no ONNX file as it is; those that do: onnxr"):
        registry.resolve("tensorrt", opens_onnx=True)


def test_auto_takes_an_engine_that_has_the_precision(monkeypatch):
    here = {"openvino", "onnxruntime"}
    buildable = {"tensorrt-rtx"}

    def examine(engine, to_build=False):
        return Availability(engine.name in here or (to_build and engine.name in buildable))

    monkeypatch.setattr(registry, "examine", examine)
    assert registry.resolve(registry.AUTO, to_build=True, precision="int8").name == "openvino"
    assert registry.resolve(registry.AUTO, to_build=True, precision="fp8").name == "tensorrt-rtx"
    for to_build in (False, True):
        buildable.clear()
        with pytest.raises(
            EngineUnavailableError, match=r"no engine here has FP8; engines that do: tensorrt, tensorrt-rtx"
        ):
            registry.resolve(registry.AUTO, to_build=to_build, precision="fp8")
