"""Frozen features and a linear head: the cheapest honest classifier on top of the converted backbone."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from convert import DEPLOY_PX, Array, StateDict, create_model, load_backbone, pixels
from files import PrepareError, safetensors_bytes, write_atomically
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

BATCH = 32
FOLDS = 5
STRENGTHS = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]  # candidates for LogisticRegression's C, chosen on the training images
MAX_LOGIT_ERROR = 1e-3


def load_batch(paths: Sequence[Path]) -> torch.Tensor:
    """(B, 3, 224, 224) from image files."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(pixels(image, DEPLOY_PX))
    return torch.stack(images)


def cls_features(state: StateDict, paths: Sequence[Path], progress: Callable[[int], None]) -> Array:
    """(images, C): what the classifier head of the frozen model would see, at 224 px."""
    model = load_backbone(state, DEPLOY_PX)
    features = []
    with torch.inference_mode():
        for start in range(0, len(paths), BATCH):
            features.append(model(load_batch(paths[start : start + BATCH])).numpy())
            progress(min(start + BATCH, len(paths)))
    return np.concatenate(features)


def cached_features(
    state: StateDict, paths: Sequence[Path], root: Path, name: str, progress: Callable[[int], None]
) -> Array:
    """`cls_features`, kept as root/features/NAME-KEY.npy; the key covers weights and file names, so no stale reads."""
    digest = hashlib.sha256(safetensors_bytes(state, {}))
    for path in paths:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
    cache = root / "features" / f"{name}-{digest.hexdigest()[:16]}.npy"
    if not cache.exists():
        features = cls_features(state, paths, progress)
        write_atomically(cache, lambda path: np.save(path, features))
    return np.load(cache)


def fit_head(features: Array, targets: NDArray[np.int64], seed: int) -> tuple[StateDict, float]:
    """Fit a logistic regression; return head.weight (2, C) and head.bias (2,) for raw features, and the C chosen.

    The standardisation is folded into the weights, since timm's head sees raw features. The single logit of a binary
    regression is split evenly over the two classes, which leaves the softmax as it was.
    """
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky")),
        {"logisticregression__C": STRENGTHS},
        scoring="average_precision",
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
    ).fit(features.astype(np.float64), targets)
    scaler, regression = (step for _, step in search.best_estimator_.steps)
    direction = regression.coef_[0] / scaler.scale_
    offset = regression.intercept_[0] - direction @ scaler.mean_
    head = {
        "head.weight": torch.from_numpy(np.stack([-direction, direction]) / 2).float(),
        "head.bias": torch.tensor([-offset / 2, offset / 2], dtype=torch.float32),
    }
    return head, float(search.best_params_["logisticregression__C"])


def head_logits(head: StateDict, features: Array) -> Array:
    """(images, 2) from cached features."""
    return torch.nn.functional.linear(torch.from_numpy(features), head["head.weight"], head["head.bias"]).numpy()


def score(logits: Array, targets: NDArray[np.int64], positive: int) -> dict[str, float]:
    """Accuracy and average precision in percent; `positive` is the class index whose finding counts."""
    accuracy = float(accuracy_score(targets, logits.argmax(axis=1)))
    margin = logits[:, positive] - logits[:, 1 - positive]
    return {
        "accuracy_percent": 100 * accuracy,
        "accuracy_standard_error_points": 100 * (accuracy * (1 - accuracy) / len(targets)) ** 0.5,
        "average_precision_percent": 100 * float(average_precision_score(targets == positive, margin)),
        "majority_class_percent": 100 * float(max(np.mean(targets), 1 - np.mean(targets))),
    }


def verify_file(file: Path, paths: Sequence[Path], expected: Array) -> float:
    """Load the written file strictly into the model its users create, run images, return the worst logit error."""
    model = create_model(DEPLOY_PX, num_classes=expected.shape[1])
    model.load_state_dict(load_file(file), strict=True)
    with torch.inference_mode():
        error = float(np.abs(model(load_batch(paths)).numpy() - expected).max())
    if not error <= MAX_LOGIT_ERROR:
        raise PrepareError(
            f"{file} does not reproduce the fitted head: logits differ by {error:.2e}, "
            f"expected at most {MAX_LOGIT_ERROR:.0e}"
        )
    return error
