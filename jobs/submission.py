"""Jobs on a cluster, over Ray's Jobs API: `rayrlhf submit`, `jobs`, `logs` and `stop`.

    rayrlhf submit ppo mine.yaml loop.steps=200 --address http://head:8265

is `ray job submit --working-dir . -- python -m jobs.ppo mine.yaml loop.steps=200` with the configuration read before
anything is sent, without runs, environments and history in what is sent, with a name, and with the job's exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import importlib
import io
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jobs.command import INTERRUPTED, USER_ERROR, ToolParser, complain
from rayrlhf.environment import masked
from rayrlhf.errors import ConfigError, ResourceError, UserError
from rayrlhf.profile_steps import OPTION

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
NOT_SUBMITTED = ("generate",)  # answers in the terminal, without a cluster
# relative to the working directory, as .gitignore writes them; Ray leaves out what .gitignore names as well
EXCLUDED = ["/.git", "/.venv", "/runs", "__pycache__", "/.mypy_cache", "/.ruff_cache", "/.pytest_cache"]
STOP_WAIT_S = "300"
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


def run(tool: str, argv: Sequence[str]) -> int:
    """`submit`, `jobs`, `logs` or `stop`; returns the exit code (of `submit` and `logs --follow`: 0 where the
    job succeeded)."""
    try:
        return {"submit": submit, "jobs": list_jobs, "logs": show_logs, "stop": stop}[tool](argv)
    except UserError as error:
        complain(str(error))
        return USER_ERROR


def _parser(tool: str, about: str) -> ToolParser:
    parser = ToolParser(prog=f"rayrlhf {tool}", description=about, allow_abbrev=False)
    parser.add_argument(
        "--address",
        help="the dashboard's URL; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS where it is a URL, or "
        + DEFAULT_ADDRESS,
    )
    return parser


def submit(argv: Sequence[str]) -> int:
    """Send the working directory and start a job in it; follow its logs to its end."""
    parser = _parser("submit", "Run a job on a cluster, in a copy of the working directory.")
    parser.add_argument("job", help="such as ppo or pipeline")
    parser.add_argument("arguments", nargs="*", metavar="CONFIG.yaml | key=value", help="as `rayrlhf JOB` takes them")
    parser.add_argument("--id", help="the job's name; default: run.name, the job and the time")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the logs")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the job's")
    parser.add_argument(OPTION, nargs="?", const="", metavar="STEPS", help="as `rayrlhf JOB` takes it")
    parser.add_argument("--cpus", type=float, help="CPUs that the job's own process reserves (default 0)")
    parser.add_argument("--gpus", type=float, help="GPUs that it reserves (default 0)")
    given = parser.parse_intermixed_args(argv)
    address = dashboard_address(given.address)
    # Ray kills a job 3 seconds after it was asked to stop, before it could end its step and save
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_WAIT_S} | dict(_variable(text) for text in given.env)
    profile = [] if given.profile is None else [f"{OPTION}={given.profile}" if given.profile else OPTION]
    # first: a typo is told as one, whatever its key looks like
    config = _checked(given.job, [*given.arguments, *profile])
    _check_shown(given.arguments)
    run = config.get("run") or {}
    _check_root(run.get("root"), address)
    _check_sent(config)
    name = given.id or "-".join(filter(None, [run.get("name"), given.job, time.strftime("%m%d-%H%M%S")]))
    client = connect(address)
    entrypoint = shlex.join(["python", "-m", f"jobs.{given.job}", *given.arguments, *profile])
    try:
        client.submit_job(
            entrypoint=entrypoint,
            submission_id=name,
            runtime_env={"working_dir": ".", "excludes": EXCLUDED, "env_vars": variables},
            metadata={"job_name": name, "job": given.job, "run": run.get("name") or "", "from": os.getcwd()},
            entrypoint_num_cpus=given.cpus,
            entrypoint_num_gpus=given.gpus,
        )
    except (RuntimeError, ValueError) as error:
        raise ResourceError(f"{address} does not take the job: {error}") from error
    print(f"submitted {name} to {address}: {entrypoint}", flush=True)
    return 0 if given.no_wait else _follow(client, name)


def list_jobs(argv: Sequence[str]) -> int:
    """A table of the cluster's submitted jobs, the newest last."""
    from rich.console import Console
    from rich.table import Table

    given = _parser("jobs", "The cluster's submitted jobs, the newest last.").parse_args(argv)
    found = [job for job in connect(dashboard_address(given.address)).list_jobs() if job.submission_id]
    table = Table("id", "status", "started", "took", "command", box=None, pad_edge=False)
    for job in sorted(found, key=lambda job: job.start_time or 0):
        began = (job.start_time or 0) / 1000
        took = (job.end_time / 1000 if job.end_time else time.time()) - began
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began))
        table.add_row(job.submission_id, job.status.value, started, _duration(took), job.entrypoint)
    Console(width=None if sys.stdout.isatty() else 250).print(table if found else "no job was submitted yet")
    return 0


def show_logs(argv: Sequence[str]) -> int:
    """What a job has printed; with --follow also what it will."""
    parser = _parser("logs", "What a job has printed.")
    parser.add_argument("id")
    parser.add_argument("--follow", action="store_true", help="go on until the job ends, and exit as it did")
    given = parser.parse_intermixed_args(argv)
    client = connect(dashboard_address(given.address))
    _job(client, given.id)
    if given.follow:
        return _follow(client, given.id)
    print(client.get_job_logs(given.id), end="")
    return 0


