"""Which machine a number comes from."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # no such limits on this system
    resource = None  # type: ignore[assignment]

from lifedeploy import children
from lifedeploy.errors import EngineError
from lifedeploy.optional import versions
from lifedeploy.text import printable

# What decides the speed of half precision and INT8 on a CPU; names as the Linux kernel spells them.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16", "amx_int8")
_PATIENCE_S = 30.0  # for a driver that hangs


def processor() -> str:
    """The CPU's name, as far as the system tells."""
    return next(listed("/proc/cpuinfo", "model name"), "") or platform.processor() or platform.machine()


def features() -> tuple[str, ...]:
    """Which of the instruction sets that matter here the CPU has. Empty where the system does not tell."""
    flags = next(listed("/proc/cpuinfo", "flags"), "").split()
    return tuple(name for name in _FEATURES if name in flags)


def fast_bf16() -> bool:
    """Whether the CPU multiplies BF16 matrices faster than FP32 ones."""
    return bool({"avx512_bf16", "amx_bf16"} & set(features()))


def bf16_tiles() -> bool:
    """Whether the CPU multiplies tiles of BF16 matrices (AMX)."""
    return "amx_bf16" in features()


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


def peak_memory_mib() -> float | None:
    """Most memory that this process has had resident, in MiB; None where the system does not tell.

    VmHWM, which unlike ru_maxrss starts anew with the program: a child does not inherit its parent's peak.
    """
    peak = next(listed("/proc/self/status", "VmHWM"), "")  # in KiB: 123456 kB
    return round(int(peak.split()[0]) / 1024, 1) if peak else None


def memory_limit() -> int:
    """Bytes of memory that this process may have: the machine's, or less where it was given less."""
    limits = [round((memory_gib() or 4) * 1024**3)]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # another version, or "max"
            limits.append(int(Path(path).read_text(encoding="ascii")))
    if resource is not None:
        address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
        if address_space != resource.RLIM_INFINITY:
            limits.append(address_space)
    return min(limits)


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
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [model for file in files for model in listed(file, "Model")]


def gpu_state() -> list[dict[str, str]]:
    """Per GPU its driver, clocks (MHz), power (W) and temperature (°C), as nvidia-smi tells them; none without it."""
    fields = ("name", "driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
    tool = children.tool("nvidia-smi")
    if tool is None:
        return []
    query = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = children.run(query, "nvidia-smi", timeout_s=_PATIENCE_S)
    except EngineError:
        return []
    rows = ([printable(value.strip()) for value in line.split(",")] for line in answer.splitlines())
    return [dict(zip(fields, values, strict=True)) for values in rows if len(values) == len(fields)]


def listed(file: str | Path, name: str) -> Iterator[str]:
    """Values of ``name`` in a file of Linux's ``/proc``, which has lines of ``name: value``; none without the file, or
    where its process ends meanwhile.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() == name:
            yield value.strip()
