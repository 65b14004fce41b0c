"""Describes the machine and the software of a run, says what the processor is fast at, and measures rates."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("shiftvit", "keras", "numpy", "torch", "jax", "tensorflow", "pillow", "safetensors"),
    *("scipy", "scikit-learn", "timm"),
    *("onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "ai-edge-litert"),
)
_INSTRUCTIONS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"),  # x86
    *("asimd", "asimddp", "bf16", "i8mm", "sve"),  # Arm
)


def describe_environment() -> dict[str, Any]:
    """Returns versions, processor, memory, backend, device and git commit, as JSON types; imports Keras."""
    import keras

    return {
        "versions": list_versions(),
        "backend": keras.config.backend(),
        "device": find_device_name(),
        "processor": find_processor_name(),
        "instructions": list_instructions(),
        "cores": count_cores(),
        "platform": platform.platform(),
        "bfloat16": computes_bfloat16(),
        "git_commit": find_commit(),
        # A path may be any bytes, and JSON is UTF-8.
        "command": [
            os.fsencode(word).decode("utf-8", "backslashreplace") for word in (Path(sys.argv[0]).name, *sys.argv[1:])
        ],
    }


def list_versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def count_cores() -> int:
    """Returns the number of processor cores that this process may use, or those of a container's quota if it is less.

    A quota of part of a core counts as a whole one.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([allowed, *_read_quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])))


def _read_quotas(groups: Path, mounted: Path) -> list[float]:
    """Returns the processor time, in cores, that Linux grants this process's control groups and those above them.

    Args:
        groups: the file with the groups, as /proc/self/cgroup.
        mounted: where they are mounted. In a container this is often the container's own group, whatever `groups` says.
    """
    quotas = []
    names: tuple[str, ...]
    for line in _read_text(groups).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            top, names = mounted, ("cpu.max",)
        elif "cpu" in controllers.split(","):  # version 1
            top, names = mounted / "cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        place = top / group.lstrip("/")
        for folder in (place, *(above for above in place.parents if above.is_relative_to(top))):
            words = " ".join(_read_text(folder / name) for name in names).split()
            # Without a limit the first is "max" in version 2, and -1 in version 1.
            if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
                quotas.append(int(words[0]) / int(words[1]))
    return quotas


def find_processor_name() -> str:
    """Returns the processor's model name as the system reports it."""
    for line in _read_cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def list_instructions() -> list[str]:
    """Returns the processor's instruction sets that matter for speed and int8 sums, by their Linux names.

    Empty if the system does not report them.
    """
    for line in _read_cpuinfo().splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return [flag for flag in _INSTRUCTIONS if flag in flags.split()]
    return []


def find_device_name() -> str:
    """Returns the name of the accelerator that the Keras backend uses, or "cpu"."""
    import keras

    backend = keras.config.backend()
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        return "cpu" if device.platform == "cpu" else str(device.device_kind)
    import tensorflow

    gpus = tensorflow.config.list_physical_devices("GPU")
    return tensorflow.config.experimental.get_device_details(gpus[0]).get("device_name", "gpu") if gpus else "cpu"


def computes_bfloat16() -> bool:
    """Returns whether this machine's matrix products are faster in bfloat16 than in float32 on the Keras backend.

    A processor needs AVX-512 BF16 or AMX instructions, and a backend that uses them: torch and tensorflow do, through
    oneDNN. jax emulates bfloat16 on processors.
    """
    import keras

    backend = keras.config.backend()
    if find_device_name() != "cpu":
        if backend == "torch":
            import torch

            return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False))
        return True
    return backend != "jax" and not {"avx512_bf16", "amx_bf16"}.isdisjoint(list_instructions())


def adds_int8_exactly() -> bool:
    """Returns whether this processor adds products of unsigned and signed 8-bit values without saturating.

    Of the x86 processors, those with VNNI do; the others, and those that do not report their flags, may not. All other
    processors do.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(list_instructions())


def keep_freed_memory() -> bool:
    """Makes glibc's allocator keep freed memory for the next step; returns whether it worked.

    Otherwise it maps and unmaps each large array of a step. On two cores that caused 3,600 page faults and took 4% of a
    training step of 220 ms. Without glibc this function does nothing.
    """
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, Windows no such library
        return False
    # Both as in malloc.h: M_MMAP_THRESHOLD is -3, M_TRIM_THRESHOLD is -1.
    return bool(adjust(-3, 2**30) and adjust(-1, 2**31 - 1))


def measure_rates(call: Callable[[], Any], items: int, repeats: int, seconds: float) -> list[float]:
    """Measures `call`, which processes `items` items and waits for the result, after two calls to warm up.

    Returns:
        items per second, for each of the repeats; a repeat lasts at least `seconds`.
    """
    for _ in range(2):
        call()
    rates = []
    for _ in range(repeats):
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds:
            call()
            done += items
        rates.append(done / spent)
    return rates


@lru_cache(maxsize=1)
def _read_cpuinfo() -> str:
    return _read_text(Path("/proc/cpuinfo"))


def _read_text(path: Path) -> str:
    """Returns the text of a file; empty if it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def find_commit() -> str | None:
    """Returns the revision of the checkout that the package runs from, or None if it is installed without one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
