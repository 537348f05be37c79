"""Position embeddings keep their places: through a file and back, and to another grid only from the true one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lifedeploy.artifact import Workspace
from lifedeploy.errors import ScheduleError, WeightsError
from lifedeploy.model import backbones, checkpoint, positions, weights
from lifedeploy.model.vit import build_model
from lifedeploy.model.weights import ModelRequest
from lifedeploy.schedule import Schedule
from lifedeploy.spec import Provenance
from tests.model.conftest import FAMILIES, described, emptied, images_for, slim, tiny_vit

SMALL = "test_vit"  # timm's own test model: patches of 16 pixels, 10x10 of them
NATIVE = 100
# As many patches as the backbone's own grid has, which is where they are easiest taken for it.
SAME_COUNT = [(rows, NATIVE // rows) for rows in (1, 2, 4, 5, 10, 20, 25, 50, 100)]
grids = st.one_of(st.sampled_from(SAME_COUNT), st.tuples(st.integers(2, 12), st.integers(2, 12)))
small_grids = st.tuples(st.integers(2, 9), st.integers(2, 9))


def filter_of(old: int, new: int) -> Tensor:
    """Bicubic with antialiasing along one axis, written out: (new, old), Keys' kernel with a = -0.5."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x < 1:
            return (1.5 * x - 2.5) * x * x + 1
        return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0

    step = old / new
    stretch = max(step, 1.0)  # going down, the kernel reaches further
    made = torch.zeros(new, old, dtype=torch.float64)
    for place in range(new):
        centre = step * (place + 0.5)
        first, last = max(int(centre - 2 * stretch + 0.5), 0), min(int(centre + 2 * stretch + 0.5), old)
        for source in range(first, last):
            made[place, source] = kernel((source - centre + 0.5) / stretch)
    return made / made.sum(1, keepdim=True)


def direct(embeddings: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """The same, place by place: (1, P + R·C, D) as a picture of R x C places, filtered along rows and columns."""
    prefix = embeddings.shape[1] - old[0] * old[1]
    picture = torch.empty(*old, embeddings.shape[2], dtype=torch.float64)
    for row in range(old[0]):
        for column in range(old[1]):
            picture[row, column] = embeddings[0, prefix + row * old[1] + column].double()
    moved = torch.einsum("ij,jkd,lk->ild", filter_of(old[0], new[0]), picture, filter_of(old[1], new[1]))
    places = [moved[row, column] for row in range(new[0]) for column in range(new[1])]
    return torch.cat([embeddings[0, :prefix], torch.stack(places).to(embeddings.dtype)])[None]


# --- ours -------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(family=st.sampled_from(sorted(FAMILIES)), grid=small_grids)
def test_every_kind_of_vit_comes_back_to_the_bit_at_every_size(family, grid):
    patch = 14 if family == "dinov2" else 8
    model, spec = described(family, (grid[0] * patch, grid[1] * patch))
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(backbones, "create", emptied):
        path = Path(folder) / "a.safetensors"
        checkpoint.save(path, model, spec)
        loaded, found = checkpoint.load(path)
    assert found == spec
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    images = images_for(model.backbone, 1)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model(images).logits)


