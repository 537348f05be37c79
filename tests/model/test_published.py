"""Files of weights that the authors of a method published: whose they are is told, and what is in them is read."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.errors import UsageError, WeightsError
from lifedeploy.methods import Published
from lifedeploy.model import backbones, checkpoint, weights
from lifedeploy.model.blocks import adapted
from lifedeploy.model.weights import ModelRequest
from tests.conftest import TINY, TINY_SIZE
from tests.model.conftest import images_for
from tests.model.test_checkpoint import Execute, small_model
from tests.plugins import OTHER

WIDTH, CLASSES = 64, 3
FORMS = ("model", "model, ema", "module.", "plain", "safetensors")


class Predictor(nn.Module):
    """As in the authors' code, with their names, where nothing was dropped before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            *(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU()),
            *(nn.Linear(width // 4, 2), nn.LogSoftmax(dim=-1)),
        )

    def forward(self, x: Tensor, policy: Tensor) -> Tensor:
        x = self.in_conv(x)
        half = x.shape[2] // 2
        whole = (x[:, :, half:] * policy).sum(dim=1, keepdim=True) / policy.sum(dim=1, keepdim=True)
        return self.out_conv(torch.cat([x[:, :, :half], whole.expand(-1, x.shape[1], -1)], dim=-1))


def backbone() -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(7)
        vit = backbones.create(TINY, image_size=TINY_SIZE, num_classes=CLASSES)
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return vit.eval()


def predictors(number: int = 3, width: int = WIDTH) -> nn.ModuleList:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(8)
        made = nn.ModuleList(Predictor(width) for _ in range(number))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def dynamicvit(number: int = 3, width: int = WIDTH) -> dict[str, Tensor]:
    own = {f"score_predictor.{name}": tensor for name, tensor in predictors(number, width).state_dict().items()}
    return backbone().state_dict() | own


def of_evit(**changes: Any) -> argparse.Namespace:
    """What EViT's script has of its own, and of DeiT's, which it was made of."""
    usual = {"model": "deit_small_patch16_shrink_base", "input_size": TINY_SIZE[0], "lr": 5e-4, "opt_betas": None}
    told = {"base_keep_rate": 0.7, "drop_loc": "(3, 6, 9)", "fuse_token": True, "shrink_epochs": 0}
    return argparse.Namespace(**(usual | told | changes))


def of_dynamicvit(**changes: Any) -> argparse.Namespace:
    """The model was chosen by ``arch``; ``model`` stayed at the name of another one."""
    usual = {"model": "deit_base_patch16_224", "arch": "deit_small", "input_size": TINY_SIZE[0], "base_rate": 0.7}
    return argparse.Namespace(**(usual | {"ratiow": 2.0} | changes))


def write(path: Path, state: dict[str, Tensor], form: str = "model", **beside: Any) -> Path:
    match form:
        case "model":
            torch.save({"model": state, **beside}, path)
        case "model, ema":  # DeiT's script keeps an average as well, and everybody means that
            other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
            torch.save({"model": other, "model_ema": state, "optimizer": {"state": {}}, "epoch": 299, **beside}, path)
        case "module.":
            torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}, **beside}, path)
        case "plain":
            torch.save(state, path)
        case _:
            save_file(state, path)
    return path


def load(path: Path, method: str, **changes: Any) -> weights.LoadedModel:
    usual = {"backbone": TINY, "weights": str(path), "image_size": TINY_SIZE, "method": method}
    return weights.load(ModelRequest(**(usual | changes)), Workspace(path.parent / "none"))


def refused(path: Path, method: str, **changes: Any) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        load(path, method, **changes)
    assert error.value.message.isprintable() and len(error.value.message) < 400
    return error.value


def path_for(tmp_path: Path, form: str) -> Path:
    return tmp_path / ("theirs.safetensors" if form == "safetensors" else "theirs.pth")


# --- DynamicViT -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_predictors_are_read_under_the_authors_names(tmp_path, form):
    path = write(path_for(tmp_path, form), dynamicvit(), form)
    loaded = load(path, "dynamicvit")
    for name, tensor in dynamicvit().items():
        ours = name if name.startswith("score_predictor.") else ""
        found = loaded.model.reducer.state_dict()[ours] if ours else loaded.model.backbone.state_dict()[name]
        assert torch.equal(found, tensor), name
    assert sum(name.startswith("score_predictor.") for name in dynamicvit()) == len(loaded.model.reducer.state_dict())
    where = {"model": ", model", "module.": ", model", "model, ema": ", model_ema"}.get(form, "")
    assert loaded.notes == (f"{path.name}: DynamicViT checkpoint{where}",)
    provenance = loaded.spec.provenance
    assert (provenance.weights, provenance.predictor, provenance.source) == ("file", "trained", path.name)


