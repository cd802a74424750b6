"""The shared command line: what is parsed, printed, started and left, and with which exit code."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import Field

from cluster import bring_up
from cluster.layout import PoolPlan, RolePlan
from cluster.memory import Memory
from jobs import cli, command
from rayrlhf.checkpoint import StageWriter
from rayrlhf.config import Section, load
from rayrlhf.environment import COMMAND
from rayrlhf.errors import ConfigError, DataError, ModelError, ResourceError, RoleError
from rayrlhf.profile_steps import Steps
from rayrlhf.run import RunConfig

ROOT = Path(__file__).parents[2]


class Config(Section):
    """A job that does nothing."""

    run: RunConfig = Field(default=RunConfig(name="demo"), description="which run")
    cpus: float = Field(default=1.0, description="how many it asks for")


@pytest.fixture(autouse=True)
def command_line(monkeypatch) -> None:
    """Put back what a job remembers as its command line."""
    monkeypatch.setenv(COMMAND, "")


def plan(config: Config) -> list[RolePlan]:
    pool = PoolPlan("all", 1, config.cpus, 0.0, "PACK")
    return [RolePlan("policy", 1, config.cpus, 0.0, Memory(0.5), 1, pool, (0,))]


def nothing(config: Config) -> None:
    pass


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What happened, in order; no Ray is started."""
    happened: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(bring_up, "connect", lambda metadata: happened.append("connect"))
    monkeypatch.setattr(bring_up, "disconnect", lambda: happened.append("disconnect"))
    monkeypatch.setattr(bring_up, "nodes", lambda: [{"CPU": 4.0, "memory": 8.0 * 2**30}])
    monkeypatch.setattr(bring_up, "planned_nodes", lambda: [{"CPU": 4.0, "memory": 8.0 * 2**30}])
    return happened


def job(calls: list[str], *argv: str, check=nothing, fail: BaseException | None = None, **options) -> int:
    def run(config: Config) -> None:
        calls.append(f"run {config.run.name}")
        if fail is not None:
            raise fail

    return command.main("job", Config, check, plan, run, argv, **options)


def test_the_command_line_is_remembered_for_the_stages(calls):
    assert job(calls, "run.name=a", "cpus=1.5") == 0
    assert os.environ[COMMAND] == "rayrlhf job run.name=a cpus=1.5"


# ---- the command line ------------------------------------------------------------------------------


def test_parse():
    arguments = command.parse(["run.seed=1", "c.yaml", "--dry-run", "note=a.yaml"])
    assert arguments == command.Arguments("c.yaml", ["run.seed=1", "note=a.yaml"], frozenset({"--dry-run"}))


