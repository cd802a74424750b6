"""An engine's state: to the bit through any number of ranks and ZeRO stage; what does not fit is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayrlhf.errors import CheckpointError
from rayrlhf.training import state_files
from rayrlhf.training.config import EngineConfig
from rayrlhf.training.state_files import Pieces, read_manifest
from tests.training.ranks import run_ranks
from tests.training.test_engine import three_steps, tied_llama

# losses of two layouts differ by the order in which gradients are summed: float rounding over three steps of Adam
TOLERANCE = 2e-5


def model_with_odd_parts() -> Any:
    """Beside what two and three ranks can share out evenly: an odd vector that no loss uses."""
    model = tied_llama()
    model.unused = nn.Parameter(torch.arange(5.0))
    return model


def engine_at(stage: int, **more: Any) -> Any:
    from rayrlhf.training.engine import Engine

    return Engine(model_with_odd_parts(), EngineConfig(lr=0.01, zero_stage=stage, warmup_steps=2, **more), 9)


def losses(engine: Any) -> list[float]:
    return [stats["loss"] for stats in three_steps(engine, 60)]


def resaved(engine: Any, directory: str, to: str) -> dict[str, Any]:
    """Load, save at once, and go on."""
    torch.manual_seed(99)
    random.seed(99)
    extra = engine.load_state(directory)
    seeds, step = (torch.initial_seed(), random.random()), engine.step
    engine.save_state(to, extra)
    return {"extra": extra, "losses": losses(engine), "seeds": seeds, "step": step}


def first(rank: int, folder: str) -> dict[str, Any]:
    """2 ranks: three steps at ZeRO 2, saved, three more; and again from there at ZeRO 3."""
    engine = engine_at(2)
    engine.save_state(f"{folder}/start")
    three_steps(engine, 60)
    random.random()
    average = {"average": {"w": torch.tensor([1.5, -0.0])} if rank == 0 else {}, "rate": 0.1 + 0.2}
    engine.save_state(f"{folder}/saved", average)
    seeds = (torch.initial_seed(), random.random())
    went_on = losses(engine)
    engine.load_state(f"{folder}/start")  # there were no states of the optimizer
    engine.save_state(f"{folder}/start_again")
    return {"losses": went_on, "seeds": seeds, "at_3": resaved(engine_at(3), f"{folder}/saved", f"{folder}/at_3")}


def alone(rank: int, folder: str, tiny: str) -> dict[str, Any]:
    """1 rank at ZeRO 0; what does not fit."""
    from rayrlhf.models.causal_lm import load_causal_lm
    from rayrlhf.training.engine import Engine

    found: dict[str, Any] = resaved(engine_at(0), f"{folder}/saved", f"{folder}/at_0")
    resaved(engine_at(0), f"{folder}/start", f"{folder}/start_at_0")
    other, narrow, cut = load_causal_lm(tiny), tied_llama(), f"{folder}/cut"
    narrow.unused = nn.Parameter(torch.zeros(4))
    shutil.copytree(f"{folder}/saved", cut)
    shard = Path(cut, "shards_rank00001_of_00002_part000_of_001.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    cases: dict[str, tuple[Any, EngineConfig, str]] = {
        "other": (other, EngineConfig(), "saved"),
        "lacks": (tied_llama(), EngineConfig(), "saved"),
        "shape": (narrow, EngineConfig(), "saved"),
        "sgd": (model_with_odd_parts(), EngineConfig(optimizer="sgd"), "saved"),
        "cut": (model_with_odd_parts(), EngineConfig(), "cut"),
    }
    for name, (model, config, where) in cases.items():
        with pytest.raises(CheckpointError) as caught:
            Engine(model, config, 9).load_state(f"{folder}/{where}")
        found[name] = str(caught.value)
    return found


def three(rank: int, folder: str) -> dict[str, Any]:
    return resaved(engine_at(3), f"{folder}/at_0", f"{folder}/at_3_of_3")


def numbers(directory: str) -> dict[str, Tensor]:
    """Every parameter's weights and states, whole."""
    manifest = read_manifest(directory)
    pieces, found = Pieces(directory, manifest["num_writers"]), {}
    for name, entry in manifest["parameters"].items():
        size = int(torch.tensor(entry["shape"]).prod())
        found |= {f"{kind} {name}": pieces.read(kind, name, 0, size) for kind in ("weight", *entry["states"])}
    return found


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """To the bit, the sign of a zero too."""
    return a.keys() == b.keys() and all(torch.equal(a[n].view(torch.int32), b[n].view(torch.int32)) for n in a)


