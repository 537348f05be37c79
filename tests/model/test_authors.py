"""Files whose backbone the authors call otherwise, that two methods take, or that are of use to one method alone: with
the names that Evo-ViT's and A-ViT's public code gives to things."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lifedeploy import methods
from lifedeploy.errors import UsageError
from lifedeploy.methods import Method, Published, Renamed
from lifedeploy.model import checkpoint
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec
from tests.conftest import TINY_SIZE
from tests.model.test_checkpoint import small_model
from tests.model.test_published import FORMS, backbone, dynamicvit, load, of_evit, path_for, refused, write

QKV = Renamed("blocks.*.attn.qkv", ("qks.*.qk", "vs.*.v"), rows=(2, 1))
PROJ = Renamed("blocks.*.attn.proj", ("projs.*",))
NORM = Renamed("blocks.*.norm1", ("norms.*",))
A_VIT = methods.get("avit").published
FEW = {"r": "2"}  # of 16 patches


def gate_of(spec: ModelSpec) -> dict[str, Any]:
    """Those of A-ViT's options that decide more than training."""
    return {name: spec.options[name] for name in ("gate_scale", "gate_center")}


def row(name: str, title: str, published: Published, options: type[Any] = methods.NoOptions) -> Method:
    return replace(
        methods.get("topk"),
        name=name,
        title=title,
        published=published,
        options=options,
        work=lambda schedule, options, cost: methods.Work.of(schedule),
    )


def evo_vit(*, heads: bool = True) -> dict[str, Tensor]:
    """The test's backbone under the authors' names: attention beside the blocks, its projection in two."""
    state: dict[str, Tensor] = {}
    for name, tensor in backbone().state_dict().items():
        words = name.split(".")
        match words:
            case ["blocks", layer, "attn", "qkv", leaf]:
                q, k, v = tensor.chunk(3)
                state[f"qks.{layer}.qk.{leaf}"], state[f"vs.{layer}.v.{leaf}"] = torch.cat((q, k)), v
            case ["blocks", layer, "attn", "proj", leaf]:
                state[f"projs.{layer}.{leaf}"] = tensor
            case ["blocks", layer, "norm1", leaf]:
                state[f"norms.{layer}.{leaf}"] = tensor
            case _:
                state[name] = tensor
    if heads:  # of the class token, for training
        state |= {f"head_cls.{leaf}": torch.randn_like(state[f"head.{leaf}"]) for leaf in ("weight", "bias")}
        state |= {f"norm_cls.{leaf}": torch.randn_like(state[f"norm.{leaf}"]) for leaf in ("weight", "bias")}
    return state


def of_avit(**changes: Any) -> argparse.Namespace:
    usual = {"model": "avit_tiny_patch16_224", "input_size": TINY_SIZE[0], "act_mode": 4, "pretrained": True}
    told = {"gate_scale": 10.0, "gate_center": 30.0, "ponder_token_scale": 0.0005, "distr_prior_alpha": 0.001}
    return argparse.Namespace(**(usual | told | changes))


SAID = "trained with gate_scale 10.0, gate_center 30.0, ponder_token_scale 0.0005, distr_prior_alpha 0.001"


# --- Evo-ViT: other names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_what_the_authors_split_is_joined_and_what_they_moved_is_put_back(tmp_path, form):
    path = write(path_for(tmp_path, form), evo_vit(), form)
    loaded = load(path, "evo-vit")
    tensors = loaded.model.backbone.state_dict()
    assert tensors.keys() == backbone().state_dict().keys()
    for name, tensor in backbone().state_dict().items():
        assert torch.equal(tensors[name], tensor), name
    where = {"model": ", model", "module.": ", model", "model, ema": ", model_ema"}.get(form, "")
    first = "head_cls.bias" if form == "safetensors" else "head_cls.weight"  # which sort by name
    assert loaded.notes == (
        f"{path.name}: Evo-ViT checkpoint{where}, without 4 tensors that inference does not use ({first})",
    )
    assert (loaded.spec.provenance.weights, loaded.spec.provenance.predictor) == ("file", "none")


