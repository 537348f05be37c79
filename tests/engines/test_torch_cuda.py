"""PyTorch on a GPU, as far as a CPU can tell: precision, taps, and what is said where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.torch import Torch, TorchCuda
from lifedeploy.errors import EngineUnavailableError
from tests.engines.hammer import wrong_answers

KEPT = "kept_2"  # after the first drop


class OnCpu(TorchCuda):
    """A CPU has no clock for attentions: all take the same."""

    device = "cpu"

    def _times(self, jobs):
        return dict.fromkeys(jobs, 1.0)


@pytest.fixture
def weights(exported):
    return next(exported.glob("*/weights.safetensors"))


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 4e-2)])
def test_the_whole_model_runs_in_the_precision_asked_for(weights, precision, allowed):
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    with Torch(weights, EngineOptions(taps=(KEPT,))) as engine:
        reference = engine.run({"images": images})
    with OnCpu(weights, EngineOptions(precision=precision, taps=(KEPT,))) as engine:
        assert engine.precision == precision
        found = engine.run({"images": images})
        parameters = {parameter.dtype for parameter in engine._model.parameters()}
    assert parameters == {{"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]}
    assert found["logits"].dtype == np.float32
    error = np.abs(found["logits"] - reference["logits"]).max() / np.abs(reference["logits"]).max()
    assert error < allowed
    assert (error > 0) == (precision != "fp32")
    for ours, theirs in zip(found[KEPT], reference[KEPT], strict=True):
        assert len(np.intersect1d(ours, theirs)) >= len(theirs) - 1


def test_threads_get_the_answers_to_their_own_inputs(weights):
    with OnCpu(weights) as engine:
        assert wrong_answers(engine, 100) == []


@pytest.mark.parametrize("name", ["torch-cuda", "torch-compiled"])
def test_without_a_gpu_it_is_refused_with_the_reason(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineUnavailableError, match=f"engine {name} cannot run here: this torch has no CUDA, or"):
        registry.resolve(name)
