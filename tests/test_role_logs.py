"""What an actor leaves in its log, and what is read out of it."""

from __future__ import annotations

import logging
import re
import time

import pytest

from rayrlhf import role_logs
from rayrlhf.role_logs import Doing, LoggedRole, doing


class Reward(LoggedRole):
    """A role as an actor has it, in this process."""

    def start(self, folder, threads, rows=None):
        return self.check()

    def check(self):
        return "checked"

    def scores(self, rows):
        logging.getLogger("some.library").warning("a library's warning")
        raise ValueError("no such row")

    def _hidden(self):
        return 1


@pytest.fixture
def log(tmp_path, monkeypatch):
    path = tmp_path / "run" / "logs" / "ppo" / "reward-0.log"
    monkeypatch.setenv(role_logs.VARIABLE, str(path))
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # times are UTC wherever it runs
    time.tzset()
    before = list(logging.getLogger().handlers)
    yield path
    monkeypatch.undo()
    time.tzset()
    for handler in set(logging.getLogger().handlers) - set(before):
        if isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
            handler.close()


def test_calls_versions_and_errors_stand_in_it(log):
    role = Reward()
    assert role.start("models/rm", threads=2, rows=[1, 2]) == "checked" and role._hidden() == 1
    with pytest.raises(ValueError, match="no such row"):
        role.scores([1])
    text = log.read_text()
    told = [re.sub(r"^\S+Z ", "", line) for line in text.splitlines()]
    assert re.fullmatch(r"INFO reward-0: process \d+ on \S+, GPUs .*, .*torch 2\.\S+.*", told[0])
    assert told[1] == "INFO begin start(models/rm, threads=2)"
    assert re.fullmatch(r"INFO end start after 0\.\d{3} s", told[2]), "check is a part of it"
    assert told[3:5] == ["INFO begin scores()", "WARNING a library's warning"]
    assert told[5].startswith("ERROR failed scores after 0.") and told[-1] == "ValueError: no such row"
    found = doing("reward-0", text)
    assert (found.call, found.state) == ("scores", "failed") and abs(found.since - time.time()) < 60
    role.start("x", 1)
    assert doing("reward-0", log.read_text()).state == "end", "a call after an error is logged too"


def test_without_the_variable_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(role_logs.VARIABLE, raising=False)
    assert Reward().start("x", 1) == "checked"


def test_what_a_role_does_is_its_last_call():
    lines = ["2026-11-22T10:00:00.500Z INFO begin update(3)", "Traceback of something", "end of it"]
    assert doing("policy-0", "\n".join(lines)) == Doing("policy-0", "update", "begin", 1795341600.5)
    lines.append("2026-11-22T10:00:02.000Z INFO end update after 1.5 s")
    assert doing("policy-0", "\n".join(lines)) == Doing("policy-0", "update", "end", 1795341602.0)
    assert doing("policy-0", "2026-11-22T10:00:00.500Z INFO policy-0: process 1") is None


def test_where_the_files_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert role_logs.file_of("runs/demo/ppo", "policy-0") == f"{tmp_path}/runs/demo/logs/ppo/policy-0.log"
    assert role_logs.file_of("s3://bucket/runs/demo/ppo", "policy-0") is None