def test_query_key_and_value_have_their_places(tmp_path):
    state = evo_vit()
    qkv = load(write(tmp_path / "theirs.pth", state), "evo-vit").model.backbone.blocks[1].attn.qkv
    for leaf, tensor in (("weight", qkv.weight), ("bias", qkv.bias)):
        q, k, v = tensor.chunk(3)
        assert torch.equal(torch.cat((q, k)), state[f"qks.1.qk.{leaf}"])
        assert torch.equal(v, state[f"vs.1.v.{leaf}"])


@torch.no_grad()
def test_attention_with_them_is_what_the_authors_compute(tmp_path):
    state, x = evo_vit(), torch.randn(2, 5, 64)
    attention = load(write(tmp_path / "theirs.pth", state), "evo-vit").model.backbone.blocks[2].attn.eval()
    heads = attention.num_heads

    def projected(name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    q, k = projected("qks.2.qk").reshape(2, 5, 2, heads, -1).permute(2, 0, 3, 1, 4)
    v = projected("vs.2.v").reshape(2, 5, heads, -1).transpose(1, 2)
    mixed = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v  # (B, heads, N, d)
    expected = F.linear(mixed.transpose(1, 2).flatten(2), state["projs.2.weight"], state["projs.2.bias"])
    assert torch.allclose(attention(x), expected, atol=1e-5)
    assert expected.std() > 0.1


def test_the_head_of_the_mean_is_the_head(tmp_path):
    state = evo_vit()
    model = load(write(tmp_path / "theirs.pth", state), "evo-vit").model
    assert torch.equal(model.backbone.head.weight, state["head.weight"])
    assert not torch.equal(model.backbone.head.weight, state["head_cls.weight"])


def test_a_file_that_its_authors_cut_for_inference_has_nothing_left_out(tmp_path):
    path = write(tmp_path / "theirs.pth", evo_vit(heads=False), args=argparse.Namespace(model="x", input_size=64))
    loaded = load(path, "evo-vit", image_size=None)
    assert loaded.notes == ("theirs.pth: Evo-ViT checkpoint, model",)
    assert loaded.spec.image_size == TINY_SIZE


def test_it_may_lie_in_an_attribute(tmp_path):
    state = {f"net.{name}": tensor for name, tensor in evo_vit(heads=False).items()}
    loaded = load(write(tmp_path / "theirs.pth", state), "evo-vit")
    assert loaded.notes == ("theirs.pth: Evo-ViT checkpoint, model, the ViT in net",)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("vs.3.v.weight", "qks.3.qk.weight and no vs.3.v.weight: blocks.3.attn.qkv.weight is made of both"),
        ("vs.0.v.bias", "qks.0.qk.bias and no vs.0.v.bias: blocks.0.attn.qkv.bias is made of both"),
        ("qks.2.qk.weight", "vs.2.v.weight and no qks.2.qk.weight: blocks.2.attn.qkv.weight is made of both"),
    ],
)
def test_a_part_that_is_missing_is_named(tmp_path, gone, said):
    state = evo_vit()
    del state[gone]
    path = write(tmp_path / "theirs.pth", state)
    for method in ("evo-vit", "life"):
        assert refused(path, method).message == f"{path} holds {said}"


def test_all_values_missing_are_named_too(tmp_path):
    path = write(tmp_path / "theirs.pth", {n: tensor for n, tensor in evo_vit().items() if not n.startswith("vs.")})
    assert "holds qks.0.qk.weight and no vs.0.v.weight" in refused(path, "evo-vit").message


@pytest.mark.parametrize(
    ("name", "tensor", "kind"),
    [
        ("vs.0.v.weight", torch.zeros(64, 32), "(64, 32) of float32"),
        ("vs.0.v.weight", torch.zeros(128, 64), "(128, 64) of float32"),
        ("vs.0.v.weight", torch.zeros(64, 64, dtype=torch.int8), "(64, 64) of int8"),
        ("vs.0.v.weight", torch.zeros(()), "() of float32"),
    ],
    ids=["width", "rows", "type", "number"],
)
def test_parts_that_do_not_go_together_are_named_with_their_shapes(tmp_path, name, tensor, kind):
    path = write(tmp_path / "theirs.pth", evo_vit() | {name: tensor})
    assert refused(path, "evo-vit").message == (
        f"{path} holds qks.0.qk.weight as (128, 64) of float32 and {name} as {kind}, which do not make "
        "blocks.0.attn.qkv.weight: expected 2 rows of it to 1"
    )


