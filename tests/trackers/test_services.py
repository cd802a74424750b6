"""W&B offline and MLflow in a file, for real: what was logged is read back from what they wrote."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from mlflow import MlflowClient
from mlflow.entities import ViewType
from wandb.proto import wandb_internal_pb2

from rayrlhf.errors import ConfigError
from rayrlhf.metrics import MetricsLog
from rayrlhf.run import RunConfig
from rayrlhf.trackers.choice import check_trackers

CONFIG = {"train": {"lr": 0.5, "engine": {"betas": [0.9, 0.95]}}, "model": None}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No account and no settings of this machine's."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()  # it keeps what it read of another test's environment
    yield
    wandb.teardown()


def logged(run: Path, tracker: str, stage: str, steps: dict[int, float], done: int = -1) -> None:
    log = MetricsLog(str(run), stage, 3, done, trackers=(tracker,), config=CONFIG)
    for step, loss in steps.items():
        log.log(step, {"loss/train": loss})
    log.close()


def records(path: Path) -> list[Any]:
    """A .wandb file is LevelDB's log: blocks of 32 KiB, of chunks with checksum u32, length u16, type u8."""
    data, found, whole = path.read_bytes(), [], b""
    at = 7  # behind the file's own header
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last chunk of one
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def history(found: list[Any]) -> list[dict[str, float]]:
    rows = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in items.items() if not name.startswith("_")})
    return rows


def offline(folder: Path) -> list[list[Any]]:
    """The records of each W&B run in a folder."""
    wandb.teardown()  # waits for W&B's own process, which writes them
    return [records(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def test_wandb_offline(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    logged(run, "wandb", "sft", {1: 3.0, 2: 2.0, 3: 1.0})
    (found,) = offline(run)
    assert history(found) == [
        {"loss/train": 3.0, "step": 1},
        {"loss/train": 2.0, "step": 2},
        {"loss/train": 1.0, "step": 3},
    ]
    (begun,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert (begun.project, begun.run_group, begun.display_name, begun.job_type) == (
        "rayrlhf",
        "demo",
        "demo/sft",
        "sft",
    )
    assert {entry.key: json.loads(entry.value_json) for entry in begun.config.update}.items() >= CONFIG.items()
    axes = [r.metric for r in found if r.WhichOneof("record_type") == "metric" and r.metric.glob_name == "*"]
    assert [metric.step_metric for metric in axes] == ["step"]
    assert [r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit"] == [0]


def test_a_resumed_stage_goes_on_in_its_wandb_run_and_a_new_one_gets_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number, (steps, done) in enumerate((({1: 3.0, 2: 2.0}, -1), ({2: 9.0}, 1), ({1: 5.0}, -1))):
        (tmp_path / f"{number}").mkdir()
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / f"{number}"))
        logged(tmp_path / "demo", "wandb", "ppo", steps, done)
        found += offline(tmp_path / f"{number}")
    assert not (tmp_path / "demo" / "wandb").exists()
    ids = [record.run.run_id for one in found for record in one if record.WhichOneof("record_type") == "run"]
    assert len(ids) == 3 and ids[0] == ids[1] != ids[2]
    assert history(found[1]) == [{"loss/train": 9.0, "step": 2}]


def test_online_it_asks_for_a_login_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = RunConfig(name="x", root=str(tmp_path), trackers=("wandb",))
    check_trackers(run)
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(ConfigError, match="not logged in: run `wandb login`, set WANDB_API_KEY, or keep the run on"):
        check_trackers(run)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()  # it reads its variables once a process
    check_trackers(run)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "demo"
    logged(run, "mlflow", "sft", {1: 3.0, 2: 2.0})
    client = MlflowClient(f"sqlite:///{run}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    assert experiment.artifact_location == f"{run}/mlflow_artifacts"

    def runs() -> list[Any]:
        return client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL, order_by=["start_time"])

    (sft,) = runs()
    assert (sft.info.run_name, sft.info.status) == ("sft", "FINISHED")
    assert sft.data.params == {"train.lr": "0.5", "train.engine.betas": "[0.9, 0.95]", "model": "None"}

    with pytest.raises(ValueError):
        log = MetricsLog(str(run), "sft", 3, 1, trackers=("mlflow",), config=CONFIG | {"model": "other"})
        try:
            log.log(2, {"loss/train": 9.0, "data/mixture_rows_a@b": 4.0, "loss/bad": float("nan")})
            raise ValueError
        finally:
            log.close()
    (sft,) = runs()
    assert sft.info.status == "FAILED", "an error ended it"
    values = [(m.step, m.value) for m in client.get_metric_history(sft.info.run_id, "loss/train")]
    assert sorted(values) == [(1, 3.0), (2, 2.0), (2, 9.0)], "a resumed stage goes on in its run"
    assert sft.data.metrics["data/mixture_rows_a_b"] == 4.0

    logged(run, "mlflow", "ppo", {0: 1.0})
    logged(run, "mlflow", "sft", {1: 7.0})
    assert [one.info.run_name for one in runs()] == ["sft", "ppo", "sft"], "made anew, it is another run"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo"]


def test_mlflow_goes_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/shared.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    logged(tmp_path / "demo", "mlflow", "sft", {1: 3.0})
    (found,) = MlflowClient(uri).search_experiments(filter_string="name = 'demo'")
    (sft,) = MlflowClient(uri).search_runs([found.experiment_id])
    assert sft.data.metrics == {"loss/train": 3.0} and not (tmp_path / "demo" / "mlflow.db").exists()