@settings(max_examples=25)
@given(grid=grids)
def test_a_timm_backbone_comes_back_to_the_bit_however_many_patches_it_has(grid):
    size = (grid[0] * 16, grid[1] * 16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        first = weights.load(ModelRequest(backbone=SMALL, weights="random", image_size=size), Workspace(Path(folder)))
        checkpoint.save(path, first.model, first.spec)
        for loaded in (
            checkpoint.load(path)[0],
            weights.load(ModelRequest(backbone=SMALL, weights=str(path)), Workspace(Path(folder))).model,
            weights.load(
                ModelRequest(backbone=SMALL, weights=str(path), image_size=size), Workspace(Path(folder))
            ).model,
        ):
            for name, tensor in first.model.state_dict().items():
                assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("deit_t", (112, 448)),
        ("vit_t", (448, 112)),
        ("deit_tiny_distilled_patch16_224", (112, 448)),
        ("vit_tiny_r_s16_p8_224", (64, 256)),  # a ResNet's features, cut into patches
        ("deit3_small_patch16_224", (112, 448)),
        ("vit_small_patch14_reg4_dinov2", (70, 140)),
    ],
)
def test_backbones_of_every_family_come_back_to_the_bit(tmp_path, name, size):
    request = ModelRequest(backbone=name, weights="random", image_size=size, num_classes=3)
    first = weights.load(request, Workspace(tmp_path))
    checkpoint.save(tmp_path / "a.safetensors", first.model, first.spec)
    loaded, _ = checkpoint.load(tmp_path / "a.safetensors")
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@settings(max_examples=40)
@given(old=grids, new=grids)
def test_another_size_is_resampled_from_the_true_grid(old, new):
    with tempfile.TemporaryDirectory() as folder:
        path, size = Path(folder) / "a.safetensors", (old[0] * 16, old[1] * 16)
        first = weights.load(ModelRequest(backbone=SMALL, weights="random", image_size=size), Workspace(Path(folder)))
        with torch.no_grad():
            first.model.backbone.pos_embed.normal_()
        checkpoint.save(path, first.model, first.spec)
        request = ModelRequest(backbone=SMALL, weights=str(path), image_size=(new[0] * 16, new[1] * 16))
        loaded = weights.load(request, Workspace(Path(folder)))
    expected = first.model.backbone.pos_embed if old == new else direct(first.model.backbone.pos_embed, old, new)
    torch.testing.assert_close(loaded.model.backbone.pos_embed, expected, rtol=1e-5, atol=1e-5)
    assert loaded.notes == ()  # it is known, so there is nothing to say


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "plain"])
def test_every_kind_of_vit_is_resampled_and_nothing_else_is_touched(family, ours):
    source = slim(tiny_vit(family))
    patch = source.backbone.patch_embed.patch_size[0]
    target = slim(tiny_vit(family, img_size=(6 * patch, 5 * patch)))
    state = (source if ours else source.backbone).state_dict()
    size = source.backbone.patch_embed.img_size
    checkpoint.load_into(target, dict(state), Path("some.safetensors"), image_size=size)
    expected = direct(source.backbone.pos_embed, source.backbone.patch_embed.grid_size, (6, 5))
    torch.testing.assert_close(target.backbone.pos_embed, expected, rtol=1e-5, atol=1e-6)
    for name, tensor in source.backbone.state_dict().items():
        if name != "pos_embed":
            assert torch.equal(target.backbone.state_dict()[name], tensor), name
    with torch.no_grad():
        assert target(images_for(target.backbone)).logits.isfinite().all()


@given(old=small_grids, new=small_grids, prefix=st.integers(0, 5))
@settings(max_examples=60)
def test_rows_stay_rows(old, new, prefix):
    """Embeddings that only tell their row: they do so afterwards, whatever the filter."""
    rows = torch.arange(old[0]).repeat_interleave(old[1]).float()
    embeddings = torch.cat([torch.full((prefix,), -7.0), rows])[None, :, None]
    moved = positions.resample(embeddings, old, new)[0, :, 0]
    assert torch.equal(moved[:prefix], torch.full((prefix,), -7.0))
    table = moved[prefix:].reshape(new)
    assert torch.allclose(table, table[:, :1].expand(new), atol=1e-5)
    if new[0] > 1:
        assert (table[1:, 0] >= table[:-1, 0] - 1e-4).all()


def test_half_precision_is_resampled_in_full_and_stays_half():
    embeddings = torch.randn(1, 17, 4, dtype=torch.float16)
    moved = positions.resample(embeddings, (4, 4), (2, 6))
    assert moved.dtype == torch.float16
    torch.testing.assert_close(moved, direct(embeddings.float(), (4, 4), (2, 6)).half(), rtol=1e-3, atol=1e-3)


# --- those of other tools ---------------------------------------------------------------------------------------


