"""Frozen features and a linear head: the cheapest honest classifier on top of the converted backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.models.vision_transformer import VisionTransformer

from benchmarks.real.convert import DEPLOY_PX, Array, StateDict, pixels

BATCH = 32
FOLDS = 5
STRENGTHS = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]  # candidates for LogisticRegression's C, chosen on the training images


def outputs(model: VisionTransformer, paths: Sequence[Path], name: str) -> Array:
    """(images, C): what a model, with a head or without, computes of image files at 224 px."""
    rows = []
    with torch.inference_mode():
        for start in track(range(0, len(paths), BATCH), description=name, transient=True):
            images = []
            for path in paths[start : start + BATCH]:
                with Image.open(path) as image:
                    images.append(pixels(image, DEPLOY_PX))
            rows.append(model(torch.stack(images)).numpy())
    return np.concatenate(rows)


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
    """(images, 2) from features."""
    return torch.nn.functional.linear(torch.from_numpy(features), head["head.weight"], head["head.bias"]).numpy()


def score(logits: Array, targets: NDArray[np.int64], positive: int) -> dict[str, float]:
    """Accuracy and average precision in percent; ``positive`` is the index of the class that is looked for."""
    accuracy = float(accuracy_score(targets, logits.argmax(axis=1)))
    margin = logits[:, positive] - logits[:, 1 - positive]
    return {
        "accuracy_percent": 100 * accuracy,
        "accuracy_standard_error_points": 100 * (accuracy * (1 - accuracy) / len(targets)) ** 0.5,
        "average_precision_percent": 100 * float(average_precision_score(targets == positive, margin)),
        "majority_class_percent": 100 * float(max(np.mean(targets), 1 - np.mean(targets))),
    }
