"""The parity gate: an engine's answers against PyTorch's own, recorded when the model was exported.

The recorded answers travel with the export, so an engine is checked against PyTorch wherever it is built, without
PyTorch there. Lives are compared too: an engine can get every class right and still keep the wrong tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy.data.samples import Sample, digest
from lifedeploy.engines.lanes import Array
from lifedeploy.errors import ArtifactError, ParityError
from lifedeploy.reading import read_arrays
from lifedeploy.records import CaseRecord, ParityRecord
from lifedeploy.writing import saving


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be off.

    ``relative`` is the largest error over the largest logit of the batch, of images that kept the same tokens; where no
    image did, what their tokens differ by comes on top, as a share of all;
    ``overlap`` the mean share of kept tokens that are the same, ``swaps`` how many of a batch may differ even where
    that is a larger share; ``merged`` is in the place of ``overlap`` where a method merges tokens. A changed top-1
    counts where the reference itself was decided: its margin over the runner-up exceeds twice the error allowed.
    """

    relative: float
    overlap: float
    swaps: int = 0
    merged: float | None = None  # None: as ``overlap``


# Half precision has 11 (fp16) or 8 (bf16) bits; a token on the edge of a cut may fall to either side of it, and what
# it then changes comes on top. fp32 only reorders sums. Which of several patches that are alike is merged with another
# is told by the last bits, in every layer anew, on what the layer before left: in BF16 0.79 to 0.87 of the tokens are
# the same then, with logits within 0.02 to 0.18 (ToMe, trained, OpenVINO; its ranking in FP32 made no difference). Of
# two different images 0.66 to 0.68 are.
TOLERANCES = {
    "fp32": Tolerance(relative=1e-3, overlap=0.99),
    "fp16": Tolerance(relative=3e-2, overlap=0.95, swaps=1),
    "bf16": Tolerance(relative=1.5e-1, overlap=0.85, swaps=1, merged=0.75),
    # Against the quantised graph computed as it stands, not the float one. Engines add in another order: what is then
    # just across the border between two of 255 levels takes the other one, and a few layers later the errors of
    # quantisation are other errors of the same size (benchmarks/quantization). What they cost is measured on images.
    "int8": Tolerance(relative=3e-1, overlap=0.8, swaps=2, merged=0.75),
    "fp8": Tolerance(relative=3e-1, overlap=0.8, swaps=2, merged=0.75),
}


@dataclass(frozen=True)
class Answer:
    """A model's outputs for one batch."""

    logits: Array  # (B, classes)
    kept: Array | None  # (B, n), original indices: of the survivors, or the whole of what every drop left


def compare(
    reference: Sequence[Answer],
    candidate: Sequence[Answer],
    samples: Sequence[Sample],
    precision: str,
    *,
    merges: bool = False,
) -> ParityRecord:
    """Compare two models' answers to the same samples, within the tolerance of ``precision``.

    ``merges``: whether tokens that do not go on are merged into others.
    """
    if precision not in TOLERANCES:
        raise ParityError(f"no tolerance is defined for {precision}; there are: {', '.join(TOLERANCES)}")
    tolerance = TOLERANCES[precision]
    share = tolerance.overlap if tolerance.merged is None or not merges else tolerance.merged
    cases, failures = [], []
    for sample, ours, theirs in zip(samples, reference, candidate, strict=True):
        where = f"{sample.kind}, batch {sample.batch}"
        if theirs.logits.shape != ours.logits.shape:
            raise ParityError(f"{where}: the output is {theirs.logits.shape}, expected {ours.logits.shape}")
        if ours.kept is not None and theirs.kept is not None and theirs.kept.shape != ours.kept.shape:
            raise ParityError(f"{where}: the kept tokens are {theirs.kept.shape}, expected {ours.kept.shape}")
        with np.errstate(invalid="ignore"):  # what is not finite is found below
            case = _compare_one(sample, ours, theirs, tolerance)
        cases.append(case)
        if not np.isfinite(ours.logits).all():  # nothing compares with NaN, so nothing would be seen
            failures.append(f"{where}: the reference itself is not finite")
        elif not np.isfinite(theirs.logits).all():
            failures.append(f"{where}: the output is not finite")
        elif case.max_rel_same > tolerance.relative:
            failures.append(f"{where}: relative error {case.max_rel_same:.2g}, allowed {tolerance.relative:g}")
        elif case.decided_flips:
            failures.append(f"{where}: top-1 of {case.decided_flips} of {sample.batch} images changed")
        if case.overlap is not None and ours.kept is not None:
            needed = min(share, 1 - tolerance.swaps / ours.kept.size)
            if case.overlap < needed - 1e-9:
                failures.append(f"{where}: kept-token overlap {case.overlap:.3f}, at least {needed:.3g} needed")
    overlaps = [case.overlap for case in cases if case.overlap is not None]
    return ParityRecord(
        passed=not failures,
        precision=precision,
        cases=tuple(cases),
        failures=tuple(failures),
        max_abs=max(case.max_abs for case in cases),
        max_rel=max(case.max_rel for case in cases),
        top1=float(np.average([case.top1 for case in cases], weights=[case.batch for case in cases])),
        overlap=min(overlaps) if overlaps else None,
    )


