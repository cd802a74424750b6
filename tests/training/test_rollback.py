"""Skipped steps, rollbacks and the stop of the supervised loop, on two ranks with planted faults."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rayrlhf.checkpoint import find_stage
from rayrlhf.config import load
from rayrlhf.errors import ConfigError, DivergenceError
from rayrlhf.training.config import EarlyStopping, EngineConfig, GuardConfig, RollbackConfig, TrainConfig
from rayrlhf.training.losses import CausalLoss, Row
from rayrlhf.training.supervised import _Progress
from tests.training.ranks import run_ranks

TOTAL, MINIBATCH = 12, 4
GUARD = GuardConfig(max_skips=2)


class FaultyLoss(CausalLoss):
    """A row's own factor on the loss of the microbatch that it is in."""

    def shares(self, model: Any, rows: Any, count: int, device: torch.device) -> dict[str, Tensor]:
        shares = super().shares(model, rows, count, device)
        return {"loss": shares["loss"] * math.prod(row["factor"] for row in rows)}


def minibatches(faults: dict[int, float]) -> list[list[Row]]:
    """Minibatches 1 to TOTAL; of the faulty ones the last row carries the factor."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(1, TOTAL + 1):
        rows: list[Row] = []
        for index in range(MINIBATCH):
            length = int(torch.randint(4, 20, (), generator=generator))
            ids = torch.randint(3, 250, (length,), generator=generator).tolist()
            factor = faults.get(number, 1.0) if index == MINIBATCH - 1 else 1.0
            rows.append({"input_ids": ids, "loss_mask": [1] * length, "factor": factor})
        found.append(rows)
    return found


def fit(
    root: str, folder: str, faults: dict[int, float], train: dict[str, Any], guard: GuardConfig = GUARD, end: int = 99
) -> str:
    """The stage's directory, or what it stops with; goes on from what is there, up to before minibatch `end`."""
    from rayrlhf.run import RunConfig
    from rayrlhf.training.supervised import Stage, Supervised

    dist.barrier()  # rank 0 may still write what is read here
    run = RunConfig(name="run", root=root)
    latest = Path(run.stage("sft")) / "latest"
    config = TrainConfig(
        num_workers=2,
        minibatch=MINIBATCH,
        microbatch_tokens=40,
        keep=9,
        engine=EngineConfig(lr=1e-2, warmup_steps=2, guard=guard, zero_stage=train.pop("zero_stage", 1)),
        **train,
    )
    resume_from = str(latest.parent / latest.read_text()) if latest.exists() else None
    common = {"new": None, "config": {}, "parents": {}, "started": time.time(), "is_terminal": False}
    stage = Stage("sft", FaultyLoss(), run, config, folder, total_steps=TOTAL, resume_from=resume_from, **common)

    def stream() -> Iterator[list[Row]]:
        for number, rows in enumerate(minibatches(faults), start=1):
            if number == end:
                raise InterruptedError
            yield rows

    try:
        return Supervised(stage).fit(stream(), [])
    except InterruptedError:
        return "cut off"
    except DivergenceError as error:
        return str(error)


@pytest.mark.parametrize(("goal", "second"), [("min", 1.0), ("max", 3.0)])
def test_a_validation_that_is_no_number_is_never_the_best(goal: Any, second: float) -> None:
    progress, stopping = _Progress(step=1), EarlyStopping(metric="eval/loss", goal=goal)
    assert [progress.is_best({"eval/loss": value}, stopping) for value in (math.nan, 2.0, math.inf, second)] == [
        False, True, False, True,
    ]  # fmt: skip
    assert progress.best == second and progress.num_worse == 0


def plain(folder: str, steps: list[tuple[int, float]], zero_stage: int = 1) -> dict[str, Tensor]:
    """Weights after these (minibatch, share of the learning rate), by the engine alone."""
    from rayrlhf.models.causal_lm import load_causal_lm
    from rayrlhf.training.engine import Engine
    from rayrlhf.training.microbatches import microbatches

    engine = Engine(load_causal_lm(folder), EngineConfig(lr=1e-2, warmup_steps=2, zero_stage=zero_stage), TOTAL)
    data, loss = minibatches({}), CausalLoss()
    for number, share in steps:
        rows, engine.lr_scale = data[number - 1], share
        count = loss.count(rows)

        def loss_fn(numbers: Tensor, rows: list[Row] = rows, count: int = count) -> Any:
            shares = loss.shares(engine.module, [rows[n] for n in numbers], count, engine.device)
            return shares["loss"], shares

        lengths = [loss.pass_tokens(row, is_packed=True) for row in rows]
        engine.optimizer_step(microbatches(lengths, 40, 2, engine.rank, packed=True), loss_fn)
    buckets = list(engine.weight_buckets(1 << 30))
    return {name: t.clone() for bucket in buckets for name, t in (bucket or {}).items()}


