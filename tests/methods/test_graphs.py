"""What each method's graph holds, and that runtimes keep the tokens that PyTorch keeps.

Of each export only the slimmed model is made here: what is beside it is other tests' matter, and takes two traces more.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.calibration import policy
from lifedeploy.engines.base import BuildOptions
from lifedeploy.engines.tensorrt import fusion
from lifedeploy.engines.tensorrt.builder import build_plan
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.exporters import forms
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.kept import kept_name
from lifedeploy.model import checkpoint
from lifedeploy.model.weights import ModelRequest, load
from lifedeploy.spec import GROUPS_NAME, SCORES_NAME
from lifedeploy.targets.formed import check_graph
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import named
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.calibrate import CalibrateRequest, calibrate
from lifedeploy.workflows.export import ExportRequest, export
from tests.conftest import TINY, TINY_SIZE
from tests.methods.cases import asked
from tests.methods.operators import CASES, DENSE, DEPTH, FURTHER, RANKING, SORTS, TOPK
from tests.once import made_once, shared_folder
from tests.workflows.test_evaluate import make_images


@pytest.fixture(scope="session")
def exported_by(tmp_path_factory: pytest.TempPathFactory, weights_file: Path) -> Callable[[str], Path]:
    """An export of the tiny model by a case, which has passed the gate in ONNX Runtime. Read only: copy it."""
    shared = shared_folder(tmp_path_factory)

    def exported_by(case: str) -> Path:
        method, options = CASES[case]
        model = ModelRequest(
            backbone=TINY,
            **asked(case),
            weights=str(weights_file),
            image_size=TINY_SIZE,
            method=method,
            options=options,
        )

        def make(folder: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(methods, "variants", lambda method: (method,))
                export(ExportRequest(model, GraphOptions(), output=folder / "made"), Workspace(folder))

        return made_once(shared / f"by-{case}", make) / "made"

    return exported_by


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    """Every method, one after the other."""
    return request.param


@pytest.fixture
def own(exported_by: Callable[[str], Path], case: str) -> Artifact:
    """The slimmed model of the case's export."""
    return Artifact.read(exported_by(case) / "model.json")


def test_its_graph_holds_these_operators_and_no_others(own, case):
    assert own.manifest.graph.operators == dict(Counter(DENSE) + Counter(FURTHER[case]))
    assert own.manifest.graph.operators.get("TopK", 0) == TOPK[case]
    assert own.manifest.graph.form == ("order-once" if case in ("random", "avit") else "per-stage")


def test_it_passed_the_gate_with_every_token_kept_that_pytorch_keeps(own, case):
    manifest = own.manifest
    overlap = None if case == "avit" else 1.0  # it keeps all
    assert manifest.parity.passed and (manifest.parity.overlap, manifest.parity.top1) == (overlap, 1.0)
    schedule = manifest.spec.schedule
    named_after = schedule.drop_layers[:1] if case == "random" else schedule.without_last_drop().drop_layers
    assert manifest.graph.kept == named_after
    graph = ir.load(own.path)
    shapes = {value.name: value.shape[1] for node in graph.graph for value in node.outputs if "kept" in value.name}
    assert shapes == {kept_name(layer): schedule.after(layer) for layer in named_after}
    assert [output.name for output in manifest.outputs] == ["logits"]
    assert (manifest.predicts_lives, manifest.graph.groups) == (case == "avit", case == "tome")
    # What it would have to learn, and has not: predictors and interpreters are as they start.
    assert manifest.spec.provenance.predictor == ("identity" if case in ("dynamicvit", "ia-red2") else "none")


def test_openvino_keeps_after_every_drop_what_pytorch_keeps(exported_by, case):
    folder = exported_by(case)
    report = build(BuildRequest(model=folder, engine="openvino"), Workspace(folder.parent))
    (manifest,) = report.manifests.values()
    assert manifest.parity.passed and manifest.parity.overlap == (None if case == "avit" else 1.0)
    images = np.random.default_rng(0).standard_normal((3, 3, *TINY_SIZE)).astype(np.float32)
    found, wanted = (kept_by(path, images) for path in (report.engine.folder, folder / "weights.safetensors"))
    assert list(wanted) == list(manifest.spec.schedule.drop_layers)
    # A graph whose last block is of prefix tokens alone does not choose there.
    assert list(found) == list(manifest.spec.schedule.without_last_drop().drop_layers)
    assert all(np.array_equal(found[layer], wanted[layer]) for layer in found)