def _compare_one(sample: Sample, ours: Answer, theirs: Answer, tolerance: Tolerance) -> CaseRecord:
    reference, candidate = ours.logits.astype(np.float64), theirs.logits.astype(np.float64)
    errors = np.abs(reference - candidate).max(axis=1)
    error, scale = errors.max(), max(np.abs(reference).max(), 1e-12)
    alike = errors
    if ours.kept is not None and theirs.kept is not None:
        kept_same = (np.sort(ours.kept, axis=1) == np.sort(theirs.kept, axis=1)).all(axis=1)
        others = np.array([1 - _share(a, b) for a, b in zip(ours.kept, theirs.kept, strict=True)])
        alike = errors[kept_same] if kept_same.any() else np.maximum(errors - others * scale, 0)
    same = reference.argmax(axis=1) == candidate.argmax(axis=1)
    best_two = np.sort(reference, axis=1)[:, -2:]
    decided = best_two[:, -1] - best_two[:, 0] > 2 * tolerance.relative * scale
    return CaseRecord(
        kind=sample.kind,
        batch=sample.batch,
        max_abs=float(error),
        max_rel=float(error / scale),
        max_rel_same=float(alike.max() / scale),
        top1=float(same.mean()),
        overlap=None if ours.kept is None or theirs.kept is None else overlap(ours.kept, theirs.kept),
        decided_flips=int((decided & ~same).sum()),
    )


def overlap(first: Array, second: Array) -> float:
    """Mean share of ``first``'s tokens that are in ``second`` too: (B, n), (B, m) → 0…1. Order does not matter.

    Tokens that are no single patch, -1, are told by nothing: of them as many are the same as both have.
    """
    return float(np.mean([_share(a, b) for a, b in zip(first, second, strict=True)]))


def shared_tokens(first: Array, second: Array) -> list[float]:
    """Per image, the share of the smaller set of kept tokens that is in the other: (B, n), (B, m) → B × 0…1."""
    small, large = sorted((first, second), key=lambda kept: kept.shape[1])
    return [overlap(few[None], many[None]) for few, many in zip(small, large, strict=True)]


def _share(tokens: NDArray[Any], others: NDArray[Any]) -> float:
    patches = len(np.intersect1d(tokens[tokens >= 0], others))
    fused = min(int((tokens < 0).sum()), int((others < 0).sum()))
    return (patches + fused) / max(len(tokens), 1)


def record(path: Path, answers: Mapping[str, Sequence[Answer]], inputs: Sequence[Array]) -> None:
    """Write PyTorch's answers (method → one per sample) under the hash of the input they belong to."""
    arrays: dict[str, Array] = {}
    for method, given in answers.items():
        for answer, images in zip(given, inputs, strict=True):
            key = f"{method}/{digest(images)}"
            arrays[f"{key}/logits"] = answer.logits
            if answer.kept is not None:
                arrays[f"{key}/kept"] = answer.kept.astype(np.int64)
    with saving(path), path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def recorded(path: Path, method: str, inputs: Sequence[Array]) -> list[Answer]:
    """PyTorch's answers to ``inputs``, read back.

    Raises:
        ArtifactError: the file is missing or damaged, was recorded for other inputs, or holds what is no answer.
    """
    arrays = read_arrays(path)
    answers = []
    for images in inputs:
        key = f"{method}/{digest(images)}"
        if f"{key}/logits" not in arrays:
            raise ArtifactError(
                f"{path} holds no answer of {method} to these samples: recorded by another version",
                hint="export again",
            )
        logits, kept = arrays[f"{key}/logits"], arrays.get(f"{key}/kept")
        if not _is_answer(logits, np.floating):
            raise ArtifactError(f"{path}: the recorded logits are {logits.dtype} {logits.shape}; expected floats, 2-D")
        if kept is not None and not (_is_answer(kept, np.integer) and len(kept) == len(logits)):
            raise ArtifactError(f"{path}: the recorded tokens are {kept.dtype} {kept.shape}; expected integers, 2-D")
        answers.append(Answer(logits, kept))
    return answers


def _is_answer(array: Array, kind: Any) -> bool:
    return array.ndim == 2 and array.size > 0 and np.issubdtype(array.dtype, kind)
