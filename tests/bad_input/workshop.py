"""A folder in which mistakes are made: small real models, rows and a stage, and the command line a user has."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from rayrlhf.checkpoint import StageWriter

ROWS = 80  # more than a minibatch has
GIB = 2**30
NODE = {"CPU": 4.0, "memory": 20.0 * GIB, "object_store_memory": 2.0 * GIB}  # whatever machine makes the table


@dataclass(frozen=True)
class Answer:
    """What a user gets: exit code (or HTTP status), the message, and whether a cluster was asked for."""

    code: int
    message: str
    out: str = ""
    started: bool = False
    error: dict[str, Any] = field(default_factory=dict)  # of a server: OpenAI's error object


class Started(BaseException):
    """Raised in the place of Ray's start: all that can be known before has been looked at."""


class Workshop:
    """One mistake's folder, the working directory; `made` is shared and never written to."""

    def __init__(self, made: Path, folder: Path, server: Callable[[], Callable[..., Any]]) -> None:
        """`server()`: what sends a request to a server of the shared models, which starts with the first."""
        self.made, self.folder, self.server = made, folder, server
        for entry in made.iterdir():
            (folder / entry.name).symlink_to(entry)

    def write(self, name: str, content: str | bytes | list[Any]) -> str:
        """A file of text, bytes, or rows, one a line; returns `name`."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    def copy(self, name: str, new: str) -> Path:
        """A copy of one of the shared folders that may be spoilt."""
        return Path(shutil.copytree(self.made / name, self.folder / new))

    def change(self, path: str, **changes: Any) -> None:
        """Set keys of a JSON file; None takes one out."""
        file = self.folder / path
        content = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    def run(self, *argv: str, stdin: str = "", **environment: str) -> Answer:
        """`rayrlhf ARGV` in this process, up to where it would reach for a cluster."""
        from jobs import cli

        out, err, path, started = io.StringIO(), io.StringIO(), list(sys.path), False
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch("ray.init", side_effect=Started),
            mock.patch("cluster.bring_up.local_node", return_value=NODE),
            mock.patch("sys.stdin", io.StringIO(stdin)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                code = cli.main(argv)
            except Started:
                code, started = 0, True
            except SystemExit as error:
                code = int(error.code or 0)
            finally:
                sys.path[:] = path
        return Answer(code, self.told(err.getvalue()), self.told(out.getvalue()), started)

    def told(self, text: str) -> str:
        """A message as the table shows it: the same on every machine."""
        for folder in dict.fromkeys([str(self.folder), str(self.made), os.path.realpath(self.folder)]):
            text = text.replace(f"{folder}/", "").replace(folder, "FOLDER")
        # libraries draw bars, where they were loaded before a job could tell them not to
        return "\n".join(line for line in text.split("\n") if "\r" not in line).strip()

    def renamed(self, answer: Answer, name: str, shown: str) -> Answer:
        """`answer` with something that is new each time under a name that stays."""
        return replace(answer, message=answer.message.replace(name, shown))

    def own_runs(self) -> Path:
        """The stage runs/done/sft as a copy that may be spoilt; returns its step's folder."""
        (self.folder / "runs").unlink()
        return self.copy("runs", "runs") / "done/sft/step_000003"


@contextlib.contextmanager
def workshops() -> Iterator[Callable[[], contextlib.AbstractContextManager[Workshop]]]:
    """Yields what opens a workshop; all lie in one temporary folder."""
    with tempfile.TemporaryDirectory(prefix="bad-input-") as root, contextlib.ExitStack() as open_ones:
        made = Path(root, "made")
        made.mkdir()
        _make(made)

        @functools.cache
        def server() -> Callable[..., Any]:
            from tests.bad_input.server import client

            return open_ones.enter_context(client(str(made / "judge")))

        @contextlib.contextmanager
        def opened() -> Iterator[Workshop]:
            folder, before = Path(tempfile.mkdtemp(dir=root)), os.getcwd()
            with mock.patch.dict(os.environ):
                for name in [name for name in os.environ if name.startswith(("RAY_", "WANDB_", "MLFLOW_"))]:
                    del os.environ[name]
                os.chdir(folder)
                try:
                    yield Workshop(made, folder, server)
                finally:
                    os.chdir(before)

        yield opened


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make(made: Path) -> None:
    """llama/ and judge/ (a reward model), rows of every kind, and the finished stage runs/done/sft."""
    import torch

    from rayrlhf.models.causal_lm import load_tokenizer, save
    from rayrlhf.models.scalar import load_scalar
    from tests.conftest import _write_model

    llama = str(_write_model("llama", made / "llama"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(load_scalar(llama), load_tokenizer(llama), str(made / "judge"))
    numbers = range(ROWS)
    rows = {
        "sft": [{"prompt": f"number {n}", "completion": f" is {n}."} for n in numbers],
        "pairs": [{"prompt": f"number {n}", "chosen": f" is {n}.", "rejected": " is not."} for n in numbers],
        "prompts": [{"prompt": f"number {n}"} for n in numbers],
        "texts": [{"text": f"number {n} is {n}."} for n in numbers],
    }
    for name, given in rows.items():
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    writer = StageWriter(str(made / "runs/done/sft"), step=3)
    shutil.copytree(llama, writer.model_dir, dirs_exist_ok=True)
    writer.finish("sft", {"run": {"name": "done"}, "model": "llama"}, {}, {"eval/loss": 1.0})
