"""What a stage records about where it was made."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from rayrlhf import environment
from rayrlhf.checkpoint import StageWriter

ROOT = Path(__file__).parents[1]


def test_a_stage_says_where_and_how_it_was_made(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(environment.COMMAND, "")  # put back afterwards
    words = ["data.train=s3://key:secret@bucket/x y.jsonl", "api_key=a b", "more={token: abc}"]
    environment.remember_command(["rayrlhf", "sft", *words])
    path = StageWriter(f"{tmp_path}/sft", 1).finish("sft", {}, {}, {})
    manifest = json.loads(Path(path, "stage.json").read_text())
    found = manifest["environment"]
    assert found["python"] == platform.python_version() and found["cores"] > 0 and found["memory_gib"] > 0
    assert found["command"] == (
        "rayrlhf sft 'data.train=s3://***@bucket/x y.jsonl' 'api_key=***' 'more={token: ***}'"
    ), "without the credentials"
    assert {"platform", "cpu", "gpus", "commit"} < set(found)
    assert manifest["versions"]["ray"]


def test_without_a_job_there_is_no_command(monkeypatch) -> None:
    monkeypatch.delenv(environment.COMMAND, raising=False)
    assert environment.environment()["command"] is None


def git(*words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *identity, *words], check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_of_the_code_that_runs(tmp_path, monkeypatch) -> None:
    module = tmp_path / "checkout" / "rayrlhf" / "environment.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(environment, "__file__", str(module))
    fresh = environment.commit.__wrapped__
    assert fresh() is None, "no checkout"
    git("init", "-q", str(tmp_path))
    git("-C", str(tmp_path), "commit", "-q", "--allow-empty", "-m", "of another project")
    assert fresh() is None, "a checkout around it is another project's"
    root = str(tmp_path / "checkout")
    git("init", "-q", root)
    assert fresh() is None, "nothing is committed yet"
    git("-C", root, "add", "-A")
    git("-C", root, "commit", "-q", "-m", "first")
    assert fresh() == git("-C", root, "rev-parse", "HEAD")
    module.write_text("# changed")
    assert fresh() == git("-C", root, "rev-parse", "HEAD") + "+"


def test_a_program_that_fails_or_hangs_is_no_error(tmp_path, monkeypatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setattr(environment.shutil, "which", lambda name: str(program))
    for text, found in (
        ("print('H200, 143771 MiB\\nH200, 143771 MiB')", ("H200, 143771 MiB", "H200, 143771 MiB")),
        ("raise SystemExit(9)", ()),
        ("import time; time.sleep(60)", ()),
    ):
        program.write_text(f"#!{sys.executable}\n{text}\n")
        program.chmod(0o755)
        monkeypatch.setattr(environment, "_TIMEOUT_S", 0.2 if "sleep" in text else 30)
        assert environment.gpus() == found


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("model name\t: one\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("model name\t: one\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\nvmx flags\t: ept\n", True),
        ("vmx flags\t: avx512_bf16\nflags\t\t: fpu\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("cpu\t\t: POWER9\n", None),
        (None, None),
    ],
)
def test_a_processor_says_whether_it_has_bfloat16(tmp_path, monkeypatch, text, has) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(environment, "CPU_INFO", path)
    assert environment.cpu_has_bf16() is has
    assert environment.cpu_model() == ("one" if text and "model name" in text else None)