@pytest.mark.slow
def test_ranks_and_zero_stage_may_change(
    tmp_path: Path, tiny_model: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path)
    two = run_ranks(first, 2, tmp_path, folder)
    capfd.readouterr()
    [one] = run_ranks(alone, 1, tmp_path, folder, tiny_model("llama"))
    told = capfd.readouterr().out
    assert "saved by 2 rank(s) at ZeRO 2 and goes on with 1 at ZeRO 0" in told and "not bit-exact" in told
    of_3 = run_ranks(three, 3, tmp_path, folder)
    saved = numbers(f"{folder}/saved")
    assert saved["weight unused"].tolist() == [0, 1, 2, 3, 4]
    assert all(saved[f"exp_avg{s} model.embed_tokens.weight"].abs().max() > 0 for s in ("", "_sq"))
    assert not any("lm_head" in name for name in saved), "tied weights once"
    for other in ("at_3", "at_0", "at_3_of_3"):
        assert equal(numbers(f"{folder}/{other}"), saved), other
    assert {entry["step"] for entry in read_manifest(f"{folder}/at_3_of_3")["parameters"].values()} == {3}
    start = numbers(f"{folder}/start")
    assert {name.split()[0] for name in start} == {"weight"}, "no states before the first step"
    assert equal(numbers(f"{folder}/start_again"), start) and equal(numbers(f"{folder}/start_at_0"), start)

    undisturbed = two[0]["losses"]
    assert undisturbed[0] > undisturbed[-1] + 0.1
    for rank in (two[0]["at_3"], one, *of_3):
        assert rank["losses"] == pytest.approx(undisturbed, abs=TOLERANCE) and rank["step"] == 3
    # the caller's own: tensors for rank 0, numbers for all, through three savings
    assert of_3[0]["extra"]["average"]["w"].tolist() == [1.5, 0.0] and of_3[1]["extra"] == {
        "average": {},
        "rate": 0.1 + 0.2,
    }
    # a rank that was there goes on with its own random numbers, another one draws its own
    assert two[0]["at_3"]["seeds"] == two[0]["seeds"] == one["seeds"]
    assert len({rank["seeds"] for rank in of_3}) == 3
    assert "has also the trained parameter unused" in one["lacks"] and "another model" in one["lacks"]
    assert "lacks the trained parameter lm_head.weight" in one["other"] or "has also" in one["other"]
    assert "has unused in shape (5,), but here it is (4,)" in one["shape"]
    assert "optimizer=adamw, but optimizer=sgd is set" in one["sgd"]
    assert "shards_rank00001_of_00002_part000_of_001.safetensors cannot be read" in one["cut"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix not in (".safetensors", ".json", ".pt", "")]
    assert not list((tmp_path / "saved").rglob("*.pt"))


def test_parts_are_of_bounded_size_and_all_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_files, "_PART_BYTES", 40)
    prefix, whole = state_files.shard_prefix(0, 1), torch.arange(23.0)
    tensors = [(f"weight/{start}/a.b/c", whole[start : start + 5]) for start in range(0, 23, 5)]
    state_files.write_parts(str(tmp_path), prefix, tensors)
    files = sorted(tmp_path.iterdir())
    assert [file.name[-11:] for file in files] == ["safetensors"] * 3  # two pieces of 20 bytes each
    pieces = Pieces(str(tmp_path), 1)
    assert pieces.read("weight", "a.b/c", 3, 14).tolist() == whole[3:17].tolist()
    with pytest.raises(CheckpointError, match=r"holds 3 of the 4 numbers of a\.b/c \(weight\)"):
        pieces.read("weight", "a.b/c", 20, 4)
    files[1].unlink()
    with pytest.raises(CheckpointError, match=r"part001_of_003\.safetensors is missing"):
        Pieces(str(tmp_path), 1)
    with pytest.raises(CheckpointError, match=r"rank00000_of_00002_part000_of_001\.safetensors is missing"):
        Pieces(str(tmp_path), 2)


def test_a_state_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"state\.json is missing"):
        read_manifest(str(tmp_path))
    path = tmp_path / "state.json"
    path.write_text('{"format": 1, "step"')
    with pytest.raises(CheckpointError, match="cannot be read .* cut off"):
        read_manifest(str(tmp_path))
    path.write_text(json.dumps({"format": 2}))
    with pytest.raises(CheckpointError, match="of format 2"):
        read_manifest(str(tmp_path))
    path.unlink()
    torch.save({"torch": torch.get_rng_state()}, tmp_path / "rng_rank0_of_1.pt")
    with pytest.raises(CheckpointError, match=r"older version .* pickles, .* cannot be resumed"):
        read_manifest(str(tmp_path))
