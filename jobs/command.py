"""What every job's command line does: `JOB [CONFIG.yaml] [key=value ...]`, the same for all of them.

    parse -> load -> check -> (print the plan | fit -> join the cluster -> run -> leave it)

Exit codes: 0 done, 2 a `UserError` (one message, no traceback), 130 interrupted, 1 anything else (with its
traceback; where an actor failed again and again, with that of the actor).  Nothing heavy is imported before it is
needed, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from rayrlhf import profile_steps, stopping
from rayrlhf.config import Section, load, to_yaml
from rayrlhf.environment import remember_command
from rayrlhf.errors import ConfigError, GaveUp, Interrupted, UserError
from rayrlhf.profile_steps import Steps
from rayrlhf.redaction import redacted_text
from rayrlhf.run import check_directory
from rayrlhf.trackers.choice import check_trackers

if TYPE_CHECKING:
    from cluster.layout import RolePlan

C = TypeVar("C", bound=Section)

FLAGS = ("--help", "-h", "--print-config", "--dry-run")
TRAINING = ("pretrain", "sft", "reward_model", "dpo", "kto", "ppo")  # the jobs that --profile is for
INTERRUPTED = 130  # the shell's code for SIGINT
USER_ERROR = 2
FAILED = 1
_GROWTH_S = 600.0  # as long a job without a start_deadline_s waits for an autoscaler's nodes
# Ray Data adds advice about retries to what its tasks raise; it does not mend a user's rows
_RETRIES = re.compile(r"\nFailed to .* attempts \(")


class ToolParser(argparse.ArgumentParser):
    """Of a tool such as `rayrlhf submit`, which is no job; its errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. {self.format_usage().strip()}")


@dataclass(frozen=True)
class Arguments:
    """A parsed command line."""

    config: str | None
    overrides: list[str]
    flags: frozenset[str]
    profile: Steps | None = None


@dataclass(frozen=True)
class Made:
    """What a stage is made from: its configuration (with a `run`) and its parents by role."""

    config: Any
    parents: dict[str, str]


@dataclass(frozen=True)
class _Job(Generic[C]):
    name: str
    config_class: type[C]
    check: Callable[[C], None]
    plan: Callable[[C], list[RolePlan] | dict[str, list[RolePlan]]]
    run: Callable[..., Any]
    parents: Callable[[C], dict[str, str]] | None
    stages: Callable[[C], dict[str, Made]] | None
    cluster: bool
    steps: Callable[[C], int | None] | None

    def made(self, config: Any) -> dict[str, Made]:
        """The stages that the job makes, by name."""
        if self.parents is not None:
            return {self.name: Made(config, self.parents(config))}
        return self.stages(config) if self.stages is not None else {}


def main(
    name: str,
    config_class: type[C],
    check: Callable[[C], None],
    plan: Callable[[C], list[RolePlan] | dict[str, list[RolePlan]]],
    run: Callable[..., Any],
    argv: Sequence[str] | None = None,
    *,
    parents: Callable[[C], dict[str, str]] | None = None,
    stages: Callable[[C], dict[str, Made]] | None = None,
    cluster: bool = True,
    steps: Callable[[C], int | None] | None = None,
) -> int:
    """Runs the job `name` with `argv` (default: the process's arguments); returns the exit code.

    `check` and `plan` (one stage's roles, or each stage's by name) start nothing; `run` finds Ray
    connected when `cluster` is true.  A job that makes the stage `name` gives its `parents`: it is
    not run again where that stage is finished, and refused where one of other inputs is.  One that makes
    several says so with `stages`.  One that trains says with `steps` how many it takes (None: its rows decide); its
    `run` is then given `profile`, a `Steps`, where --profile asks for it.
    """
    with _interruptible() as listen:
        try:
            return _main(_Job(name, config_class, check, plan, run, parents, stages, cluster, steps), argv, listen)
        except Interrupted as error:
            complain(str(error), "stopped")
            return INTERRUPTED
        except KeyboardInterrupt:
            kept = "; finished stages are kept" if "run" in config_class.model_fields else ""
            complain(f"{name}: interrupted{kept}", "stopped")
            return INTERRUPTED
        except GaveUp as error:  # its text holds the traceback of the actor that failed; this process's says nothing
            complain(str(error))
            return FAILED
        except Exception as error:
            cause = user_error(error)
            if cause is None:
                raise
            complain(_RETRIES.split(str(cause))[0])
            return USER_ERROR


