"""What ``questions.py`` times against what, with the proof that it computes the same. Needs torch only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from plain import ATTENTIONS, FORMS, GATHERS, PATCH, RANKINGS, Form, Plain, Size, addresses, attend, scores_of
from torch import Tensor

TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2}  # of the largest entry
ROUNDING = 2**-11  # of FP16
# Shares of kept tokens below which a form is a mistake: rounding swaps a few at the cut.
LEAST_KEPT = {torch.float32: 0.99, torch.float16: 0.9}
PROVEN = 4  # images on which forms of the model are compared in FP32
INSIDE = 20  # calls of a single operation in one CUDA graph


# Proof.


def require_same(reference: Tensor, found: Tensor, tolerance: float, what: str) -> float:
    """Make sure that ``found`` is ``reference`` up to ``tolerance``; the largest error, both as shares of its largest.

    Raises:
        AssertionError: it is not.
    """
    if reference.shape != found.shape:
        raise AssertionError(f"{what} has the shape {tuple(found.shape)}, expected {tuple(reference.shape)}")
    error = float((reference.float() - found.float()).abs().max() / reference.float().abs().max())
    if not error <= tolerance:  # NaN is no equality either
        raise AssertionError(f"{what} is off by {error:.2g} of the largest entry, expected at most {tolerance:.2g}")
    return error


def in_both(one: Tensor, other: Tensor, count: int) -> Tensor:
    """How many of the first ``count`` tokens of each image both have: (B, K), (B, K) → (B,)."""
    return (one[:, :count, None] == other[:, None, :count]).any(2).sum(1)


def require_kept(reference: Tensor, found: Tensor, least: float, what: str) -> float:
    """Make sure that most tokens that ``reference`` keeps are kept; their share.

    Raises:
        AssertionError: they are not.
    """
    kept = float(in_both(reference, found, reference.shape[1]).float().mean()) / reference.shape[1]
    if kept < least:
        raise AssertionError(f"{what} keeps {kept:.1%} of the tokens that the first form keeps, expected {least:.0%}")
    return kept


def same_numbers(reference: Any, found: Any, what: str, *, tolerance: float) -> dict[str, Any]:
    """Compare two tensors."""
    return {"error": require_same(reference, found, tolerance, what)}


def same_ranking(reference: Any, found: Any, what: str, *, scores: Tensor, tolerance: float) -> dict[str, Any]:
    """Compare kept scores in their order, then the tokens; and say for how many images FP16 ties at the cut."""
    error = require_same(reference.values, found.values, tolerance, what)
    kept = require_kept(reference.indices, found.indices, LEAST_KEPT[torch.float16], what)
    count = found.indices.shape[1]
    half = scores.half().sort(dim=1, descending=True).values
    ties = float((half[:, count - 1] == half[:, count]).float().mean())
    return {"error": error, "kept": kept, "ties_at_cut_fp16": ties}


def same_model(
    reference: Any, found: Any, what: str, *, counts: Sequence[int], tolerance: float, least: float
) -> dict[str, Any]:
    """Compare the tokens that survive to the end, and the logits of images that kept the same ones at every drop.

    A token swapped at the cut is no arithmetic error, but is to be seen.
    """
    kept = require_kept(reference[1][:, : counts[-1]], found[1][:, : counts[-1]], least, what)
    shared = torch.stack([in_both(reference[1], found[1], count) for count in counts])  # (drops, B)
    alike = (shared == torch.tensor(counts, device=shared.device)[:, None]).all(0)
    error = require_same(reference[0][alike], found[0][alike], tolerance, what) if bool(alike.any()) else None
    return {"error": error, "kept": kept, "images_alike": float(alike.float().mean())}


# Cases.


@dataclass(frozen=True)
class Case:
    """Forms of one thing. All have to give what the first gives, as ``check`` sees it."""

    what: str
    calls: Mapping[str, Callable[[], Any]]
    check: Callable[[Any, Any, str], dict[str, Any]]  # the first's answer, another's, its name → what was seen
    inside: int = 1  # calls in one CUDA graph


def cases(level: str, question: int, batch: int, size: Size, device: str) -> list[Case]:
    """The cases of one step, with their data on the device: FP16 on a GPU, FP32 on a CPU.

    Raises:
        AssertionError: a form of the model is not the same in FP32.
    """
    dtype = torch.float16 if device == "cuda" else torch.float32
    if level == "model":
        return [model_case(question, batch, size, device, dtype)]
    torch.manual_seed(1)
    return OPERATIONS[question](batch, size, device, dtype)


def gather_cases(batch: int, size: Size, device: str, dtype: torch.dtype) -> list[Case]:
    """The Gather after the base layer, CLS included."""
    patches, kept = size.schedule.patches, size.schedule.counts[0]
    x = torch.randn(batch, 1 + patches, size.width).to(device, dtype)
    index = F.pad(torch.rand(batch, patches).topk(kept, dim=1).indices + 1, (1, 0)).to(device)  # (B, 1 + K)
    calls: dict[str, Callable[[], Any]] = {name: partial(gather, x, index, 1) for name, gather in GATHERS.items()}
    first, second = addresses(index, 1)
    calls["flat, rows given"] = partial(given_rows, x, first * x.shape[1] + second)
    check = partial(same_numbers, tolerance=0.0)  # nothing is computed
    return [Case(f"{batch} × {1 + patches} × {size.width}, {1 + kept} kept", calls, check, INSIDE)]


def given_rows(x: Tensor, rows: Tensor) -> Tensor:
    """The flat Gather less its arithmetic on indices, which a compiler fuses and PyTorch launches kernel by kernel."""
    return x.reshape(-1, x.shape[-1]).index_select(0, rows.reshape(-1)).reshape(*rows.shape, x.shape[-1])


def ranking_cases(batch: int, size: Size, device: str, dtype: torch.dtype) -> list[Case]:
    """TopK alone, and with the scores that it sorts: what the FP32 island of a half-precision graph holds."""
    patches, kept = size.schedule.patches, size.schedule.counts[0]
    scores = torch.randn(batch, patches).to(device)
    alone = {name: partial(topk, scores.to(precision), kept) for name, precision in RANKINGS.items()}
    # Rounding keeps the order, so values that were sorted after rounding are those that were rounded after sorting.
    check = partial(same_ranking, scores=scores, tolerance=ROUNDING)
    tokens = torch.randn(batch, 1 + patches, size.width).to(device, dtype)
    weights = {name: torch.eye(size.width).to(device, precision) for name, precision in RANKINGS.items()}
    whole = {name: partial(ranked, tokens, weight, kept) for name, weight in weights.items()}
    exact = scores_of(tokens, weights["fp32"])
    check_whole = partial(same_ranking, scores=exact, tolerance=TOLERANCE[torch.float16])
    return [
        Case(f"TopK alone, {kept} of {patches}", alone, check, INSIDE),
        Case("scores and TopK", whole, check_whole, INSIDE),
    ]


def topk(scores: Tensor, kept: int) -> Any:
    """The deployed sort."""
    return scores.topk(kept, dim=1, sorted=True)


def ranked(tokens: Tensor, weight: Tensor, kept: int) -> Any:
    """Scores in the precision of ``weight``, sorted."""
    return topk(scores_of(tokens, weight), kept)


def attention_cases(batch: int, size: Size, device: str, dtype: torch.dtype) -> list[Case]:
    """Attention from qkv to where its projection begins, before anything is dropped."""
    tokens = 1 + size.schedule.patches
    qkv = torch.randn(batch, tokens, 3 * size.width).to(device, dtype)
    calls = {name: partial(attend, qkv, size.heads, Form(attention=name)) for name in ATTENTIONS}
    check = partial(same_numbers, tolerance=TOLERANCE[dtype])
    return [Case(f"{size.heads} heads, {tokens} tokens", calls, check, INSIDE)]


OPERATIONS = {1: gather_cases, 2: ranking_cases, 4: attention_cases}


def model_case(question: int, batch: int, size: Size, device: str, dtype: torch.dtype) -> Case:
    """The forms of the whole model in ``dtype``, after they were proven equal in FP32."""
    forms, counts, edge = FORMS[question], size.schedule.counts, size.side * PATCH
    torch.manual_seed(1)
    images = torch.randn(max(batch, PROVEN), 3, edge, edge)
    full, some = Plain(size, device, torch.float32), images[:PROVEN].to(device)
    answers = {name: full(some, form) for name, form in forms.items()}
    expected = next(iter(answers.values()))
    for name, form in forms.items():
        least = LEAST_KEPT[RANKINGS[form.ranking]]
        limits = {"counts": counts, "tolerance": TOLERANCE[torch.float32], "least": least}
        same_model(expected, answers[name], f"the model with {name} in FP32", **limits)
    model, images = Plain(size, device, dtype), images[:batch].to(device, dtype)
    check = partial(same_model, counts=counts, tolerance=TOLERANCE[dtype], least=LEAST_KEPT[torch.float16])
    what = f"{size.depth} layers, {size.width} wide, {1 + size.side**2} tokens"
    return Case(what, {name: partial(model, images, form) for name, form in forms.items()}, check)