@torch.no_grad()
def test_what_is_computed_with_them_is_what_the_authors_compute(tmp_path):
    """Their evaluation, block by block, at 16 patches and a base rate of 0.7."""
    loaded = load(write(tmp_path / "theirs.pth", dynamicvit()), "dynamicvit", keep_rate=0.7)
    assert (loaded.spec.schedule.drop_layers, loaded.spec.schedule.counts) == ((2, 3, 4), (11, 7, 5))
    vit, scorers = backbone(), predictors()
    images = images_for(vit, 4)
    x = adapted(vit).embed(images).x
    kept = torch.arange(16).expand(len(images), -1)
    for index, block in enumerate(vit.blocks):
        if index in (2, 3, 4):
            at = index - 2
            scores = scorers[at](x[:, 1:], torch.ones(*x[:, 1:].shape[:2], 1))[:, :, 0]
            keep = scores.argsort(dim=1, descending=True)[:, : int(16 * 0.7 ** (at + 1))]
            kept = kept.gather(1, keep)
            x = torch.stack(
                [row[torch.cat((torch.zeros(1, dtype=int), k + 1))] for row, k in zip(x, keep, strict=True)]
            )
            found = loaded.model(images).kept[index]
            assert torch.equal(found, kept), index
        x = block(x)
    expected = vit.head(vit.norm(x)[:, 0])
    assert torch.allclose(loaded.model(images).logits, expected, atol=1e-5)
    assert expected.std() > 0.1
    untrained = load(write(tmp_path / "plain.pth", backbone().state_dict()), "dynamicvit", keep_rate=0.7)
    assert not torch.allclose(untrained.model(images).logits, expected, atol=1e-2)


def test_what_the_authors_wrote_down_of_their_training_is_shown_and_its_architecture_not_believed(tmp_path):
    path = write(tmp_path / "theirs.pth", dynamicvit(), args=of_dynamicvit())
    loaded = load(path, "dynamicvit", image_size=None)
    assert loaded.notes == ("theirs.pth: DynamicViT checkpoint, model, trained with base_rate 0.7",)
    assert loaded.spec.image_size == TINY_SIZE


def test_weights_without_predictors_leave_them_at_their_start(tmp_path):
    loaded = load(write(tmp_path / "plain.pth", backbone().state_dict()), "dynamicvit")
    assert (loaded.spec.provenance.predictor, loaded.notes) == ("identity", ("plain.pth: model",))


@pytest.mark.parametrize(("number", "drops", "asked"), [(3, (2, 4), 2), (2, (2, 3, 4), 3), (3, (3,), 1)])
def test_a_file_of_another_number_of_predictors_is_refused(tmp_path, number, drops, asked):
    path = write(tmp_path / "theirs.pth", dynamicvit(number))
    error = refused(path, "dynamicvit", drop_layers=drops)
    assert error.message == (
        f"{path} does not fit this method: it has {number} of score_predictor, one for each drop layer, and {asked} "
        f"{'is' if asked == 1 else 'are'} asked for (after {', '.join(map(str, drops))})"
    )
    assert (error.hint, error.exit_code) == ("--drop-layers with those that it was trained with", 1)