@pytest.mark.parametrize(("case", "name"), [("tome", GROUPS_NAME), ("avit", SCORES_NAME)], indirect=["case"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_groups_and_lives_are_those_of_pytorch_in_every_runtime(exported_by, case, name, engine):
    folder = exported_by(case)
    report = build(BuildRequest(model=folder, engine="openvino"), Workspace(folder.parent))
    path = report.engine.folder if engine == "openvino" else folder / "model.onnx"
    images = np.random.default_rng(0).standard_normal((3, 3, *TINY_SIZE)).astype(np.float32)
    with Session(named(path), "all") as session:
        answer = session.tensors(images)[name]
    model, _ = checkpoint.load(folder / "weights.safetensors")
    with torch.inference_mode():
        told = model.with_prefix_block()(torch.from_numpy(images))
    wanted = told.groups if name == GROUPS_NAME else told.scores
    assert answer.shape == (3, 16) and np.array_equal(answer, wanted.numpy())
    if case == "tome":  # ten of sixteen patches are in another's token when the last block begins
        assert [len(set(row)) for row in answer.tolist()] == [6, 6, 6]
    else:
        assert len(np.unique(answer)) > 1 and answer.min() >= 1 and answer.max() <= DEPTH


def kept_by(path: Path, images: np.ndarray) -> dict[int, np.ndarray]:
    """What a model says that it keeps after each drop."""
    target = named(path)
    with Session(target, "drops") as session:
        tensors = session.tensors(images)
    return {layer: target.kept.after(layer, tensors) for layer in target.kept.counts}


def test_a_checkpoint_of_it_is_itself(exported_by, case):
    """Its options, its counts and what it has learned; the random order is made again from its draw."""
    model, spec = checkpoint.load(exported_by(case) / "weights.safetensors")
    method, options = CASES[case]
    assert (spec.method, spec.options) == (method, methods.get(method).plain_options(options))
    assert (model.schedule, model.reducer.sorts) == (spec.schedule, SORTS[case])


def test_in_half_precision_its_ranking_alone_stays_fp32(own, case, tmp_path):
    half = tmp_path / "half.onnx"
    report = forms.prepare(own.path, TensorRT.form("fp16", BuildOptions()), half)
    prefix_block = case != "evo-vit"  # whose single query stays products
    assert report.attentions == DEPTH - prefix_block
    (ranking,) = report.islands.values()
    assert set(ranking) == RANKING[case]
    products = [node for node in ir.load(half).graph if node.op_type in ("MatMul", "Attention")]
    of_blocks = [node for node in products if node.name.startswith("blocks.")]
    # qkv, attention, proj, fc1, fc2; of a last block of prefix tokens alone q and kv, and attention is two products.
    assert len(of_blocks) == DEPTH * 5 + 2 * prefix_block
    assert {node.outputs[0].dtype for node in of_blocks} == {ir.DataType.FLOAT16}
    evidence, reach = check_graph(half, own, "fp16", "fp16")
    evidence.require("the emulated graph")
    assert evidence.max_rel > 0 and not reach.overflows


# Products of three drops: the CLS row with the keys, and a weighted sum; the four layers of a predictor; patches with
# what is made of the policy token. The CLS row of three layers. In five layers sources with targets, and a weighted
# sum. One weighted sum, of all layers.
@pytest.mark.parametrize(
    ("case", "count"),
    [("evit", 6), ("dynamicvit", 12), ("ia-red2", 3), ("evo-vit", 3), ("tome", 10), ("avit", 1), ("avit-ranked", 1)],
    indirect=["case"],
)
def test_its_ranking_is_never_quantised(own, case, count, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(own.folder, tmp_path / "copy"))
    monkeypatch.chdir(tmp_path)
    data = make_images(tmp_path / "data", count=3)
    request = CalibrateRequest(model=folder, data=str(data), images=4, check_images=2, cache=tmp_path / "cache")
    report = calibrate(request, Workspace(tmp_path))
    overlap = report.members[CASES[case][0]].overlap
    assert overlap is None if case == "avit" else overlap > 0.5
    quantised = Artifact.read(folder / "int8" / "model.json")
    ranking = [product for product in policy.products_in(quantised.path) if product.part == "ranking"]
    assert len(ranking) == count
    assert not {product.name for product in ranking} & set(quantised.manifest.quantized_products)
    places = {name.rpartition("/")[0] for name in quantised.manifest.quantized_products}
    first = ("attn.qkv",), ("attn.q", "attn.kv")
    assert places == {
        f"blocks.{layer}.{part}"
        for layer in range(DEPTH)
        for part in (*first[layer == DEPTH - 1 and case != "evo-vit"], "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    makers = [value.producer() for product in ranking for value in product.node.inputs]
    assert not [maker for maker in makers if maker is not None and maker.op_type == "DequantizeLinear"]


@pytest.mark.parametrize(
    "case",
    ["evit", "topk", "dynamicvit", "random", "ia-red2", "avit-ranked", "avit", "evo-vit", "tome"],
    indirect=True,
)
def test_of_a_real_backbone_every_attention_is_fused(rtx, case, tmp_path):
    """At the size of DeiT-T; a fixed batch, which takes the builder half the time of a dynamic one."""
    method, options = CASES[case]
    request = ModelRequest(backbone="deit_t", weights="random", method=method, options=options, **asked(case))
    loaded = load(request, Workspace(tmp_path), ordering=methods.get(method).orderings[0])
    model = loaded.model if methods.get(method).last_block == "full" else loaded.model.with_prefix_block()
    traced = exporter.trace(model, loaded.spec, GraphOptions(batch_size=8))
    exporter.save(traced, tmp_path / "graph.onnx", metadata={})
    forms.prepare(tmp_path / "graph.onnx", TensorRT.form("fp16", BuildOptions()), tmp_path / "half.onnx")
    found = fusion.of_plan(build_plan(rtx, tmp_path / "half.onnx", BuildOptions()).data).record
    sorts = 22 if case == "tome" else SORTS[case]  # in each of 11 layers one of all sources, and one back into order
    assert (found.attention, found.topk, found.precision) == (12, sorts, "fp16")
    assert loaded.model.reducer.sorts == SORTS[case]