def test_as_many_rows_in_all_are_not_enough(tmp_path):
    """A cut at another place would put keys among values."""
    parts = {"qks.0.qk.weight": torch.zeros(64, 64), "vs.0.v.weight": torch.zeros(128, 64)}
    path = write(tmp_path / "theirs.pth", evo_vit() | parts)
    assert "(64, 64) of float32 and vs.0.v.weight as (128, 64) of float32, which do not make" in (
        refused(path, "evo-vit").message
    )


def test_a_module_under_both_names_is_refused(tmp_path):
    path = write(tmp_path / "theirs.pth", evo_vit() | {"blocks.1.norm1.weight": torch.ones(64)})
    assert refused(path, "evo-vit").message == (
        f"{path} holds norms.1.weight, and blocks.1.norm1.weight as well, which is made of it"
    )


def test_a_layer_that_is_not_there_at_all_is_missed_under_timms_name(tmp_path):
    state = {name: tensor for name, tensor in evo_vit().items() if not name.startswith(("qks.2.", "vs.2."))}
    path = write(tmp_path / "theirs.pth", state)
    assert "tensors are missing, the first is blocks.2.attn.qkv.weight" in refused(path, "evo-vit").message


def test_a_name_alone_makes_no_file_of_theirs(tmp_path):
    path = write(tmp_path / "plain.pth", backbone().state_dict() | {"norms.0.weight": torch.ones(64)})
    assert checkpoint.read(path).method == ""
    assert "1 tensors are not part of it, the first is norms.0.weight" in refused(path, "evo-vit").message


# --- A-ViT: told by arguments, taken by two ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["avit", "avit-ranked"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_two_methods_take_a_file(tmp_path, method, as_dict):
    given = of_avit()
    path = write(tmp_path / "theirs.pth", backbone().state_dict(), args=vars(given) if as_dict else given)
    loaded = load(path, method, image_size=None)
    assert loaded.notes == (f"theirs.pth: A-ViT checkpoint, model, {SAID}",)
    assert (loaded.spec.method, loaded.spec.image_size) == (method, TINY_SIZE)
    tensors = loaded.model.backbone.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in backbone().state_dict().items())


@pytest.mark.parametrize("method", ["avit", "avit-ranked"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ""),
        (
            {"gate_scale": 5.0, "gate_center": 75.0},
            "gate_scale 10.0, gate_center 30.0, and is used with gate_scale 5.0, gate_center 75.0",
        ),
        ({"gate_center": 75.0}, "gate_center 30.0, and is used with gate_center 75.0"),
        ({"gate_scale": 10.0}, ""),
    ],
)
def test_options_that_it_was_not_trained_with_are_said(tmp_path, method, options, said):
    path = write(tmp_path / "theirs.pth", backbone().state_dict(), args=of_avit())
    loaded = load(path, method, options=options)
    notes = loaded.notes
    # The file's, where nobody says others.
    assert gate_of(loaded.spec) == {"gate_scale": 10.0, "gate_center": 30.0} | options
    assert notes[1:] == ((f"theirs.pth was trained with {said}",) if said else ())


@pytest.mark.parametrize(
    ("value", "shown"),
    [("30", "'30'"), (None, "None"), ([30.0], "[30.0]"), (torch.ones(3), "tensor([1., 1., 1.])")],
    ids=["text", "none", "list", "tensor"],
)
def test_a_value_that_is_no_number_is_shown_as_it_stands(tmp_path, value, shown):
    path = write(tmp_path / "theirs.pth", backbone().state_dict(), args=of_avit(gate_center=value))
    first, second = load(path, "avit").notes
    assert f"gate_center {shown}" in first
    assert second == f"theirs.pth was trained with gate_center {shown}, and is used with the usual gate_center"