def run_all(rank: int, tmp: str, folder: str) -> dict[str, Any]:
    """Every case in the same two processes."""
    nan, found = math.nan, {}
    back = {"save_every": 2, "rollback": RollbackConfig(lr_factor=0.5, skip_minibatches=1)}
    faults = {6: nan, 7: nan, 10: nan}
    found["rollback"] = fit(f"{tmp}/rollback", folder, faults, dict(back))
    for end in (7, 9, 11):  # inside the trouble, after the rollback, after another skip
        cut = fit(f"{tmp}/cut", folder, faults, dict(back), end=end)
        assert cut == "cut off"
    found["cut"] = fit(f"{tmp}/cut", folder, faults, dict(back))
    found["start"] = fit(f"{tmp}/start", folder, {3: nan, 4: math.inf}, {"save_every": 0, "zero_stage": 3})
    spikes = GuardConfig(bound=30, window=4, max_skips=2)
    found["spike"] = fit(f"{tmp}/spike", folder, {6: 1e3, 12: nan}, {"save_every": 0}, spikes)
    always = dict.fromkeys(range(5, TOTAL + 1), nan)
    found["stop"] = fit(f"{tmp}/stop", folder, always, {"save_every": 2, "rollback": RollbackConfig(max_rollbacks=1)})
    found["late"] = fit(f"{tmp}/late", folder, {11: nan, 12: nan}, {"save_every": 4})
    after = [(n, 0.5) for n in (9, 11, 12)]
    found["plain rollback"] = plain(folder, [(n, 1.0) for n in range(1, 5)] + after)
    found["plain start"] = plain(folder, [(n, 0.5) for n in range(5, 13)], zero_stage=3)
    found["plain spike"] = plain(folder, [(n, 1.0) for n in range(1, 12) if n != 6])
    return found


@pytest.fixture(scope="module")
def ran(
    tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    tmp = tmp_path_factory.mktemp("rollback")
    return tmp, run_ranks(run_all, 2, tmp, str(tmp), tiny_model("llama"))


def same_weights(path: str, expected: dict[str, Tensor]) -> bool:
    from safetensors.torch import load_file

    stage = find_stage(path)
    assert stage.manifest["is_final"] and stage.manifest["step"] == TOTAL
    weights = load_file(Path(stage.model_dir) / "model.safetensors")
    return all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def logged(tmp: Path, case: str) -> list[dict[str, Any]]:
    lines = (tmp / case / "run" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "time" not in k and "perf" not in k} for line in lines]


def test_two_skips_in_a_row_roll_back_and_go_on_after_them(ran: Any) -> None:
    """6 and 7 are bad: back to the checkpoint of 4, as 6 has none; 8 is left out, 10 skipped; to the bit."""
    tmp, (first, _) = ran
    assert same_weights(first["rollback"], first["plain rollback"])
    rows = logged(tmp, "rollback")
    assert [row["step"] for row in rows] == list(range(1, TOTAL + 1)), "what was thrown away stays told"
    assert [row["optim/skipped_steps"] for row in rows] == [0] * 5 + [1, 2, 2, 2, 3, 3, 3]
    assert [row["optim/rollbacks"] for row in rows] == [0] * 6 + [1] * 6
    assert [row["step"] for row in rows if "optim/rolled_back_to" in row] == [7]
    assert rows[6]["optim/rolled_back_to"] == 4 and rows[6]["loss/train"] is None
    assert "loss/train" not in rows[7] and math.isfinite(rows[8]["loss/train"])
    assert rows[8]["data/tokens"] > rows[6]["data/tokens"], "what was read, not what is in the weights"
    # the schedule goes by updates: the step after the rollback is the fifth again
    assert rows[8]["optim/lr"] == pytest.approx(rows[4]["optim/lr"] / 2)
    saved = sorted(path.name for path in Path(first["rollback"]).parent.glob("step_*"))
    assert saved == [f"step_{n:06d}" for n in (2, 4, 8, 12)]


def test_a_run_cut_off_around_a_rollback_ends_alike(ran: Any) -> None:
    tmp, (first, _) = ran
    assert same_weights(first["cut"], first["plain rollback"])
    assert logged(tmp, "cut") == logged(tmp, "rollback")


def test_without_a_checkpoint_it_goes_back_to_the_start(ran: Any) -> None:
    tmp, (first, _) = ran
    assert same_weights(first["start"], first["plain start"])
    assert logged(tmp, "start")[3]["optim/rolled_back_to"] == 0


def test_a_spike_beyond_the_bound_is_skipped(ran: Any) -> None:
    """And so is the last minibatch: the stage ends with the weights from before."""
    tmp, (first, _) = ran
    assert same_weights(first["spike"], first["plain spike"])
    assert [row["optim/skipped_steps"] for row in logged(tmp, "spike")] == [0] * 5 + [1] * 6 + [2]


def test_what_rolling_back_does_not_mend_stops_with_a_report(ran: Any) -> None:
    tmp, ranks = ran
    for words in (
        "stage sft diverged: 2 optimizer steps in a row were skipped (4 in the whole run)",
        "train.rollback.max_rollbacks=1 rollbacks are used up",
        "minibatch 4 (rows 12 to 15 of the stage's order): loss ",
        "minibatch 5 (rows 16 to 19 of the stage's order): loss nan, gradient norm nan, lr ",
        "rolled back to ",
        "minibatch 8 (rows 28 to 31 of the stage's order): loss nan",
        "train.engine.lr (now 0.005 after 1 rollback(s))",
    ):
        assert all(words in rank["stop"] for rank in ranks), words
    assert "minibatch 9" not in ranks[0]["stop"]
    rows = logged(tmp, "stop")
    assert rows[-1]["step"] == 8 and rows[-1]["optim/skipped_steps"] == 4, "the last one is told as well"


def test_a_rollback_that_leaves_nothing_to_learn_is_a_stop(ran: Any) -> None:
    _, (first, _) = ran
    assert "and a rollback would leave no minibatch to train on" in first["late"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("engine.guard.window=9", "guard.window=9 has no effect without guard.bound"),
        ("engine.guard.bound=0", "guard.bound"),
        ("rollback={max_rollbacks: 0, lr_factor: 0.1}", "no effect with max_rollbacks=0"),
    ],
)
def test_settings_without_an_effect_are_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, None, [change])
