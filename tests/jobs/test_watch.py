"""`rayrlhf watch` as a command: once, live on a terminal, and refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import cli
from tests.watching.run_files import add_stage, lines, row

ROOT = Path(__file__).parents[2]


def test_where_the_output_is_no_terminal_it_prints_once(tmp_path, monkeypatch, capsys):
    run = tmp_path / "runs" / "mine"
    add_stage(run, "sft", 7)
    add_stage(run, "ppo", 3)
    monkeypatch.chdir(tmp_path)
    for name in ("mine", str(run), "runs/mine/"):
        assert cli.main(["watch", name, "--stage", "sft"]) == 0
        out = capsys.readouterr().out
        assert "runs/mine" in out and "sft" in out and "finished" in out and "\x1b" not in out
    (tmp_path / "mine").mkdir()
    assert cli.main(["watch", "--once", "mine"]) == 0
    assert "nothing here yet" in capsys.readouterr().out, "a folder of that name comes first"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "no run at absent: there is no such folder"),
        ([], "the following arguments are required: run"),
        ([".", "--interval", "0"], "--interval 0: seconds above 0"),
        ([".", "--interval", "soon"], "invalid float value"),
        ([".", "--stage", "ppo"], "--stage ppo: . has no such stage; there are sft"),
    ],
)
def test_mistakes_exit_with_2(tmp_path, monkeypatch, capsys, arguments, message):
    add_stage(tmp_path, "sft", 1)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["watch", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in " ".join(error.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_live_on_a_terminal_until_it_is_interrupted(tmp_path, number):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(lines(row("sft", 1, time.time(), 5)))
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "jobs.cli", "watch", str(tmp_path), "--interval", "0.1"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    try:
        assert "1/5" in (seen := _until(ours, "1/5"))
        assert "\x1b[?1049h" in seen, "the alternate screen"
        with metrics.open("a") as file:
            file.write(lines(row("sft", 2, time.time(), 5)))
        _until(ours, "2/5")
        process.send_signal(number)
        rest = _until(ours, "\x1b[?1049l")  # and back
        assert process.wait(20) == 0 and "Traceback" not in rest
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _until(terminal: int, expected: str) -> str:
    """What the terminal shows up to `expected`."""
    seen = ""
    while expected not in seen:
        try:
            seen += os.read(terminal, 65536).decode(errors="replace")
        except OSError as error:  # its other side was closed
            raise AssertionError(f"no {expected!r} in {seen}") from error
    return seen


def test_it_loads_nothing_heavy():
    code = (
        "import sys; from jobs.watch import watch; watch(['/']); print({'torch', 'ray', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