def test_whole_numbers_are_numbers(tmp_path):
    path = write(tmp_path / "theirs.pth", backbone().state_dict(), args=of_avit(gate_scale=10, gate_center=30))
    assert len(load(path, "avit").notes) == 1


def test_a_value_that_is_no_such_option_is_not_taken(tmp_path):
    path = write(tmp_path / "theirs.pth", backbone().state_dict(), args=of_avit(gate_center=5000.0))
    loaded = load(path, "avit")
    assert gate_of(loaded.spec) == {"gate_scale": 10.0, "gate_center": -1.0}
    assert loaded.notes[1] == "theirs.pth was trained with gate_center 5000.0, and is used with the usual gate_center"


def test_without_its_arguments_it_is_a_plain_state_dict(tmp_path):
    path = write(tmp_path / "tiny-10-30.pth", backbone().state_dict())
    assert load(path, "avit").notes == load(path, "tome", options=FEW).notes == ("tiny-10-30.pth: model",)


def test_a_checkpoint_of_ours_is_taken_by_both_with_the_options_it_was_trained_with(tmp_path):
    path = tmp_path / "ours.safetensors"
    checkpoint.save(path, *small_model(method="avit", options={"gate_scale": 5.0, "gate_center": 75.0}))
    ranked = load(path, "avit-ranked")
    assert (ranked.notes, gate_of(ranked.spec)) == ((), {"gate_scale": 5.0, "gate_center": 75.0})
    other = load(path, "avit-ranked", options={"gate_scale": 2.0})
    assert gate_of(other.spec) == {"gate_scale": 2.0, "gate_center": 75.0}


# --- of another method than asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["topk", "life", "tome", "dense"])
@pytest.mark.parametrize(
    ("method", "state", "given", "users"),
    [
        ("evo-vit", evo_vit(), None, "evo-vit"),
        ("avit", backbone().state_dict(), of_avit(), "avit and avit-ranked"),
        ("dynamicvit", dynamicvit(), None, "dynamicvit"),
    ],
    ids=["evo-vit", "avit", "dynamicvit"],
)
def test_weights_that_are_of_use_to_one_method_alone_are_refused_under_others(
    tmp_path, method, state, given, users, asked
):
    path = write(tmp_path / "theirs.pth", state, **({} if given is None else {"args": given}))
    error = refused(path, asked)
    assert error.message == (
        f"{path} is a checkpoint of {method}, and {asked} is asked for: its weights are of use to {users} alone"
    )
    assert (error.hint, error.exit_code) == (
        f"--method {users.replace(' and ', ' or ')}, or weights of a dense model",
        1,
    )


@pytest.mark.parametrize(("method", "asked"), [("evo-vit", "tome"), ("avit-ranked", "topk"), ("dynamicvit", "evit")])
def test_so_are_checkpoints_of_ours(tmp_path, method, asked):
    path = tmp_path / "ours.safetensors"
    options = methods.get(method).usual_options
    own = {"schedule": methods.get(method).make_schedule(16, 6)} if methods.get(method).own_budget else {}
    checkpoint.save(path, *small_model(method=method, options=options, **own))
    assert load(path, method).notes == ()
    assert f"is a checkpoint of {method}, and {asked} is asked for" in refused(path, asked).message


def test_a_checkpoint_for_a_fixed_budget_is_taken_without_its_budget(tmp_path):
    path = tmp_path / "ours.safetensors"
    checkpoint.save(path, *small_model(method="avit-ranked", options={"gate_scale": 5.0, "gate_center": 75.0}))
    loaded = load(path, "avit")
    assert gate_of(loaded.spec) == {"gate_scale": 5.0, "gate_center": 75.0}
    assert loaded.spec.schedule == Schedule.dense(16, 6)


