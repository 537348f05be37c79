"""Quantised graphs as they stand: Q and DQ computed one by one, in FP32. What every engine has to agree with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lifedeploy.calibration.batches import ImageBatches
from lifedeploy.calibration.collect import Count
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.evaluation.parity import Answer
from lifedeploy.kept import KeptTokens
from lifedeploy.targets.session import Session, Watched
from lifedeploy.targets.target import Target


def literal(graph: Path, kept: KeptTokens, watched: Watched) -> Session:
    """``graph`` in ONNX Runtime, with nothing fused into integers."""
    target = Target(name=graph.name, path=graph, engine=OnnxRuntime, precision="fp32", kept=kept)
    return Session(target, watched, options=EngineOptions(literal=True))


def ask(kept: KeptTokens, graph: Path, batches: ImageBatches, count: Count = lambda images: None) -> Answer:
    """What ``graph``, which tells its ``kept`` tokens, answers to all images."""
    logits, tokens = [], []
    with literal(graph, kept, "survivors") as session:
        for images, counted in batches:
            answer = session.answer(images)
            logits.append(answer.logits[:counted].reshape(counted, -1))
            if answer.kept is not None:
                tokens.append(answer.kept[:counted])
            count(counted)
    return Answer(np.concatenate(logits), np.concatenate(tokens) if tokens else None)
