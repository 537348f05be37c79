"""From an export and images to quantised graphs, engines of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.measure import Stop
from lifedeploy.calibration import collect as collecting
from lifedeploy.calibration import sensitivity
from lifedeploy.calibration.quantize import Recipe
from lifedeploy.calibration.report import GraphReport
from lifedeploy.engines import registry
from lifedeploy.engines.base import BuildJob
from lifedeploy.errors import ArtifactError, DataError, EngineError, ImageError, ParityError, UsageError
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.files import sha256
from lifedeploy.model.weights import ModelRequest
from lifedeploy.targets import select
from lifedeploy.targets.evidence import prove
from lifedeploy.targets.find import find
from lifedeploy.targets.output import _require_replaceable
from lifedeploy.targets.target import target_of
from lifedeploy.workflows.bench import BenchRequest, bench
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.calibrate import CalibrateRequest, calibrate, show_policy
from lifedeploy.workflows.evaluate import EvaluateRequest, evaluate
from lifedeploy.workflows.export import ExportRequest, export
from tests.calibration.conftest import make_loose
from tests.conftest import TINY, TINY_SIZE
from tests.workflows.test_evaluate import make_images

pytestmark = pytest.mark.usefixtures("traced_once", "undrawn")

LAYERS = 6 * 4 + 1  # of the tiny model: four linear products per block, and queries apart in the last one
METHODS = {"life": "model", "dense": "dense", "first-k": "first-k"}


@pytest.fixture
def undrawn(monkeypatch):
    """The picture is not what these tests look at, and takes as long as a calibration."""
    monkeypatch.setattr("lifedeploy.viz.calibration.plot_calibration", lambda members, path, *, precision: path.touch())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_images(tmp_path_factory.mktemp("labelled") / "data", count=8)


@pytest.fixture(scope="module")
def known(exported, images, tmp_path_factory) -> Path:
    """A workspace with a calibrated export. Read only: copy it (``calibrated``)."""
    root = tmp_path_factory.mktemp("calibrated") / "artifacts"
    shutil.copytree(exported, root)
    calibrate(request(images, cache=root.parent / "cache"), Workspace(root))
    return root


@pytest.fixture
def calibrated(known, tmp_path, monkeypatch) -> Path:
    """The export's folder, calibrated."""
    shutil.copytree(known, tmp_path / "artifacts")
    monkeypatch.chdir(tmp_path)
    return next((tmp_path / "artifacts").glob("*/model.json")).parent


def request(data: Path | str, **changes: object) -> CalibrateRequest:
    return replace(CalibrateRequest(data=str(data), images=12, check_images=6), **changes)


def test_all_three_graphs_are_quantised_and_say_so(calibrated, known):
    report = json.loads((calibrated / "int8" / "report.json").read_text())
    assert set(report["members"]) == set(METHODS)
    for method, stem in METHODS.items():
        artifact = Artifact.read(calibrated / "int8" / f"{stem}.json")
        artifact.check()
        manifest = artifact.manifest
        assert (manifest.kind, artifact.method, artifact.precision) == ("calibrated", method, "int8")
        assert artifact.name == calibrated.name
        facts = manifest.quantization.to_dict()
        assert facts["source_sha256"] == Artifact.read(calibrated / f"{stem}.json").manifest.sha256
        assert facts["data"]["images"] == 12
        assert len(facts["data"]["sha256"]) == 64
        assert len(facts["layers"]) == LAYERS
        assert {"name", "sqnr_db", "tensors"} == set(facts["layers"][0])
        assert {"scale", "sqnr_db", "saturated"} <= set(facts["layers"][0]["tensors"][0])
        assert artifact.path.stat().st_size < 0.6 * (calibrated / f"{stem}.onnx").stat().st_size
        member = report["members"][method]
        assert [layer["sqnr_db"] for layer in member["layers"]] == sorted(
            layer["sqnr_db"] for layer in member["layers"]
        )
        assert {"file", "changed", "overlap", "top1"} <= set(member["per_image"][0])
        assert member["accuracy_float"] is not None  # the folders are the model's classes
    assert (calibrated / "int8" / "report.png").stat().st_size > 10_000
    assert Workspace(known).latest_export().name == calibrated.name  # it is no export, and no engine, of its own