def stop(argv: Sequence[str]) -> int:
    """Ask a job to end after its step, as Ctrl-C would, and wait until it has; Ray kills one that takes too long."""
    parser = _parser("stop", "End a job; it can be resumed by submitting it again.")
    parser.add_argument("id")
    given = parser.parse_intermixed_args(argv)
    client = connect(dashboard_address(given.address))
    if _job(client, given.id).status.value in TERMINAL:
        raise ConfigError(f"{given.id} has ended already: {_job(client, given.id).status.value}")
    client.stop_job(given.id)
    print(f"asked {given.id} to stop after its current step", flush=True)
    while (status := _job(client, given.id).status.value) not in TERMINAL:
        time.sleep(0.5)
    print(f"{given.id}: {status}")
    return 0


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster at `address`.  Raises ResourceError, with the remedy, where none answers."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        raise ResourceError(
            f"no cluster takes jobs at {address}: {str(error).strip().splitlines()[0]}\nStart one with "
            "`rayrlhf cluster up`, give its dashboard's URL with --address, and where it asks for a token set "
            "RAY_AUTH_MODE=token (the token is in ~/.ray/auth_token or RAY_AUTH_TOKEN)"
        ) from error


def dashboard_address(given: str | None) -> str:
    """The URL that jobs go to: --address, else what the environment names, else this machine's usual one."""
    for address in (given, os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS")):
        if address and "://" in address:
            return address
        if address and address is given:
            raise ConfigError(f"--address={given} is no URL: give the dashboard's, such as {DEFAULT_ADDRESS}")
    return DEFAULT_ADDRESS


def _checked(job: str, arguments: list[str]) -> dict[str, Any]:
    """The configuration, as the job's own command line will read it on the cluster."""
    from jobs.cli import JOBS

    known = [name for name in JOBS if name not in NOT_SUBMITTED]
    if job not in known:
        raise ConfigError(f"no job {job!r} can be submitted; there are {', '.join(known)}")
    for argument in arguments:
        if "=" not in argument and not Path(argument).resolve().is_relative_to(Path.cwd()):
            raise ConfigError(f"{argument} is outside the working directory, which is all that the cluster is sent")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = importlib.import_module(f"jobs.{job}").main([*arguments, "--print-config"])
    if code:
        raise ConfigError(f"nothing was submitted: {job} refuses its configuration (see above)")
    return yaml.safe_load(printed.getvalue()) or {}


def _check_shown(arguments: list[str]) -> None:
    """Raises ConfigError for a secret: a job's command stands in the dashboard, in `rayrlhf jobs` and in Ray's logs."""
    for word in arguments:
        if (shown := masked(word)) != word:
            raise ConfigError(
                f"{shown} holds a secret, and a submitted job's command is shown to all who may see the dashboard: "
                "leave it out and give the job the storage's own variables or files of credentials on the nodes"
            )


def _check_root(root: str | None, address: str) -> None:
    """As the job itself would refuse it.  That an address is this machine's says nothing of where the cluster is: it
    may be a tunnel's end."""
    if root is None or "://" in root or Path(root).is_absolute():
        return
    raise ConfigError(
        f"run.root={root} is relative, but the job runs on {address} in a temporary copy of this directory: set it "
        "to a path or URI on storage that every node sees; for a cluster on this machine run.root=$PWD/runs"
    )


def _check_sent(config: Any, key: str = "") -> None:
    """Raises ConfigError for a value that is a file or folder here and not in what is sent: a run's stage, mostly."""
    parts = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for name, value in parts:
        _check_sent(value, f"{key}.{name}" if key else str(name))
    if not isinstance(config, str) or "/" not in config or Path(config).is_absolute() or not glob.glob(config):
        return
    first = Path(os.path.normpath(config)).parts[:1]
    if first == ("..",) or f"/{''.join(first)}" in EXCLUDED:
        raise ConfigError(
            f"{key}={config} is here, but not in what the cluster is sent (this directory without runs, environments "
            f"and history): give its absolute path, {os.path.abspath(config)}, where every node sees it"
        )


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise ConfigError(f"--env {text}: write NAME=VALUE")
    return name, value


def _follow(client: JobSubmissionClient, name: str) -> int:
    """Print the job's logs until it ends; its exit code.  Ctrl-C leaves it running."""

    async def tail() -> None:
        async for lines in client.tail_job_logs(name):
            print(lines, end="", flush=True)

    try:
        try:
            asyncio.run(tail())
        except (RuntimeError, OSError) as error:
            complain(f"the stream of {name}'s logs was cut ({error}); the job goes on, and is waited for", "warning")
        while (job := _job(client, name)).status.value not in TERMINAL:
            time.sleep(0.2)
    except KeyboardInterrupt:
        print(f"\n{name} goes on; `rayrlhf logs {name} --follow` comes back to it, `rayrlhf stop {name}` ends it")
        return INTERRUPTED
    status = job.status.value
    if status == "SUCCEEDED":
        print(f"{name}: SUCCEEDED")
        return 0
    complain(f"{name}: {status}. {(job.message or '').strip()}", "job")
    return job.driver_exit_code or 1


def _job(client: JobSubmissionClient, name: str) -> Any:
    try:
        return client.get_job_info(name)
    except RuntimeError as error:
        raise ConfigError(f"the cluster knows no job {name}: `rayrlhf jobs` lists them") from error


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