def test_weights_that_were_trained_at_a_keep_rate_are_merged_as_any_others(tmp_path):
    path = tmp_path / "ours.safetensors"
    checkpoint.save(path, *small_model(method="topk", options={}))
    schedule = load(path, "tome", options=FEW).spec.schedule
    assert (schedule.counts, schedule.keep_rate) == ((14, 12, 10, 8, 6, 4), None)
    assert load(path, "evo-vit").spec.schedule.counts == (8, 8)
    assert load(path, "evit").spec.schedule.keep_rate == 0.7


def test_a_method_takes_files_of_another_and_not_the_other_way_round(tmp_path, monkeypatch):
    alone = replace(methods.get("avit"), published=replace(A_VIT, of=()))
    monkeypatch.setattr(methods, "_TABLE", {**methods._TABLE, "avit": alone})
    path = tmp_path / "ours.safetensors"
    checkpoint.save(path, *small_model(method="avit-ranked", options={"gate_scale": 5.0, "gate_center": 75.0}))
    assert refused(path, "avit").hint == "--method avit-ranked, or weights of a dense model"


def test_a_backbone_that_stands_alone_is_lent_and_that_is_said(tmp_path):
    path = write(tmp_path / "theirs.pth", backbone().state_dict(), args=of_evit())
    loaded = load(path, "tome", options=FEW)
    assert loaded.notes[1:] == ("theirs.pth is a checkpoint of evit, and tome is asked for",)
    tensors = loaded.model.backbone.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in backbone().state_dict().items())


@pytest.mark.parametrize("method", ["tome", "evo-vit", "avit"])
def test_weights_of_no_method_are_taken_by_all(tmp_path, method):
    said = argparse.Namespace(model="deit_small_patch16_224", input_size=TINY_SIZE[0], eval_crop_ratio=0.875)
    deit = checkpoint.read(write(tmp_path / "deit.pth", backbone().state_dict(), args=said))
    assert (deit.method, deit.layout) == ("", "DeiT training checkpoint, model")
    plain = write(tmp_path / "plain.safetensors", backbone().state_dict(), "safetensors")
    assert load(plain, method, options=FEW if method == "tome" else {}).notes == ()


# --- what a row can say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timm", "theirs", "rows", "said"),
    [
        ("a.*", "b.*", (), "names in published files cannot be 'b.*' for 'a.*'"),
        ("a.*", (), (), "names in published files"),
        ("a.*", ("b",), (), "names in published files"),
        ("a.*", ("b.*", "c"), (), "names in published files"),
        (3, ("b",), (), "names in published files"),
        ("a.*", ("b.*", "c.*"), (2,), r"rows of 'a\.\*' cannot be \(2,\)"),
        ("a.*", ("b.*", "c.*"), (2, 0), "rows of"),
        ("a.*", ("b.*", "c.*"), (2, 1.0), "rows of"),
    ],
)
def test_names_that_cannot_be_are_refused(timm, theirs, rows, said):
    with pytest.raises(UsageError, match=said):
        Renamed(timm, theirs, rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"unused": "head_cls."}, "unused of published files cannot be"),
        ({"of": "avit"}, "of of published files cannot be"),
        ({"renamed": QKV}, "no tuple of Renamed"),
        ({"renamed": ("a",)}, "no tuple of Renamed"),
        ({"renamed": (QKV, Renamed(QKV.timm, ("other.*",)))}, "or is so twice"),
        ({"renamed": (NORM, Renamed("blocks.*.norm2", NORM.theirs))}, "becomes two modules"),
        ({"options": (("gate", "scale"),)}, "expected pairs of one of its arguments and an option"),
        ({"options": ("gate",), "arguments": ("gate",)}, "expected pairs of one of its arguments and an option"),
    ],
)
def test_what_cannot_be_published_is_refused(words, said):
    with pytest.raises(UsageError, match=said):
        Published(**words)


def test_an_option_that_files_name_is_an_option_of_the_method():
    with pytest.raises(UsageError, match="published files name an option 'gate_scale'"):
        row("avit", "A-ViT", A_VIT)


def test_parts_of_equal_size_need_no_rows():
    assert Renamed("qkv", ("q", "k", "v")).shares == (1, 1, 1)