@pytest.mark.parametrize(
    ("argv", "steps", "rest"),
    [
        (["--profile"], Steps(3, 3), []),
        (["--profile", "7"], Steps(7, 7), []),
        (["--profile=5-6", "a=1"], Steps(5, 6), ["a=1"]),
        (["a=1", "--profile", "5-6", "--dry-run"], Steps(5, 6), ["a=1"]),
        (["--profile", "a=1"], Steps(3, 3), ["a=1"]),
        (["--profile", "--dry-run"], Steps(3, 3), []),
        ([], None, []),
    ],
)
def test_the_word_after_profile_is_its_value_unless_it_is_something_else(argv, steps, rest):
    arguments = command.parse(argv)
    assert (arguments.profile, arguments.overrides, arguments.config) == (steps, rest, None)
    assert command.parse(["--profile", "c.yaml"]) == command.Arguments("c.yaml", [], frozenset(), Steps(3, 3))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--profile", "fast"], "--profile fast: give a step or the first and the last one"),
        (["--profile="], "--profile : give a step"),
        (["a.yaml", "b.yaml"], "one configuration file is taken, got a.yaml, b.yaml"),
        (["--dryrun"], "did you mean --dry-run?"),
        (["--run.seed=1"], "without dashes: run.seed=1"),
    ],
)
def test_parse_refuses(argv, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        command.parse(argv)


def test_help_and_print_config_start_nothing(calls, capsys):
    assert job(calls, "--help") == 0
    assert "run.seed  (int)  = 0" in capsys.readouterr().out
    assert job(calls, "--print-config", "run.seed=3") == 0
    run = "run:\n  name: demo\n  root: runs\n  seed: 3\n  when_changed: refuse\n  trackers:\n  - tensorboard\n"
    assert capsys.readouterr().out == f"{run}cpus: 1.0\n"
    assert calls == []


def test_dry_run_shows_the_plan(calls, capsys):
    assert job(calls, "--dry-run") == 0
    assert "policy" in capsys.readouterr().out
    assert job(calls, "--dry-run", "cpus=64") == 2
    captured = capsys.readouterr()
    assert "64" in captured.out and captured.err.startswith("error: ")
    assert calls == []


# ---- running ---------------------------------------------------------------------------------------


def profiled(config: Config, profile: Steps | None = None) -> str:
    """A job that takes four steps, and leaves a trace."""
    folder = Path(profile.folder(config.run.directory, "job"))
    folder.mkdir(parents=True)
    for name in ("policy-0.json.gz", "policy-0.txt", "ray_timeline.json.gz"):
        (folder / name).touch()
    return str(folder)


def test_a_profile_is_given_to_the_job_and_told_at_its_end(calls, tmp_path, capsys):
    def start(*argv: str) -> int:
        given = [f"run.root={tmp_path}", *argv]
        return command.main("job", Config, nothing, plan, profiled, given, steps=lambda config: 4)

    assert start("--profile", "2-4") == 0
    folder = tmp_path / "demo" / "profile" / "job" / "step_000002_to_000004"
    out = capsys.readouterr().out
    assert f"profile of step 2-4: {folder}\n" in out
    assert "traces: policy-0.json.gz, ray_timeline.json.gz: open one at https://ui.perfetto.dev" in out
    assert "took most: policy-0.txt" in out
    assert start("--profile", "--dry-run") == 0 and "job: step 3 would be profiled" in capsys.readouterr().out
    assert start("--profile", "4-5") == 2
    assert "--profile 4-5: job takes 4 steps. Give steps from 1 to 4" in capsys.readouterr().err
    assert job(calls, "--profile") == 2
    assert "--profile is for one stage that trains (pretrain, sft, " in capsys.readouterr().err
    assert calls == ["connect", "disconnect"], "the others were refused before"


def test_a_profile_without_files_is_said_to_be_none(calls, tmp_path, capsys):
    given = [f"run.root={tmp_path}", "--profile"]
    ended = command.main("job", Config, nothing, plan, lambda config, profile: None, given, steps=lambda config: None)
    assert ended == 0 and "profile: none, as job ended before step 3" in capsys.readouterr().out


def test_what_is_behind_a_stage_cannot_be_profiled(calls, tmp_path, capsys):
    given = [f"run.root={tmp_path}", "--profile"]
    config = load(Config, None, given[:1])

    def start() -> str:
        options = {"parents": lambda config: {}, "steps": lambda config: None}
        assert command.main("job", Config, nothing, plan, profiled, given, **options) == 2
        return capsys.readouterr().err

    described = config.model_dump(mode="json")
    StageWriter(config.run.stage("job"), 3).finish("job", described, {}, {}, is_final=False)
    assert "--profile 3: job goes on after step 3 (without a value it is step 3). Give later steps" in start()
    StageWriter(config.run.stage("job"), 4).finish("job", described, {}, {})
    assert "is finished, and not made again" in start()
    assert calls == []


def test_run_is_between_connect_and_disconnect(calls):
    assert job(calls, "run.name=x") == 0
    assert calls == ["connect", "run x", "disconnect"]


def test_without_a_cluster(calls):
    assert job(calls, cluster=False) == 0
    assert calls == ["run demo"]
    assert job(calls, "--dry-run", cluster=False) == 0
    assert calls == ["run demo"]


def test_too_much_is_refused_before_anything_starts(calls, capsys):
    assert job(calls, "cpus=64") == 2
    assert calls == [] and "64" in capsys.readouterr().err


def test_check_comes_first(calls, capsys):
    def check(config: Config) -> None:
        raise DataError("train.jsonl is empty")

    assert job(calls, check=check) == 2
    assert calls == [] and capsys.readouterr().err == "error: train.jsonl is empty\n"


def test_relative_root_in_a_submitted_job(calls, capsys, monkeypatch):
    monkeypatch.setattr(bring_up, "in_submitted_job", lambda: True)
    assert job(calls) == 2
    assert calls == [] and "run.root=$PWD/runs" in capsys.readouterr().err
    assert job(calls, "run.root=/shared/runs") == 0


def test_actors_on_several_nodes_do_not_use_an_object_store():
    pool = PoolPlan("all", 2, 1.0, 0.0, "PACK")
    role = RolePlan("policy", 2, 1.0, 0.0, Memory(0.5, optimizer=1.0), 1, pool, (0, 1))
    there = Config(run=RunConfig(name="demo", root="s3://bucket/runs"))
    command._check_shared(there, {"ppo": [role]}, 1)
    command._check_shared(there, {"prepare": []}, 2)
    command._check_shared(Config(), {"ppo": [role]}, 2)
    with pytest.raises(
        ConfigError, match="run.root=s3://bucket/runs is an object store, and policy may be on any of the 2"
    ):
        command._check_shared(there, {"prepare": [], "ppo": [role]}, 2)


def test_user_errors_are_one_message_and_the_cluster_is_left(calls, capsys):
    assert job(calls, fail=ModelError("no [tokenizer] in the folder")) == 2
    assert calls == ["connect", "run demo", "disconnect"]
    assert capsys.readouterr().err == "error: no [tokenizer] in the folder\n"


def test_other_errors_keep_their_traceback(calls):
    with pytest.raises(ZeroDivisionError):
        job(calls, fail=ZeroDivisionError())
    assert calls[-1] == "disconnect"


def test_interrupt_leaves_the_cluster(calls):
    assert job(calls, fail=KeyboardInterrupt()) == 130
    assert calls[-1] == "disconnect"


def test_own_signal_handlers_come_back(calls):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    job(calls)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# ---- errors from other processes -------------------------------------------------------------------


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_user_error_is_found_inside_rays_errors():
    from ray.exceptions import RayTaskError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    user = ModelError("the model folder has no tokenizer")
    remote = RayTaskError("load", "Traceback ...", user).as_instanceof_cause()
    assert isinstance(remote, ModelError)  # and its text is the traceback
    for error in [
        user,
        remote,
        WorkerGroupError("worker 1 failed", {1: remote}),
        ControllerError(WorkerGroupError("worker 0 failed", {0: user})),
        caused(RoleError("policy.update: Traceback ..."), remote),
    ]:
        found = command.user_error(error)
        assert found is not None and str(found) == "the model folder has no tokenizer", error
    assert command.user_error(RoleError("policy died")) is None
    assert command.user_error(caused(ValueError(), KeyError())) is None


def test_user_error_from_a_real_actor(ray_local):
    import ray

    def fail() -> None:
        raise ResourceError("asked for 3, there are 2")

    with pytest.raises(ResourceError) as caught:
        ray.get(ray.remote(fail).options(num_cpus=0.1).remote())
    assert "Traceback" in str(caught.value) or "ray::" in str(caught.value)
    assert str(command.user_error(caught.value)) == "asked for 3, there are 2"


# ---- processes -------------------------------------------------------------------------------------

SLEEPER = """
import sys, time
from cluster import bring_up
from jobs import command
from rayrlhf.checkpoint import StageWriter
from rayrlhf.config import Section, load

def connect(metadata):
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as ray.init does
    print("connected", flush=True)

bring_up.connect = connect
bring_up.disconnect = lambda: (time.sleep(0.5), print("disconnected", flush=True))
bring_up.nodes = lambda: [{"CPU": 4.0, "memory": 2.0**34}]

def run(config):
    print("running", flush=True)
    time.sleep(60)

sys.exit(command.main("sleeper", Section, lambda c: None, lambda c: [], run, []))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_a_job_cleanly(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(2)]
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)  # a second one does not cut the leaving short
    out, err = process.communicate(timeout=30)
    assert lines == ["connected", "running"] and out.strip() == "disconnected"
    assert process.returncode == 130
    assert "sleeper: interrupted" in err and "Traceback" not in err


@pytest.mark.parametrize("name", cli.JOBS)
def test_every_job_has_main_and_quick_help(name):
    module = f"jobs.{name}"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    elapsed = time.perf_counter() - start
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"usage: rayrlhf {name} [CONFIG.yaml] [key=value ...]")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    heavy = imported & {"torch", "ray", "vllm", "deepspeed", "transformers", "numpy", "pyarrow", "datasets"}
    assert not heavy, f"{module} --help imports {heavy}"
    assert elapsed < 5.0  # about half a second on a quiet machine
    assert callable(importlib.import_module(module).main)


# ---- rayrlhf ---------------------------------------------------------------------------------------


def test_cli(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "rayrlhf 0.1.0\n"
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    assert all(name in usage for name in [*cli.JOBS, "doctor"])
    assert cli.main(["ppp"]) == 2
    assert "did you mean ppo?" in capsys.readouterr().err


def test_cli_passes_arguments_on(monkeypatch):
    seen: list[list[str]] = []
    fake = type(sys)("jobs.sft")
    fake.main = lambda argv: seen.append(argv) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jobs.sft", fake)
    assert cli.main(["sft", "c.yaml", "run.seed=1"]) == 7
    assert seen == [["c.yaml", "run.seed=1"]]


def test_version_is_the_installed_one():
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("rayrlhf") == "0.1.0"
    except PackageNotFoundError:
        pytest.skip("not installed; `make venv` installs it")


def test_every_job_file_is_known():
    files = [path for path in (ROOT / "jobs").glob("*.py") if "\ndef main(" in path.read_text()]
    assert {path.stem for path in files} - {"cli", "command"} == set(cli.JOBS)


def test_a_finished_stage_is_not_made_again(calls, tmp_path, capsys):
    given = ["run.name=demo", f"run.root={tmp_path}"]
    config = load(Config, None, given)
    path = StageWriter(config.run.stage("job"), 1).finish("job", config.model_dump(mode="json"), {}, {})
    assert job(calls, *given, parents=lambda config: {}) == 0
    assert calls == [] and f"there already, made from the same inputs: {path}" in capsys.readouterr().out
    assert job(calls, *given, "cpus=2", parents=lambda config: {}) == 2
    assert calls == [] and "cpus: 1.0 -> 2.0" in capsys.readouterr().err
    assert job(calls, *given, "cpus=2", "run.when_changed=replace", parents=lambda config: {}) == 0
    assert calls == ["connect", "run demo", "disconnect"]


def test_a_dry_run_says_what_would_become_of_the_stage(calls, tmp_path, capsys):
    given = ["run.name=demo", f"run.root={tmp_path}", "--dry-run"]

    def said(*more: str) -> str:
        assert job(calls, *given, *more, parents=lambda config: {}) == 0 and calls == []
        return capsys.readouterr().out.splitlines()[-1]

    assert said() == "job: would be made"
    config = load(Config, None, given[:2])
    writer = StageWriter(config.run.stage("job"), 7)
    writer.finish("job", config.model_dump(mode="json"), {}, {}, is_final=False)
    assert said() == "job: was cut off: would go on from step 7"
    StageWriter(config.run.stage("job"), 8).finish("job", config.model_dump(mode="json"), {}, {})
    assert said() == "job: there already, made from the same inputs: would not be made again"
    replaced = said("cpus=2", "run.when_changed=replace")
    assert replaced == "job: was made from other inputs (cpus: 1.0 -> 2.0): would be replaced"
    assert job(calls, *given, "cpus=2", parents=lambda config: {}) == 2, "as the run itself would be"


def test_what_a_failed_run_still_reads_is_closed_before_the_cluster_is_left(monkeypatch):
    # Ray Data's reading threads would go on, and end the process at once where Ray has gone
    events: list[str] = []

    def rows():
        try:
            yield from range(10)
        finally:
            events.append("closed")

    def run(config: Config) -> None:
        kept = rows()
        try:
            raise ValueError(f"row {next(kept)}")
        except ValueError as error:
            raise DataError("the first row is wrong") from error

    monkeypatch.setattr(bring_up, "connect", lambda metadata: events.append("connected"))
    monkeypatch.setattr(bring_up, "disconnect", lambda: events.append("left"))
    monkeypatch.setattr(bring_up, "nodes", lambda: [{"CPU": 4.0, "memory": 2.0**34}])
    assert command.main("job", Config, nothing, plan, run, []) == 2
    assert events == ["connected", "closed", "left"]


def test_what_the_dashboard_says_of_a_job():
    from jobs.ppo_config import PPOConfig
    from rayrlhf.config import load

    given = ["run.name=try", "policy_model=p", "reward_model=r", "prompts.train=t", "prompts.max_tokens=8"]
    one = command._metadata("ppo", load(PPOConfig, None, given))
    assert (one["job_name"], one["job"], one["run"], len(one["config"])) == ("try/ppo", "ppo", "try", 12)
    assert command._metadata("ppo", load(PPOConfig, None, given)) == one
    assert command._metadata("ppo", load(PPOConfig, None, [*given, "run.seed=1"]))["config"] != one["config"]