def test_a_file_of_ours_of_another_number_of_predictors_is_refused_in_the_same_words(tmp_path):
    path = tmp_path / "ours.safetensors"
    loaded = load(write(tmp_path / "theirs.pth", dynamicvit()), "dynamicvit")
    checkpoint.save(path, loaded.model, loaded.spec)
    assert load(path, "dynamicvit").notes == ()
    assert load(path, "dynamicvit").spec.provenance.predictor == "trained"
    error = refused(path, "dynamicvit", drop_layers=(2, 4))
    assert "it has 3 of score_predictor, one for each drop layer, and 2 are asked for (after 2, 4)" in error.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: state.pop("score_predictor.1.out_conv.2.bias"),
            "does not fit this method: 1 of 30 tensors are missing, the first is score_predictor.1.out_conv.2.bias",
        ),
        (
            lambda state: state.update({"score_predictor.1.gate": torch.zeros(2)}),
            "does not fit this method: 1 tensors are not part of it, the first is score_predictor.1.gate",
        ),
        (
            lambda state: state.update({"score_predictor.2.in_conv.1.weight": torch.zeros(8, 8)}),
            "does not fit this method: score_predictor.2.in_conv.1.weight is (8, 8), expected (64, 64)",
        ),
        (
            lambda state: state.update({"score_predictor.0.in_conv.0.bias": torch.full((64,), torch.nan)}),
            "holds NaN or infinity in score_predictor.0.in_conv.0.bias",
        ),
        (
            lambda state: state.update({"score_predictor.0.in_conv.0.bias": torch.zeros(64, dtype=torch.int8)}),
            "holds score_predictor.0.in_conv.0.bias as int8; expected floating point",
        ),
        (
            lambda state: state.update({"head.weight": torch.zeros(3, 8)}),
            "does not fit this backbone: head.weight is (3, 8), expected (3, 64)",
        ),
        (
            lambda state: (
                [state.pop(name) for name in dynamicvit() if name.startswith("score_predictor.")]
                and state.update({"score_predictor.x": torch.zeros(2)})
            ),
            "does not fit this method: none of its 1 tensors has a name of the method's, the first is "
            "score_predictor.x",
        ),
    ],
    ids=["missing", "left-over", "shape", "nan", "type", "backbone", "nothing of it"],
)
def test_predictors_that_do_not_fit_are_named_as_in_the_file(tmp_path, change, said):
    state = dynamicvit()
    change(state)
    path = write(tmp_path / "theirs.pth", state)
    assert refused(path, "dynamicvit").message.startswith(f"{path} {said}")


def test_what_does_not_fit_changes_no_model(tmp_path):
    model = load(write(tmp_path / "good.pth", dynamicvit()), "dynamicvit").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in dynamicvit().items()}
    state["score_predictor.2.out_conv.4.weight"] = torch.zeros(3, 16)
    path = write(tmp_path / "bad.pth", state)
    with pytest.raises(WeightsError, match=r"score_predictor\.2\.out_conv\.4\.weight is \(3, 16\), expected \(2, 16\)"):
        checkpoint.load_into(model, checkpoint.read(path).state, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- EViT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["model", "model, ema", "module."])
@pytest.mark.parametrize("as_dict", [False, True])
def test_evit_is_told_by_the_arguments_of_its_script(tmp_path, form, as_dict):
    given = of_evit(fuse_token=False)
    path = write(tmp_path / "theirs.pth", backbone().state_dict(), form, args=vars(given) if as_dict else given)
    loaded = load(path, "evit", image_size=None)
    key = "model_ema" if form == "model, ema" else "model"
    assert loaded.notes == (
        f"theirs.pth: EViT checkpoint, {key}, trained with base_keep_rate 0.7, drop_loc '(3, 6, 9)', fuse_token False",
    )
    assert loaded.spec.image_size == TINY_SIZE
    assert loaded.spec.provenance.predictor == "none"
    found = loaded.model.backbone.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in backbone().state_dict().items())


def test_without_its_arguments_it_is_a_plain_state_dict(tmp_path):
    assert load(write(tmp_path / "theirs.pth", backbone().state_dict()), "evit").notes == ("theirs.pth: model",)


def test_deits_own_training_is_nobody_elses(tmp_path):
    said = argparse.Namespace(model=TINY, input_size=TINY_SIZE[0], eval_crop_ratio=0.875)
    path = write(tmp_path / "deit.pth", backbone().state_dict(), args=said)
    assert load(path, "evit").notes == ("deit.pth: DeiT training checkpoint, model",)
    assert checkpoint.read(path).method == ""


def test_parameters_say_more_than_arguments(tmp_path):
    path = write(tmp_path / "theirs.pth", dynamicvit(), args=of_evit(base_rate=0.8))
    assert load(path, "dynamicvit").notes == ("theirs.pth: DynamicViT checkpoint, model, trained with base_rate 0.8",)
    path = write(tmp_path / "plain.pth", backbone().state_dict(), args=of_dynamicvit())
    assert checkpoint.read(path).method == ""


def test_what_somebody_wrote_into_his_arguments_is_shown_on_a_line(tmp_path):
    long = of_evit(drop_loc="(3,\n6)\x1b[2J" + "9" * 5000)
    (note,) = load(write(tmp_path / "theirs.pth", backbone().state_dict(), args=long), "evit").notes
    assert note.isprintable() and len(note) < 400
    assert r"\x1b" in note