def test_what_did_not_change_is_not_done_again(calibrated, images, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(collecting, "collect", lambda *a, **k: pytest.fail("statistics were known"))
    again = calibrate(request(images, cache=cache), Workspace(calibrated.parent))
    assert again.reused
    assert again.members["life"].per_image
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    other = calibrate(request(images, cache=cache, recipe=Recipe(ranges="percentile")), Workspace(calibrated.parent))
    assert not other.reused
    third = calibrate(request(images, cache=cache, force=True), Workspace(calibrated.parent))
    assert (third.reused, third.cached) == (False, True)
    assert not calibrate(request(images, cache=cache, seed=1), Workspace(calibrated.parent)).reused


def _drop_reference(calibrated, data):
    (calibrated / "int8/reference.npz").unlink()


def _change_check_image(calibrated, data):
    report = json.loads((calibrated / "int8/report.json").read_text())
    Image.new("RGB", (40, 40), "red").save(data / report["members"]["life"]["per_image"][0]["file"])


def _exchange_classes(calibrated, data):
    first, second, *_ = sorted(data.iterdir())
    first.rename(data / "between")
    second.rename(first)
    (data / "between").rename(second)


@pytest.mark.parametrize("spoiled", [_drop_reference, _change_check_image, _exchange_classes])
def test_what_the_verdict_rests_on_is_looked_at_again(calibrated, images, tmp_path, spoiled):
    data = shutil.copytree(images, tmp_path / "data")
    fresh = request(data, cache=tmp_path / "cache")
    calibrate(fresh, Workspace(calibrated.parent))
    assert calibrate(fresh, Workspace(calibrated.parent)).reused
    spoiled(calibrated, data)
    assert not calibrate(fresh, Workspace(calibrated.parent)).reused
    assert calibrate(fresh, Workspace(calibrated.parent)).reused


def test_a_cache_that_cannot_be_written_costs_no_calibration(calibrated, images, tmp_path):
    (tmp_path / "file").write_text("")
    report = calibrate(request(images, cache=tmp_path / "file", force=True), Workspace(calibrated.parent))
    assert not report.cached


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "fake"])
def test_engines_are_built_of_it(calibrated, engine):
    report = build(BuildRequest(engine=engine, precision="int8"), Workspace(calibrated.parent))
    assert report.engine.folder.name == f"{engine}-int8"
    for method, manifest in report.manifests.items():
        assert manifest.engine.precision == "int8"
        assert manifest.parity.passed
        assert manifest.quantization.precision == "int8"
        assert manifest.engine.source == f"../int8/{METHODS[method]}.onnx"
        assert (report.engine.folder / manifest.reference).is_file()
        if engine == "onnxruntime":
            assert sum(manifest.engine.details.integer_products.values()) == LAYERS
    assert build(BuildRequest(engine=engine, precision="int8"), Workspace(calibrated.parent)).reused
    # The folder of the calibrated graphs means the same without saying so.
    named = build(BuildRequest(model=calibrated / "int8", engine=engine), Workspace(calibrated.parent))
    assert named.reused
    assert named.record.precision == "int8"


def test_bench_and_evaluate_show_the_precision(calibrated, images):
    workspace = Workspace(calibrated.parent)
    quick = BenchRequest(
        engines=("fake:fp32", "onnxruntime:int8"),
        batches=(2,),
        stop=Stop(budget_s=5, min_rounds=3, half_width=10),
        memory=False,
    )
    rows = bench(quick, workspace).rows
    assert {row.subject.precision for row in rows if row.subject.engine == "onnxruntime"} == {"int8"}
    models = (calibrated / "int8", calibrated / "onnxruntime-int8", calibrated, calibrated / "int8/dense.onnx")
    report = evaluate(EvaluateRequest(models=models, data=str(images), batch=4), workspace)
    assert [row.precision for row in report.rows] == ["int8", "int8", "fp32", "int8"]
    pairs = {(pair.first, pair.second): pair for pair in report.pairs}
    assert pairs[1, 3].overlap > 0.9
    assert pairs[1, 3].agreement > 0.9


def test_bench_of_a_calibrated_folder_is_of_its_precision(calibrated):
    workspace = Workspace(calibrated.parent)
    build(BuildRequest(engine="fake"), workspace)  # the newest is FP32
    (wanted,) = select.for_bench(calibrated / "int8", (), workspace, trust=False).engines
    assert (wanted.engine, wanted.precision, wanted.built) == ("auto", "int8", None)  # the build may find that it is
    quick = BenchRequest(
        model=calibrated / "int8",
        engines=("fake", "fake:fp32"),
        batches=(2,),
        stop=Stop(budget_s=0.01, min_rounds=3),
        memory=False,
    )
    assert [row.subject.precision for row in bench(quick, workspace).rows] == ["int8"] * 3 + ["fp32"] * 3


