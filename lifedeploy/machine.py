"""Which machine a number comes from."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from lifedeploy.optional import versions

# What decides the speed of half precision and INT8 on a CPU; names as the Linux kernel spells them.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16", "amx_int8")


def processor() -> str:
    """The CPU's name, as far as the system tells."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def features() -> tuple[str, ...]:
    """Which of the instruction sets that matter here the CPU has. Empty where the system does not tell."""
    for line in _cpuinfo():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            return tuple(name for name in _FEATURES if name in flags)
    return ()


def fast_bf16() -> bool:
    """Whether the CPU multiplies BF16 matrices faster than FP32 ones."""
    return bool({"avx512_bf16", "amx_bf16"} & set(features()))


def fast_int8() -> bool:
    """Whether the CPU multiplies 8-bit integers into 32-bit sums, in one instruction that cannot overflow."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(features()))


def identity() -> str:
    """What an engine built here depends on: the CPU and its instruction sets."""
    return f"{processor()} ({', '.join(features()) or platform.machine()})"


def memory_gib() -> float | None:
    """Physical memory, in GiB."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1)
    except (ValueError, OSError, AttributeError):
        return None


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(*, threads: int | None = None) -> dict[str, Any]:
    """Everything a reader needs to place a measurement."""
    return {
        "cpu": processor(),
        "features": list(features()),
        "cores": cores(),
        "threads": threads or cores(),
        "memory_gib": memory_gib(),
        "gpu": gpus(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def gpus() -> list[str]:
    """NVIDIA GPUs that the driver lists; found without any framework."""
    folder = Path("/proc/driver/nvidia/gpus")
    found = []
    for information in sorted(folder.glob("*/information")):
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                found.append(line.partition(":")[2].strip())
    return found


def gpu_state() -> list[dict[str, str]]:
    """Per GPU its driver, clocks (MHz), power (W) and temperature (°C), as nvidia-smi tells them; none without it."""
    fields = ("name", "driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return [
        dict(zip(fields, (value.strip() for value in line.split(",")), strict=True))
        for line in done.stdout.splitlines()
        if line.strip()
    ]


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