def plain(path: Path, grid: tuple[int, int]) -> Tensor:
    """A plain state dict whose position embeddings are of ``grid``; the embeddings."""
    torch.manual_seed(sum(grid))
    vit = backbones.create(SMALL, image_size=(grid[0] * 16, grid[1] * 16), num_classes=3)
    torch.nn.init.normal_(vit.pos_embed)
    save_file(vit.state_dict(), path)
    return vit.pos_embed.detach()


def loaded_at(
    path: Path, grid: tuple[int, int], trained_at: tuple[int, int] | None = None, name: str = SMALL
) -> weights.LoadedModel:
    size = trained_at and (trained_at[0] * 16, trained_at[1] * 16)
    request = ModelRequest(
        backbone=name, weights=str(path), image_size=(grid[0] * 16, grid[1] * 16), weights_image_size=size
    )
    return weights.load(request, Workspace(path.parent))


@pytest.mark.parametrize("grid", [(10, 10), (4, 4), (7, 7)])
def test_a_plain_file_at_its_own_size_is_taken_as_it_is(tmp_path, grid):
    embeddings = plain(tmp_path / "a.safetensors", grid)
    loaded = loaded_at(tmp_path / "a.safetensors", grid)
    assert torch.equal(loaded.model.backbone.pos_embed, embeddings)
    assert loaded.notes == ()


@pytest.mark.parametrize(
    ("held", "asked", "possible"),
    [
        ((10, 10), (5, 20), "10x10 or 5x20"),  # the backbone's own grid, or the one asked for
        ((5, 20), (5, 20), "10x10 or 5x20"),
        ((4, 9), (9, 4), "6x6 or 9x4"),
        ((4, 9), (8, 16), "6x6"),
        ((6, 6), (8, 8), "6x6"),
        ((8, 18), (9, 16), "12x12 or 9x16"),
        ((5, 7), (8, 8), ""),
        ((5, 7), (5, 7), "5x7"),  # or turned
        ((2, 6), (6, 2), "6x2"),
        ((2, 6), (3, 4), "3x4"),
    ],
)
def test_a_grid_that_could_be_another_is_asked_for(tmp_path, held, asked, possible):
    path = tmp_path / "a.safetensors"
    embeddings = plain(path, held)
    with pytest.raises(WeightsError) as refused:
        loaded_at(path, asked)
    count = held[0] * held[1]
    told = f" ({possible} is possible)" if possible else ""
    assert refused.value.message == (
        f"{path} does not say of which grid its {count} position embeddings are{told}, "
        f"and a {asked[0]}x{asked[1]} grid is asked for"
    )
    assert "--weights-img-size" in (refused.value.hint or "")
    moved = loaded_at(path, asked, held).model.backbone.pos_embed
    expected = embeddings if held == asked else direct(embeddings, held, asked)
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-5)


def test_the_backbones_own_grid_is_taken_for_granted_and_said(tmp_path):
    embeddings = plain(tmp_path / "a.safetensors", (10, 10))
    loaded = loaded_at(tmp_path / "a.safetensors", (6, 8))
    torch.testing.assert_close(loaded.model.backbone.pos_embed, direct(embeddings, (10, 10), (6, 8)))
    assert loaded.notes == ("position embeddings were resampled from 10x10, the backbone's own grid",)


def test_a_size_that_makes_another_number_of_patches_is_refused(tmp_path):
    plain(tmp_path / "a.safetensors", (4, 9))
    with pytest.raises(WeightsError, match=r"has 36 position embeddings, and 80x80 pixels make 5x5 patches"):
        loaded_at(tmp_path / "a.safetensors", (4, 4), (5, 5))


def test_what_a_file_of_ours_says_is_not_overruled(tmp_path):
    first = weights.load(ModelRequest(backbone=SMALL, weights="random", image_size=(64, 144)), Workspace(tmp_path))
    checkpoint.save(tmp_path / "a.safetensors", first.model, first.spec)
    with pytest.raises(WeightsError, match=r"says that it was trained at 64x144, and --weights-img-size is 144x64"):
        loaded_at(tmp_path / "a.safetensors", (4, 9), (9, 4))


