"""A reward function in its own process: real functions that hang, raise, die, print and start processes."""

import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from rayrlhf import role_logs
from rayrlhf.errors import ConfigError
from rayrlhf.reward_sources.isolated import MAX_LINES, CallFailed, IsolatedFunction
from rayrlhf.score_function import number
from tests.reward_sources.unruly import VALUES


@pytest.fixture
def made():
    """`made(name)` -> the function of unruly.py, started; its process ends with the test."""
    functions = []

    def make(name: str = "score", **options) -> IsolatedFunction:
        functions.append(IsolatedFunction(f"tests.reward_sources.unruly:{name}", **options))
        functions[-1].start()
        return functions[-1]

    yield make
    for function in functions:
        function.close()


def ask(function, *responses, deadline_s=20.0):
    return function(["p"] * len(responses), list(responses), {}, deadline_s)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_gone(pids) -> bool:
    pids = list(pids)
    until = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    return not any(map(is_running, pids))


def test_numbers_come_back_to_the_bit(made) -> None:
    function = made()
    answer = ask(function, "float32", "int64", "0-d", "fraction", "bool", "numpy bool", "seven  ")
    assert answer == [float(np.float32(0.1)), 3.0, 2.5, 0.25, 1.0, 1.0, 7.0] and all(
        type(one) is float for one in answer
    )
    assert ask(function, "ü\ud800\0") == [3.0], "texts that no encoding holds arrive too"
    assert number(torch.tensor(1.5)) == 1.5 and number(torch.tensor(2)) == 2.0
    assert number(torch.tensor(False)) == 0.0 and number(torch.ones(1)).endswith("Tensor")


def test_what_is_no_number_is_shown(made) -> None:
    wrong = [name for name in VALUES if name not in ("float32", "int64", "0-d", "fraction", "bool", "numpy bool")]
    answer = dict(zip(wrong, ask(made(), *wrong), strict=True))
    assert [str(answer.pop(name)) for name in ("nan", "inf", "huge", "over float32")] == ["nan", "-inf", "inf", "1e+39"]
    assert answer == {
        "text": "'1.5', which is of type str",
        "none": "None, which is of type NoneType",
        "decimal": "Decimal('1'), which is of type Decimal",
        "vector": "array([1.]), which is of type ndarray",
    }


@pytest.mark.parametrize(
    ("name", "response", "kind", "told"),
    [
        ("score", "raise", "exception", r"unruly.py.*in score.*KeyError: 'no such word'"),
        ("score", "exit", "exception", "SystemExit: 3"),
        ("short", "short", "count", "1 scores for 2 responses"),
        ("none", "x", "not_number", "it returned None of type NoneType: give a list of numbers"),
        ("by_name", "x", "not_number", "it returned {'x': 1.0} of type dict"),
    ],
)
def test_a_call_that_fails_leaves_the_process_as_it_is(made, name, response, kind, told) -> None:
    function = made(name)
    pid = function._process.pid
    with pytest.raises(CallFailed, match=f"(?s){told}") as error:
        ask(function, response, *["other"] * (name in ("score", "short")))
    assert error.value.kind == kind and "child.py" not in error.value.told, "the traceback is the user's"
    assert function._process.pid == pid
    if name in ("score", "short"):
        assert len(ask(function, "fine")) == 1


@pytest.mark.parametrize(
    ("response", "kind", "told"),
    [
        ("hang", "timeout", "took longer than 0.2 s"),
        ("die", "died", "exit code 7"),
        ("crash", "died", "SIGSEGV"),
    ],
)
def test_a_process_that_hangs_or_dies_is_replaced(made, response, kind, told) -> None:
    function = made()
    ask(function, "a"), ask(function, "b")
    pid = function._process.pid
    with pytest.raises(CallFailed, match=told) as error:
        ask(function, "fine", response, deadline_s=0.2 if kind == "timeout" else 20)
    assert error.value.kind == kind and all_gone([pid])
    function.start()
    assert ask(function, "again") == [5.0]