# --- of another method than asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["evit", "topk", "life", "random", "dense"])
def test_a_file_with_another_methods_parameters_is_refused_and_both_are_named(tmp_path, method):
    path = write(tmp_path / "theirs.pth", dynamicvit())
    error = refused(path, method)
    assert error.message == (
        f"{path} is a checkpoint of dynamicvit, and {method} is asked for: its weights are of use to dynamicvit alone"
    )
    assert error.hint == "--method dynamicvit, or weights of a dense model"


@pytest.mark.parametrize("method", ["dynamicvit", "topk", "life"])
def test_a_file_of_evits_authors_is_named_too(tmp_path, method):
    path = write(tmp_path / "theirs.pth", backbone().state_dict(), args=of_evit())
    first, second = load(path, method).notes
    assert first.startswith("theirs.pth: EViT checkpoint, model, trained with base_keep_rate 0.7")
    assert second == f"theirs.pth is a checkpoint of evit, and {method} is asked for"


def test_a_checkpoint_of_ours_of_another_method_is_named(tmp_path):
    path = tmp_path / "ours.safetensors"
    model, spec = small_model()
    checkpoint.save(path, model, spec)
    assert load(path, "life").notes == ()
    assert load(path, "evit").notes == (
        "ours.safetensors is a checkpoint of life, and evit is asked for: its 3 tensors of life are left out "
        "(predictor.norm.bias)",
    )


def test_a_dense_checkpoint_of_ours_is_where_every_method_starts(tmp_path):
    path = tmp_path / "dense.safetensors"
    checkpoint.save(path, *small_model(method="dense", options={}))
    assert [load(path, method).notes for method in ("life", "evit", "dynamicvit")] == [(), (), ()]


def test_a_new_head_is_put_on_the_backbone_and_the_predictors_stay(tmp_path):
    path = write(tmp_path / "theirs.pth", dynamicvit())
    loaded = load(path, "dynamicvit", num_classes=7, new_head=True)
    assert loaded.new_head and loaded.model.backbone.head.weight.shape == (7, WIDTH)
    name = "score_predictor.2.out_conv.4.weight"
    assert torch.equal(loaded.model.reducer.state_dict()[name], dynamicvit()[name])


# --- methods of other packages ----------------------------------------------------------------------------------

WITH_GATES = replace(OTHER, published=Published(parameters=("gates.", "gain")))
UNUSABLE = replace(OTHER, name="else")


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The parameters of a method of another package; an installed one beside it cannot be used."""
    monkeypatch.setattr(methods, "plugins", lambda: {"else": ("else",), "other": ("other",)})

    def found(entry: str) -> methods.Method:
        if entry == "else":
            raise UsageError("method 'else' cannot be used")
        return WITH_GATES

    monkeypatch.setattr(methods, "_loaded", found)
    return {"gates.0.weight": torch.ones(2), "gain": torch.ones(1)}


def test_a_method_of_another_package_has_files_of_its_own(tmp_path, gates):
    path = write(tmp_path / "theirs.pth", backbone().state_dict() | gates)
    file = checkpoint.read(path)
    assert (file.method, file.layout) == ("other", "Somebody's method checkpoint, model")
    assert file.parameters.keys() == {"reducer.gates.0.weight", "reducer.gain"}
    assert refused(path, "life").message == (
        f"{path} is a checkpoint of other, and life is asked for: its weights are of use to other alone"
    )


def test_a_plain_file_is_read_beside_a_method_that_cannot_be_used(tmp_path, gates):
    assert load(write(tmp_path / "plain.pth", backbone().state_dict()), "life").notes == ("plain.pth: model",)


@pytest.mark.parametrize("words", [{"parameters": "score."}, {"parameters": ("",)}, {"arguments": (3,)}])
def test_what_tells_a_file_is_words(words):
    with pytest.raises(UsageError, match="of published files cannot be"):
        Published(**words)
    with pytest.raises(UsageError, match="what it says of published files is no Published"):
        replace(OTHER, published=words)


# --- nothing is run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["args", "base_rate", "parameter"])
def test_code_in_an_authors_file_is_not_run(tmp_path, where):
    ran = tmp_path / "ran"
    evil, state = Execute(ran), dynamicvit()
    match where:
        case "args":
            write(tmp_path / "evil.pth", state, args=evil)
        case "base_rate":
            write(tmp_path / "evil.pth", state, args=of_dynamicvit(base_rate=evil))
        case _:
            write(tmp_path / "evil.pth", state | {"score_predictor.0.in_conv.0.weight": evil})
    for method in ("dynamicvit", "evit"):  # before anybody asks whose it is
        assert "holds more than tensors and is not loaded" in refused(tmp_path / "evil.pth", method).message
    assert not ran.exists()
