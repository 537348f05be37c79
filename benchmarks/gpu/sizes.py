"""What ``measure.py`` measures on a GPU, and what it takes instead in a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# In the order of measuring: the two that come with most machines, TensorRT, and what is left.
LEAD = ("onnxruntime-cuda", "torch-compiled")
PLANS = ("tensorrt", "tensorrt-rtx")
ENGINES = (*LEAD, *PLANS, "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx", "torch-cuda")
UNFUSED_TOO = (*PLANS, "onnxruntime-cuda")  # refuse unfused attention, unless told that it is wanted


@dataclass(frozen=True)
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
    questions: str = ""  # further words for questions.py, variants.py and attentions.py
    variants: str = ""
    attentions: str = "--batches 128"
    kernels: tuple[str, ...] = ()
    questions_minutes: float = 1.5
    variants_minutes: float = 1.2

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
    lifedeploy=(str(Path(__file__).with_name("dry.py")),),
    engines=(*LEAD, PLANS[0]),
    stand_in="fake-device",
    later=1,
    elsewhere=1,
    questions="--device cpu --width 32 --depth 4 --heads 2 --side 4 --seconds 0.02 --batches 2,1",
    variants="--dry --batches 2",
    kernels=("--host",),
    attentions="--engine onnxruntime --precision fp32 --batches 2 --seconds 0.3",
)