def test_it_is_killed_from_outside_between_two_calls(made) -> None:
    function = made()
    (worker,) = (int(pid) for pid in _children(function._process.pid))
    os.kill(worker, signal.SIGKILL)
    assert all_gone([worker])
    with pytest.raises(CallFailed, match="SIGKILL: out of memory, or killed from outside"):
        ask(function, "a" * 1_000_000)  # more than a socket takes unread


def test_a_process_that_does_not_read_is_given_up_at_the_deadline(made) -> None:
    function = made()
    (worker,) = (int(pid) for pid in _children(function._process.pid))
    os.kill(worker, signal.SIGSTOP)
    with pytest.raises(CallFailed, match="took longer than 0.2 s") as error:
        ask(function, "a" * 10_000_000, deadline_s=0.2)  # more than a socket takes unread
    assert error.value.kind == "timeout" and all_gone([worker]) and not function._sending.is_alive()
    function.start()
    assert ask(function, "a" * 10_000_000) == [10_000_000.0]


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


@pytest.mark.parametrize("end", ["hang", "die"])
def test_what_it_started_is_killed_with_it(made, tmp_path, end) -> None:
    function = made("spawns")
    path = tmp_path / "pids"
    with pytest.raises(CallFailed, match="exit code 1" if end == "die" else "longer"):
        ask(function, str(path), end, deadline_s=1.0 if end == "hang" else 20)
    assert all_gone(map(int, path.read_text().split()))


def test_it_ends_with_its_actor_even_in_the_middle_of_a_call(tmp_path) -> None:
    path = tmp_path / "pids"
    code = (
        "from rayrlhf.reward_sources.isolated import IsolatedFunction\n"
        "function = IsolatedFunction('tests.reward_sources.unruly:spawns')\n"
        f"function.start()\nfunction(['p'], [{str(path)!r}], {{}}, None)\n"
    )
    actor = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 20
    while not (path.exists() and path.read_text().endswith("\n")) and time.monotonic() < until:
        time.sleep(0.01)
    pids = [int(pid) for pid in path.read_text().split()]
    assert all(map(is_running, pids))
    actor.kill()
    actor.wait()
    assert all_gone(pids)


def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch) -> None:
    (tmp_path / "torn.py").write_text("import no_such_module")
    (tmp_path / "fatal.py").write_text("import os\nos._exit(4)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot import torn .ModuleNotFoundError"):
        IsolatedFunction("torn:f").start()
    with pytest.raises(CallFailed, match="importing it ended its process with exit code 4"):
        IsolatedFunction("fatal:f").start()


def test_the_process_imports_what_the_function_does_and_has_its_threads(tmp_path, monkeypatch) -> None:
    (tmp_path / "light.py").write_text(
        "import os, sys\n"
        "def f(prompts, responses, reference, other=None):\n"
        "    threads = int(os.environ['OMP_NUM_THREADS'])\n"
        "    return [int('torch' in sys.modules), int('ray' in sys.modules), threads]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    function = IsolatedFunction("light:f", threads=3)
    function.start()
    assert function.needed == ("reference",)
    assert function(["p"] * 3, ["r"] * 3, {"reference": [1, 2, 3]}, 20.0) == [0.0, 0.0, 3.0]
    function.close()


def test_what_it_prints_goes_to_the_roles_log(made, tmp_path, monkeypatch) -> None:
    """700 kB in one call hold nothing up, and most of it is left out; the next call has its share again."""
    path = tmp_path / "logs" / "reward-0.log"
    monkeypatch.setenv(role_logs.VARIABLE, str(path))
    function = made()
    for num_calls in (1, 2):
        assert ask(function, "print") == [5.0]
        until = time.monotonic() + 10
        while path.read_text().count("is left out") < num_calls and time.monotonic() < until:
            time.sleep(0.01)
        lines = [line for line in path.read_text().splitlines() if "unruly:score: " in line]
        # what of the first call was still on its way when the second began counts as of the second
        assert (num_calls - 1) * (MAX_LINES + 1) < len(lines) <= num_calls * (MAX_LINES + 1)
        assert lines[0].endswith("x" * 2000) and lines[MAX_LINES].endswith("is left out)")
    for handler in list(logging.getLogger().handlers):
        if getattr(handler, "baseFilename", None) == str(path):
            logging.getLogger().removeHandler(handler)
            handler.close()
