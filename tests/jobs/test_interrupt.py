"""Ctrl-C ends a run after its step, with a checkpoint, the second time at once; a failing stage; no process is left."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs import cli
from rayrlhf.checkpoint import find_stage

ROOT = Path(__file__).parents[2]
SHORT = "jobs/configs/demo_short.yaml"
PLANTED = "planted5Kq"  # begins each secret, none of which has a form of its own
SECRET_VARIABLES = ("WANDB_API_KEY", "RAYRLHF_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A Ray of the test's own, known by its folder (a short path: Ray's sockets lie in it)."""
    folder = Path(f"/tmp/ray-{secrets.token_hex(3)}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(ray_folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_TMPDIR": str(ray_folder), "PYTHONUNBUFFERED": "1"} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def left(ray_folder: Path) -> list[str]:
    """Processes that belong to the Ray of that folder."""
    found = []
    for process in psutil.process_iter():
        try:
            command, environment = process.cmdline(), process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if environment.get("RAY_TMPDIR") == str(ray_folder) or str(ray_folder) in " ".join(command):
            found.append(" ".join(command)[:100])
    return found


def assert_nothing_left(ray_folder: Path) -> None:
    for _ in range(60):
        if not left(ray_folder):
            return
        time.sleep(0.5)
    raise AssertionError(left(ray_folder))


@pytest.mark.slow
def test_ctrl_c_keeps_finished_stages_and_leaves_no_process(tmp_path, ray_folder):
    job = start(ray_folder, "pipeline", SHORT, f"run.root={tmp_path}")
    assert job.stdout is not None
    seen = []
    for line in job.stdout:
        seen.append(line)
        if "pretrain  3/60" in line:
            break
    else:
        raise AssertionError("".join(seen[-40:]))
    assert left(ray_folder), "the test would not notice a process that stays"
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    rest, _ = job.communicate(timeout=90)
    assert job.returncode == 130, rest
    assert "stopping after this step" in rest and "pretrain: stopped after a whole step, and saved it" in rest
    assert_nothing_left(ray_folder)
    run = tmp_path / "demo-short"
    assert find_stage(f"{run}/prepare").manifest["is_final"]
    cut = find_stage(f"{run}/pretrain").manifest
    assert 3 <= cut["step"] < 60 and not cut["is_final"] and f"pretrain {cut['step'] + 1:>2}/60" not in rest
    assert (run / "report.html").exists() and not list(run.glob(".stop*"))

    again = start(ray_folder, "pipeline", SHORT, f"run.root={tmp_path}")
    assert again.stdout is not None
    for line in again.stdout:
        assert f"pretrain {cut['step']:>2}/60" not in line, "it goes on after the step that was saved"
        if f"pretrain {cut['step'] + 2:>2}/60" in line:
            break
    again.send_signal(signal.SIGINT)
    again.send_signal(signal.SIGTERM)  # the second one ends it at once
    rest, _ = again.communicate(timeout=90)
    assert again.returncode == 130 and "interrupted; finished stages are kept" in rest, rest
    assert_nothing_left(ray_folder)


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_ppo_ends_it(tmp_path, ray_folder, tiny_model):
    """Nor has this real run, whose environment and configuration hold secrets, written or printed one."""
    # Ray Data is still reading prompts then; what it cleans up must not start a Ray of its own
    for file in range(30):
        rows = "".join(f"number {file} {row}\n" for row in range(100))
        (tmp_path / f"prompts-{file}.txt").write_text(rows)
    job = start(
        ray_folder, "ppo", f"run.root={tmp_path}", "run.name=cut", f"policy_model={tiny_model('llama')}",
        "reward_function=tests.jobs.rewards:vowels", "algorithm.estimator=rloo", "algorithm.group_size=4",
        f"prompts.train={tmp_path}/prompts-*.txt", f"prompts.validation={tmp_path}/prompts-0.txt",
        "prompts.max_tokens=40",
        "sampling.max_new_tokens=8", "rollout.engine=transformers", "policy.minibatch=8",
        "loop.rollout_batch=8", "loop.steps=1500", "loop.evaluation_prompts=8",
        f'sampling.stop_strings=["http://me:{PLANTED}url@host/x"]',
        **{name: f"{PLANTED}{name}" for name in SECRET_VARIABLES},
    )  # fmt: skip
    assert job.stdout is not None
    seen = []
    for line in job.stdout:
        seen.append(line)
        if "ppo    3/1500" in line:
            break
    else:
        raise AssertionError("".join(seen[-40:]))
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    rest, _ = job.communicate(timeout=90)
    assert job.returncode == 130, rest
    assert "Exception ignored" not in rest and "Started a local Ray" not in rest, rest
    assert_nothing_left(ray_folder)
    cut = find_stage(f"{tmp_path}/cut/ppo").manifest
    assert cut["step"] >= 3 and not cut["is_final"] and "ppo: stopped after a whole step" in rest
    assert cli.main(["report", f"{tmp_path}/cut"]) == 0
    assert "http://***@host/x" in Path(f"{tmp_path}/cut/ppo/step_{cut['step']:06}/stage.json").read_text()
    assert "http://***@host/x" in Path(f"{tmp_path}/cut/report.html").read_text()
    assert PLANTED not in "".join(seen) + rest
    written = [path for path in (tmp_path / "cut").rglob("*") if path.is_file()]
    found = {path.name: path.read_bytes() for path in written if PLANTED.encode() in path.read_bytes()}
    assert list(found) == ["generation_config.json"], "the model itself needs what it stops at"
    assert found["generation_config.json"].count(PLANTED.encode()) == 1, "and nothing of the environment"


def test_a_failing_stage_is_named_and_leaves_no_process(tmp_path, ray_folder):
    # one row in the middle of the file is wrong: the check of the first rows cannot know it
    rows = ['{"prompt": "a b", "completion": " c"}\n'] * 300
    rows[250] = '{"prompt": "a b"}\n'
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    (tmp_path / "model").mkdir()
    from tests.conftest import _write_model

    _write_model("llama", tmp_path / "model")
    job = start(
        ray_folder, "sft", f"run.root={tmp_path}/runs", "run.name=bad", f"model={tmp_path}/model",
        f"data.train={tmp_path}/rows.jsonl", "data.max_tokens=64",
    )  # fmt: skip
    printed, _ = job.communicate(timeout=120)
    assert job.returncode == 2, printed
    assert "line 251" in printed and "completion" in printed and "Traceback" not in printed
    assert_nothing_left(ray_folder)
    assert not list(Path(tmp_path, "runs").rglob("stage.json"))
