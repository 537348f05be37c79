"""The processes of a training run, and the precision that they compute in."""

from __future__ import annotations

import os
from typing import Any

import torch

from lifedeploy import machine
from lifedeploy.errors import UsageError
from lifedeploy.training.config import TrainConfig


def accelerator_for(config: TrainConfig) -> tuple[Any, str]:
    """accelerate's view of this process and its fellows, and the precision that runs.

    Raises:
        UsageError: the precision asked for does not train here.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    # Without being told, accelerate does not look for fellow processes on a machine that has no GPU.
    on_cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    device = PartialState(cpu=on_cpu).device
    AcceleratorState._reset_state()  # it keeps the precision of an earlier run in this process
    precision = config.precision
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else machine.fast_bf16()
        precision = "bf16" if fast else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 training needs a GPU: a CPU has no loss scaler", hint="--precision bf16 or fp32")
    # Gradients live in the buckets they travel in: one copy less.
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    mixed = "no" if precision == "fp32" else precision
    return Accelerator(mixed_precision=mixed, kwargs_handlers=handlers), precision


def trains_by_products(accelerator: Any) -> bool:
    """Whether attention trains faster as two products than as torch's fused operator: in BF16 on a CPU with AMX, whose
    tiles the operator's backward pass does not use (benchmarks/training).

    The weights of attention, which the operator never writes down, are then kept for the backward pass.
    """
    on_cpu, precision = accelerator.device.type == "cpu", accelerator.mixed_precision
    return bool(on_cpu and precision == "bf16" and machine.bf16_tiles())