def test_engines_of_an_earlier_calibration_are_not_measured_and_not_proven(calibrated, images):
    workspace = Workspace(calibrated.parent)
    built = build(BuildRequest(engine="onnxruntime", precision="int8"), workspace).engine
    calibrate(request(images, recipe=Recipe(ranges="percentile"), cache=calibrated / "../cache"), workspace)
    with pytest.raises(ArtifactError, match=r"was built of another \.\./int8/model\.onnx than is there now") as caught:
        bench(BenchRequest(engines=("onnxruntime",), batches=(2,)), workspace)
    assert caught.value.hint == f"lifedeploy build-engine {calibrated} --engine onnxruntime --int8"
    pending = replace(built.manifest, parity=None, engine=replace(built.manifest.engine, pending="no GPU"))
    pending.write(built.manifest_path)
    with pytest.raises(ArtifactError, match="was built of another"):
        prove(Artifact.read(built.manifest_path))
    assert not build(BuildRequest(engine="onnxruntime", precision="int8"), workspace).reused


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_say_how_many_products_run_in_8_bits(calibrated, images, engine, lifedeploy):
    """The MLP is in floating point, and that is meant; of what is quantised, nothing may be missing."""
    workspace = Workspace(calibrated.parent)

    def counted(recipe):
        calibrate(request(images, recipe=recipe), workspace)
        record = build(BuildRequest(engine=engine, precision="int8"), workspace).record
        return record.details.eight_bits

    assert counted(Recipe()).to_dict() == {"products": LAYERS, "of": LAYERS}
    half = Recipe(keep=("*fc1*", "*fc2*"))
    left = LAYERS - 2 * 6  # both layers of every MLP
    assert counted(half).to_dict() == {"products": left, "of": left}
    assert f"{left}/{left}" in lifedeploy("build-engine", "--engine", engine, "--int8").out
    found = counted(Recipe(parts=("linear", "embedding")))
    assert found.of == LAYERS + 1
    assert found.products == LAYERS + (engine == "openvino")  # ONNX Runtime: convolutions only with their output


def test_a_quantised_graph_of_another_tool_is_opened_as_one(calibrated, tmp_path):
    shutil.copy(calibrated / "int8/model.onnx", tmp_path / "foreign.onnx")
    assert target_of(find(tmp_path / "foreign.onnx")).precision == "int8"
    shutil.copy(calibrated / "model.onnx", tmp_path / "foreign.onnx")
    assert target_of(find(tmp_path / "foreign.onnx")).precision == "fp32"


def test_an_export_that_is_not_calibrated_says_what_to_do(workspace):
    with pytest.raises(ArtifactError, match=r"model\.onnx is not calibrated for INT8") as caught:
        build(BuildRequest(engine="onnxruntime", precision="int8"), Workspace(workspace))
    assert caught.value.hint.startswith("lifedeploy calibrate ")
    assert caught.value.hint.endswith("--int8 --data DIR")


def test_a_calibration_of_another_export_is_not_used(calibrated):
    path = calibrated / "int8" / "model.json"
    manifest = Artifact.read(path).manifest
    replace(manifest, quantization=manifest.quantization.but(source_sha256="0" * 64)).write(path)
    with pytest.raises(ArtifactError, match=r"was calibrated for another model\.onnx than is there now"):
        build(BuildRequest(engine="onnxruntime", precision="int8"), Workspace(calibrated.parent))


@pytest.mark.parametrize(
    ("engine", "precision", "said"),
    [
        ("torch", "int8", "engine torch has no INT8: it takes no quantised graphs"),
        ("onnxruntime", "fp8", "engine onnxruntime has no FP8: it computes in int8"),
    ],
)
def test_engines_without_8_bits_refuse_instead_of_doing_something_else(calibrated, engine, precision, said):
    with pytest.raises(UsageError, match=said):
        build(BuildRequest(engine=engine, precision=precision), Workspace(calibrated.parent))
    with pytest.raises(UsageError, match=said):  # nor is it taken for the engine in another precision
        bench(BenchRequest(engines=(f"{engine}:fp32", f"{engine}:{precision}")), Workspace(calibrated.parent))