def test_pretrained_weights_are_brought_over_from_their_own_grid(monkeypatch, tmp_path):
    """Also to as many patches in another shape, which some versions of timm leave as they are."""
    create, made_by_timm = backbones.create, []

    def fake(name, *, pretrained=False, **options):
        vit = create(name, **options)
        if pretrained:
            torch.nn.init.normal_(vit.pos_embed)
            made_by_timm.append(vit)
        return vit

    monkeypatch.setattr(weights, "hub_obstacle", lambda name: "")
    monkeypatch.setattr(backbones, "create", fake)
    loaded = weights.load(ModelRequest(backbone=SMALL, weights="pretrained", image_size=(80, 320)), Workspace(tmp_path))
    expected = direct(made_by_timm[0].pos_embed.detach(), (10, 10), (5, 20))
    torch.testing.assert_close(loaded.model.backbone.pos_embed, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(loaded.model.backbone.head.weight, made_by_timm[0].head.weight)


OWN = Schedule.from_keep_rate(16, 6, 0.5, (1, 2, 3))


@pytest.mark.parametrize(
    ("own", "asked", "patches", "expected"),
    [
        (OWN, {}, 16, OWN),
        (OWN, {}, 36, Schedule.from_keep_rate(36, 6, 0.5, (1, 2, 3))),
        (OWN, {"keep_rate": 0.7}, 16, Schedule.from_keep_rate(16, 6, 0.7, (1, 2, 3))),
        (OWN, {"drop_layers": (2, 3, 4)}, 16, Schedule.from_keep_rate(16, 6, 0.5, (2, 3, 4))),
        (OWN, {"counts": (9, 5, 3)}, 16, Schedule.from_counts(16, 6, (9, 5, 3), (1, 2, 3))),
        (OWN, {"counts": (9, 5), "drop_layers": (1, 4)}, 16, Schedule.from_counts(16, 6, (9, 5), (1, 4))),
        (Schedule.from_counts(16, 6, (9, 5, 3), (1, 2, 3)), {}, 16, Schedule.from_counts(16, 6, (9, 5, 3), (1, 2, 3))),
        (
            Schedule.from_counts(16, 6, (9, 5, 3), (1, 2, 3)),
            {"keep_rate": 0.7},
            36,
            Schedule.from_keep_rate(36, 6, 0.7, (1, 2, 3)),
        ),
        (Schedule.dense(16, 6), {}, 16, Schedule.from_keep_rate(16, 6, 0.7)),
        (None, {}, 16, Schedule.from_keep_rate(16, 6, 0.7)),
    ],
)
def test_what_is_not_asked_of_a_schedule_is_the_weights_own(own, asked, patches, expected):
    assert ModelRequest(backbone=SMALL, **asked).schedule(patches, 6, own) == expected


def test_counts_of_another_number_of_patches_are_asked_for():
    own = Schedule.from_counts(16, 6, (9, 5, 3), (1, 2, 3))
    with pytest.raises(ScheduleError, match="own counts, 9, 5, 3, are of 16 patches, and 36 are asked for") as refused:
        ModelRequest(backbone=SMALL).schedule(36, 6, own)
    assert refused.value.hint == "--rho or --counts says what is to be kept"


def test_a_keep_rate_goes_along_to_another_size(tmp_path):
    request = ModelRequest(backbone=SMALL, keep_rate=0.5, weights="random", image_size=(64, 64))
    first = weights.load(request, Workspace(tmp_path))
    checkpoint.save(tmp_path / "a.safetensors", first.model, first.spec)
    loaded = loaded_at(tmp_path / "a.safetensors", (6, 6))
    assert loaded.spec.schedule == Schedule.from_keep_rate(36, 6, 0.5)
    assert loaded.model.schedule == loaded.spec.schedule


def test_patches_of_another_size_are_refused(tmp_path):
    state = tiny_vit().state_dict()
    with pytest.raises(WeightsError, match=r"does not fit this backbone: its patches have 8x8 pixels, expected 16x16"):
        vit = backbones.create(SMALL, num_classes=5)
        spec = weights.describe(ModelRequest(backbone=SMALL), vit, Provenance(weights="file"), ())
        checkpoint.load_into(build_model(vit, spec), state, tmp_path / "a.pth")