def parse(argv: Sequence[str]) -> Arguments:
    """Splits a command line into the configuration file, the overrides and the flags; raises ConfigError."""
    files, overrides, flags, profile = [], [], set(), None
    words = list(argv)
    while words:
        argument = words.pop(0)
        option, has_value, value = argument.partition("=")
        if option == profile_steps.OPTION:
            # the word after it is its value unless it is something else
            is_next = not has_value and words and _is_value(words[0])
            profile = profile_steps.parse(words.pop(0) if is_next else value if has_value else None)
        elif argument.startswith("-"):
            if argument not in FLAGS:
                known = (*FLAGS, profile_steps.OPTION)
                near = difflib.get_close_matches(argument, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
                plain = argument.lstrip("-")
                written = plain if "=" in plain else "key=value"
                raise ConfigError(f"unknown option {argument}; {hint} Settings are written without dashes: {written}")
            flags.add(argument)
        elif "=" in argument:
            overrides.append(argument)
        else:
            files.append(argument)
    if len(files) > 1:
        raise ConfigError(f"one configuration file is taken, got {', '.join(files)}; settings are key=value")
    return Arguments(files[0] if files else None, overrides, frozenset(flags), profile)


def _is_value(word: str) -> bool:
    """Whether a word after --profile can only be meant for it."""
    return not word.startswith("-") and "=" not in word and not word.endswith((".yaml", ".yml"))


def user_error(error: BaseException | None, depth: int = 10) -> UserError | None:
    """The `UserError` that `error` is or was caused by, in this process or a remote one; else None.

    Ray wraps what a task or actor raised (`.cause`), Ray Train what its workers raised
    (`.worker_failures`, `.controller_failure`); Python chains by `__cause__`.
    """
    if error is None or depth == 0:
        return None
    # Ray's wrapper is an instance of both classes, but its text is the remote traceback: look inside first.
    inner = [getattr(error, "cause", None), getattr(error, "controller_failure", None), error.__cause__]
    inner += list(getattr(error, "worker_failures", {}).values())
    for cause in inner:
        found = user_error(cause, depth - 1) if isinstance(cause, BaseException) else None
        if found is not None:
            return found
    return error if isinstance(error, UserError) else None


def complain(message: str, label: str = "error") -> None:
    """One message on stderr."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble((f"{label}: ", "bold red"), redacted_text(message)), highlight=False)


def _main(job: _Job[C], argv: Sequence[str] | None, listen: Callable[[], None]) -> int:
    given = sys.argv[1:] if argv is None else argv
    arguments = parse(given)
    if arguments.flags & {"--help", "-h"}:
        from rayrlhf.config_help import help_text

        print(help_text(job.config_class, job.name, job.steps is not None))
        return 0
    config = load(job.config_class, arguments.config, arguments.overrides)
    if arguments.profile is not None:
        _check_profiled(job, config, arguments.profile)
    if "--print-config" in arguments.flags:
        print(to_yaml(config), end="")
        return 0
    remember_command(["rayrlhf", job.name, *given])
    is_dry = "--dry-run" in arguments.flags
    run = getattr(config, "run", None)  # serve writes no run
    if run is not None:
        check_directory(run)
        check_trackers(run)
    job.check(config)
    if job.cluster:
        return (_dry_run if is_dry else partial(_run_on_cluster, listen=listen))(job, config, arguments.profile)
    if is_dry:
        print(f"{job.name}: the configuration is right; runs in this process, without a cluster")
    else:
        job.run(config)
    return 0


def _check_profiled(job: _Job[C], config: C, profile: Steps) -> None:
    """ConfigError where the job takes no steps, or not these."""
    if job.steps is None:
        more = (
            ". Run its stages one by one: `--print-config` shows each stage's configuration"
            if job.name == "pipeline"
            else ""
        )
        raise ConfigError(
            f"{profile_steps.OPTION} is for one stage that trains ({', '.join(TRAINING)}), not for {job.name}{more}"
        )
    profile.check(job.name, job.steps(config))


def _check_reached(job: _Job[C], config: Any, profile: Steps) -> None:
    """ConfigError where the stage that is there has these steps behind it."""
    from rayrlhf import lineage

    if job.parents is None:
        return
    found = lineage.check(config.run.stage(job.name), config, job.parents(config))
    if found.state == "finished" and found.stage is not None:
        raise ConfigError(
            f"{profile_steps.OPTION} {profile}: {found.stage.path} is finished, and not made again: there is nothing "
            "to profile. Give another run.name"
        )
    if found.state == "unfinished" and found.stage is not None:
        profile.check(job.name, None, done=found.stage.manifest["step"])


def _dry_run(job: _Job[C], config: C, profile: Steps | None) -> int:
    from cluster import bring_up, growth
    from cluster.layout import places, render

    plans, nodes = _plan(job, config), bring_up.planned_nodes()
    for stage, roles in plans.items():
        print(f"{stage}:\n{render(roles, nodes)}\n")
    lacking = [roles for roles in plans.values() if places(roles, nodes)[1] is not None]
    most = growth.planned_most() if lacking else None
    for stage, roles in plans.items():
        if growth.needs_growth(roles, nodes, most):
            print(f"{stage}: would need growth: the autoscaler may bring the nodes it lacks")
    _check_shared(config, plans, len(most or nodes))
    for stage, made in job.made(config).items():
        print(f"{stage}: {_would_do(stage, made)}")
    if profile is not None:
        _check_reached(job, config, profile)
        print(f"{job.name}: step {profile} would be profiled")
    return 0


def _would_do(stage: str, made: Made) -> str:
    """What a run would do with the stage that is there, if one is."""
    from rayrlhf import lineage

    found = lineage.check(made.config.run.stage(stage), made.config, made.parents)
    if found.stage is None:
        return "would be made"
    if found.torn and found.state != "changed":
        return f"{', '.join(found.torn)} torn: would go on from step {found.stage.manifest['step']}, which is whole"
    words = {
        "finished": "there already, made from the same inputs: would not be made again",
        "unfinished": f"was cut off: would go on from step {found.stage.manifest['step']}",
        "changed": f"was made from other inputs ({'; '.join(found.differences[:3])}): would be replaced",
    }
    return words[found.state]


def _run_on_cluster(job: _Job[C], config: C, profile: Steps | None, listen: Callable[[], None]) -> int:
    from cluster import bring_up
    from cluster.layout import fits
    from cluster.placement import grow

    plans = _plan(job, config)
    if profile is not None:
        _check_reached(job, config, profile)
    if job.parents is not None and _is_finished(job.name, config, job.parents(config)):
        return 0
    if "RAY_ADDRESS" not in os.environ:
        for roles in plans.values():
            fits(roles, bring_up.planned_nodes())  # before a local cluster is started for nothing
    # DeepSpeed calls ninja, which pip puts beside python: not on PATH unless the environment is activated
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    try:
        bring_up.connect(_metadata(job.name, config))
        listen()  # Ray has put its own handler in place
        for roles in plans.values():
            grow(roles, getattr(config, "start_deadline_s", _GROWTH_S))
        _check_shared(config, plans, len(bring_up.nodes()))
        _run(job, config, profile)
    except BaseException as error:
        _let_go(error)
        raise
    finally:
        with _deaf():
            bring_up.disconnect()
    return 0


def _run(job: _Job[C], config: Any, profile: Steps | None) -> None:
    if profile is None:
        job.run(config)
        return
    where, is_whole = profile.folder(config.run.directory, job.name), False
    try:
        job.run(config, profile=profile)
        is_whole = True
    finally:  # it may be stopped after the steps that were wanted
        told = profile_steps.told(where, profile)
        if told or is_whole:
            print(told or f"profile: none, as {job.name} ended before step {profile.last}", flush=True)


def _check_shared(config: Any, plans: dict[str, list[RolePlan]], num_nodes: int) -> None:
    """What is read from an object store comes to a folder of one node, and what is written goes through one.  Raises
    ConfigError where actors may be on several."""
    root = config.run.root if getattr(config, "run", None) is not None else ""
    roles = [role.name for plan in plans.values() for role in plan]
    if "://" in root and num_nodes > 1 and roles:
        raise ConfigError(
            f"run.root={root} is an object store, and {roles[0]} may be on any of the {num_nodes} nodes: models come "
            "to one node, and its part of a checkpoint would stay on its own. Put run.root on a file system that all "
            "nodes share, or use a cluster of one node"
        )


def _metadata(name: str, config: Any) -> dict[str, str]:
    """What the dashboard says of the job; `config` is a hash, equal where configurations are."""
    run = getattr(config, "run", None)
    found = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]
    named = run.name if run is not None else ""
    # the dashboard shows job_name
    return {"job_name": "/".join(filter(None, [named, name])), "job": name, "run": named, "config": found}


def _let_go(error: BaseException | None) -> None:
    """Closes what the frames that `error` left still hold, such as a half-read data set, while Ray is there."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _is_finished(name: str, config: Any, parents: dict[str, str]) -> bool:
    from rayrlhf import lineage

    found = lineage.check(config.run.stage(name), config, parents)
    if found.state == "finished" and found.stage is not None:
        print(f"{name}: there already, made from the same inputs: {found.stage.path}")
    return found.state == "finished"


def _plan(job: _Job[C], config: C) -> dict[str, list[RolePlan]]:
    """The plans, by stage, of a run whose results will not be lost; stages run one after the other."""
    from cluster import bring_up

    run = getattr(config, "run", None)  # serve writes no run
    if run is not None:
        bring_up.check_run_root(run.root)
    plans = job.plan(config)
    return plans if isinstance(plans, dict) else {job.name: plans}


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """SIGTERM (`ray job stop`) stops a job as Ctrl-C does: a loop of steps after its step, everything else and at the
    second time at once.  Yields a way to listen again."""
    if threading.current_thread() is not threading.main_thread():  # signals reach only the main thread
        yield lambda: None
        return

    def interrupt(number: int, frame: object) -> None:
        if not stopping.request():
            raise KeyboardInterrupt
        # a handler may come in the middle of a print, so it does not
        os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once\n")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def listen() -> None:
        for number in before:
            signal.signal(number, interrupt)

    listen()
    try:
        yield listen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C while leaving would strand processes; unlike SIG_IGN, a handler is not inherited."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def wait(number: int, frame: object) -> None:
        complain("leaving the cluster, a moment", "interrupted")

    before = {number: signal.signal(number, wait) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