def test_an_engine_that_computes_something_else_is_not_kept(calibrated):
    """Scales that are doubled: the graph is valid, runs in 8 bits, and is another one."""
    path = calibrated / "int8" / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight_t_scale"):
            doubled = onnx.numpy_helper.to_array(tensor) * 2
            tensor.CopyFrom(onnx.numpy_helper.from_array(doubled, tensor.name))
    onnx.save(model, path)
    manifest = Artifact.read(path.with_suffix(".json")).manifest
    replace(manifest, sha256=sha256(path)).write(path.with_suffix(".json"))
    with pytest.raises(ParityError, match="model on onnxruntime int8 does not compute what"):
        build(BuildRequest(engine="onnxruntime", precision="int8"), Workspace(calibrated.parent))
    assert not (calibrated / "onnxruntime-int8").exists()


def test_a_float_graph_is_no_integer_engine(calibrated, tmp_path):
    """Without Q and DQ in the graph nothing is computed in integers, and that is found out."""
    source = Artifact.read(calibrated / "model.json")
    with pytest.raises(EngineError, match=r"computes none of the products of model\.onnx in integers"):
        registry.get("onnxruntime").build(
            BuildJob(source=source, graph=source.path, folder=tmp_path, stem="model", precision="int8")
        )


def _products(folder: Path) -> list[str]:
    layers = Artifact.read(folder / "int8/model.json").manifest.quantization.layers
    return [layer.name for layer in layers]


def test_a_max_drop_is_kept_or_nothing_is_written(calibrated, images, monkeypatch):
    scan = dict.fromkeys(_products(calibrated), 1.0)
    monkeypatch.setattr(sensitivity, "scan", lambda *_: scan)  # which is slow, and tested where it is
    monkeypatch.setattr(GraphReport, "drop", property(lambda self: 0.0 if len(self.restored) >= 2 else 9.0))
    report = calibrate(request(images, max_drop=0.5, force=True), Workspace(calibrated.parent))
    assert len(report.members["life"].restored) == 2
    assert report.members["first-k"].restored == ()
    left = [layer for layer in report.members["life"].layers if not layer.quantized]
    assert {layer.name for layer in left} == set(report.members["life"].restored)
    before = (calibrated / "int8/model.onnx").read_bytes()
    monkeypatch.setattr(GraphReport, "drop", property(lambda self: 9.0))
    with pytest.raises(ParityError, match=r"drops by 9\.00 points with 12 of 25 layers"):
        calibrate(request(images, max_drop=0.5, force=True), Workspace(calibrated.parent))
    assert (calibrated / "int8/model.onnx").read_bytes() == before
    assert not list(calibrated.glob(".*"))


def test_images_without_classes_and_too_few_of_them(calibrated, tmp_path):
    loose = make_loose(tmp_path / "loose", 3)
    report = calibrate(request(loose), Workspace(calibrated.parent))
    assert report.members["life"].accuracy is None
    assert any("12 images were asked for, and there are 3" in warning for warning in report.warnings)
    assert any("no images left to check on" in warning for warning in report.warnings)
    more = calibrate(request(make_loose(tmp_path / "more", 15), max_drop=20), Workspace(calibrated.parent))
    assert "3 images are left to check on, of 6 asked for" in more.warnings
    assert "--max-drop 20 allows no image to be lost: one of 3 is 33.3" in more.warnings


