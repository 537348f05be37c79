"""What ``measure.py`` measures on a GPU, and what it takes instead in a dry run."""

from __future__ import annotations

from dataclasses import dataclass

# In the order of measuring: the two that come with most machines, TensorRT, and what is left.
LEAD = ("onnxruntime-cuda", "torch-compiled")
PLANS = ("tensorrt", "tensorrt-rtx")
ENGINES = (*LEAD, *PLANS, "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx", "torch-cuda")
UNFUSED_TOO = (*PLANS, "onnxruntime-cuda")  # refuse unfused attention, unless told that it is wanted


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a dry run does smaller, or on something else; all other words of all commands are the same."""

    backbones: tuple[str, ...] = ("deit_s", "deit_b")
    schedules: tuple[tuple[str, str], ...] = (("ρ 0.7", "--rho 0.7"), ("127, 95, 63", "--counts 127,95,63"))
    batches: tuple[int, ...] = (128, 8, 1, 32, 256)
    in_flight: int = 8  # the batch that is also measured with two requests in flight
    profile: str = "1,128,256"  # batches that plans are built for
    budget_s: float = 6  # of one contest
    bare_s: float = 10
    lifedeploy: tuple[str, ...] = ("-P", "-m", "lifedeploy")
    engines: tuple[str, ...] = ENGINES
    stand_in: str = ""  # the engine in the place of all of them
    later: int = len(ENGINES)  # how many of them are measured beyond the first batch
    elsewhere: int = 5  # how many of the batches are measured beyond the first schedule and backbone
    variants: str = "--minutes 1.2"  # further words for variants.py, attentions.py and kernels.py
    attentions: str = "--batches 128"
    kernels: str = ""

    def engine(self, name: str) -> str:
        """What runs where ``name`` is measured."""
        return self.stand_in or name


GPU = Sizes()
DRY = Sizes(
    backbones=("test_vit",),
    schedules=(("ρ 0.7", "--rho 0.7"), ("65, 49, 33", "--counts 65,49,33")),
    batches=(4, 8),
    profile="1,4,8",
    budget_s=0.3,
    bare_s=0.3,
    lifedeploy=("-m", "benchmarks.gpu.dry"),
    engines=(*LEAD, PLANS[0]),
    stand_in="fake-device",
    later=1,
    elsewhere=1,
    variants="--minutes 1.2 --dry --batches 2",
    kernels="--host",
    attentions="--engine onnxruntime --precision fp32 --batches 2 --seconds 0.3",
)