def test_bad_images_leave_nothing_behind(workspace, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        calibrate(request(tmp_path / "empty"), Workspace(workspace))
    bad = make_loose(tmp_path / "bad", 4)
    (bad / "002.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(ImageError, match=r"002\.png is not an image that can be read"):
        calibrate(request(bad), Workspace(workspace))
    export = next(workspace.glob("*/model.json")).parent
    assert not (export / "int8").exists()
    assert not list(export.glob(".*"))


def test_an_export_may_be_written_again_over_its_calibration(calibrated):
    _require_replaceable(calibrated)
    (calibrated / "int8" / "model.json").unlink()
    with pytest.raises(UsageError, match="holds int8, which no export made"):
        _require_replaceable(calibrated)


def test_the_policy_is_shown_with_a_model_and_without(calibrated, tmp_path):
    rows = show_policy(CalibrateRequest(model=calibrated), Workspace(calibrated.parent))
    assert {row["part"]: row["count"] for row in rows}["linear"] == LAYERS
    rows = show_policy(CalibrateRequest(recipe=Recipe(precision="fp8")), Workspace(tmp_path / "none"))
    assert {row["part"]: row["precision"] for row in rows}["attention"] == "fp8"
    assert rows[0]["count"] is None


class TestCommandLine:
    def test_calibrate_build_and_policy(self, calibrated, images, lifedeploy):
        done = lifedeploy("calibrate", "--data", images, "--images", 12, "--check-images", 6, "--json", "c.json")
        assert done.code == 0
        assert "worst layers" in done.out
        assert "worst images" in done.out
        assert set(json.loads(Path("c.json").read_text())["members"]) == set(METHODS)
        done = lifedeploy("build-engine", "--engine", "onnxruntime", "--int8")
        assert done.code == 0
        assert "int8" in done.out
        done = lifedeploy("calibrate", "--show-policy", "--fp8")
        assert done.code == 0
        for part in ("linear", "attention", "embedding", "head", "ranking"):
            assert part in done.out
        done = lifedeploy("inspect", calibrated / "int8")
        assert "int8, minmax, weights per channel, smoothing 0.6" in done.out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "calibration needs images: --data DIR"),
            (("--data", "x", "--int8", "--fp8"), "--int8 and --fp8 exclude each other"),
            (("--data", "x", "--images", "0"), "0 images are not allowed: at least 1 is needed"),
            (("--data", "x", "--ranges", "kl"), "ranges as 'kl' are unknown; there are: minmax, percentile, entropy"),
            (("--data", "x", "--method", "kl"), "method 'kl' is unknown; there are: life"),
            (("--data", "x", "--parts", "norm"), "part 'norm' is unknown"),
            (("--data", "x", "--max-drop", "-1"), "a drop of -1 points is not allowed"),
            (("--data", "x", "--max-drop", "nan"), "a drop of nan points is not allowed"),
            (("--data", "x", "--smoothing", "nan"), "smoothing nan is not allowed"),
            (("--data", "x", "--seed", "-1"), "seed -1 is not allowed"),
            (("--data", "x", "--parts", ","), "no part to quantise was named"),
            (("--data", ""), "calibration needs images: --data DIR"),
            (("--data", "x", "--json", "."), ". cannot be written: it is a folder"),
            (("--data", "x", "--plot", "artifacts"), "artifacts cannot be written: it is a folder"),
            (("--data", "x", "--plot", "a.txt"), "a.txt is no plot file"),
        ],
    )
    def test_what_cannot_be_meant(self, workspace, lifedeploy, arguments, said):
        done = lifedeploy("calibrate", *arguments)
        assert done.code == 2
        assert said in done.lines[0]

    def test_a_calibrated_folder_is_calibrated_for_its_precision_again(self, calibrated, images, lifedeploy):
        few = ("--data", images, "--images", 4, "--check-images", 2)
        assert lifedeploy("calibrate", "--fp8", *few).code == 0
        before = (calibrated / "int8/model.onnx").read_bytes()
        assert "FP8" in lifedeploy("calibrate", calibrated / "fp8", "--smoothing", 0.5, *few).out
        assert (calibrated / "int8/model.onnx").read_bytes() == before

    def test_a_folder_that_is_not_there(self, workspace, lifedeploy):
        done = lifedeploy("calibrate", "--data", "nowhere")
        assert done.code == 1
        assert "nowhere is no folder" in done.lines[0]

    def test_a_remainder_is_for_quantised_graphs(self, calibrated, lifedeploy):
        done = lifedeploy("build-engine", "--engine", "onnxruntime", "--fp32", "--remainder", "bf16")
        assert done.code == 2
        assert "engine onnxruntime has no use for --remainder" in done.lines[0]


def test_scales_do_not_depend_on_the_batch(calibrated, images, tmp_path):
    found = []
    for batch in (3, 8):
        calibrate(request(images, batch=batch, force=True, cache=tmp_path / str(batch)), Workspace(calibrated.parent))
        facts = Artifact.read(calibrated / "int8/model.json").manifest.quantization.to_dict()
        layers = sorted(facts["layers"], key=lambda layer: layer["name"])
        found.append([tensor["scale"] for layer in layers for tensor in layer["tensors"]])
    np.testing.assert_allclose(found[0], found[1], rtol=0.01)


def test_a_graph_that_takes_pixels_in_batches_of_four(weights_file, images, tmp_path):
    workspace = Workspace(tmp_path / "artifacts")
    model = ModelRequest(backbone=TINY, keep_rate=0.7, weights=str(weights_file), image_size=TINY_SIZE)
    export(ExportRequest(model, GraphOptions(batch_size=4, with_preprocess=True)), workspace)
    report = calibrate(request(images, images=10), workspace)
    assert report.members["life"].overlap > 0.9
    assert len(report.members["life"].per_image) == 6  # two of which fill a batch of four up
    built = build(BuildRequest(engine="onnxruntime", precision="int8"), workspace)
    assert built.engine.manifest.parity.passed
