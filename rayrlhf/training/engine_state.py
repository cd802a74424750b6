"""Save and load an engine's state, whatever the number of ranks and the ZeRO stage on either side."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from rayrlhf.errors import CheckpointError
from rayrlhf.training import shards, state_files
from rayrlhf.training.distributed import seed_all

if TYPE_CHECKING:
    from rayrlhf.training.engine import Engine
    from rayrlhf.training.shards import Shard

_WEIGHT = "weight"


def save(engine: Engine, directory: str, extra: dict[str, Any]) -> None:
    """Weights in training, the optimizer's states, schedule, guard and random numbers; every rank calls it.

    `extra` is rank 0's, JSON and tensors.  At ZeRO 0 rank 0 writes all, else every rank its own pieces.
    """
    stage, deepspeed_engine = engine.zero_stage, engine._engine
    os.makedirs(directory, exist_ok=True)
    if engine.rank == 0:  # of a former try
        for path in glob.glob(os.path.join(glob.escape(directory), "*.safetensors")):
            os.remove(path)
    dist.barrier()
    num_writers = 1 if stage == 0 else engine.world_size
    with engine.states_here():
        mine = shards.shards(deepspeed_engine, stage, engine.module)
        if engine.rank < num_writers:
            pieces = [
                (f"{kind}/{shard.start}/{shard.name}", shard.piece(tensor))
                for owner, some in shards.by_owner(mine)
                for kind, tensor in _kinds(deepspeed_engine, stage, owner).items()
                for shard in some
                if shard.length
            ]
            state_files.write_parts(directory, state_files.shard_prefix(engine.rank, num_writers), pieces)
    state_files.write_rng(directory, engine.rank, engine.device)
    if engine.rank == 0:
        state_files.write_manifest(directory, _manifest(engine, mine, num_writers, directory, extra))
    dist.barrier()


def _kinds(deepspeed_engine: Any, stage: int, owner: torch.Tensor) -> dict[str, torch.Tensor]:
    return {_WEIGHT: owner} | shards.averages(shards.states(deepspeed_engine, stage, owner))


def _manifest(
    engine: Engine, mine: list[Shard], num_writers: int, directory: str, extra: dict[str, Any]
) -> dict[str, Any]:
    parameters = {}
    for shard in mine:
        state = shards.states(engine._engine, engine.zero_stage, shard.owner)
        parameters[shard.name] = {"shape": list(shard.shape), "states": sorted(shards.averages(state))}
        if "step" in state:
            parameters[shard.name]["step"] = float(state["step"])
    return {
        "world_size": engine.world_size,
        "zero_stage": engine.zero_stage,
        "num_writers": num_writers,
        "optimizer": engine.config.optimizer,
        "seed": torch.initial_seed(),
        "step": engine.step,
        "guard": engine.guard.state_dict(),
        "parameters": parameters,
        "extra": state_files.write_extra(directory, extra),
    }


def load(engine: Engine, directory: str) -> dict[str, Any]:
    """What `save` wrote; every rank calls it.  Returns `extra`, whose tensors rank 0 alone is given.

    With the ranks and the stage that saved it training goes on to the bit as if never stopped.  With others
    weights and states are those to the bit, and what follows is equal within float rounding: a rank that had
    no random numbers of its own draws them by (seed, rank, step).  Raises CheckpointError.
    """
    manifest = state_files.read_manifest(directory)
    pieces = state_files.Pieces(directory, manifest["num_writers"])
    stage, deepspeed_engine = engine.zero_stage, engine._engine
    shards.prepare_weights(deepspeed_engine, stage)
    with engine.states_here(), torch.no_grad():
        mine = shards.shards(deepspeed_engine, stage, engine.module)
        _check(directory, manifest, engine.config.optimizer, mine)
        for owner, some in shards.by_owner(mine):
            _load_owner(engine, owner, some, manifest["parameters"], pieces)
        shards.publish_weights(deepspeed_engine, stage)
    engine.step = manifest["step"]
    engine.guard.load_state_dict(manifest["guard"])
    if engine.rank < manifest["world_size"]:
        state_files.read_rng(directory, engine.rank, engine.device)
    else:
        text = f"{manifest['seed']} {engine.rank} {engine.step}"
        seed_all(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))
    _tell(engine, directory, manifest)
    extra: dict[str, Any] = state_files.read_extra(directory, manifest["extra"], engine.rank == 0)
    return extra


def _load_owner(
    engine: Engine,
    owner: torch.Tensor,
    some: list[Shard],
    parameters: dict[str, dict[str, Any]],
    pieces: state_files.Pieces,
) -> None:
    saved = {shard.name: parameters[shard.name] for shard in some}
    state = shards.states(engine._engine, engine.zero_stage, owner)
    kinds = {kind for entry in saved.values() for kind in entry["states"]}
    if not kinds:
        state.clear()  # before the first step there is none
    for kind in sorted(kinds - state.keys()):
        state[kind] = torch.zeros_like(owner)
    steps = [entry["step"] for entry in saved.values() if "step" in entry]
    if steps:  # of one partition there is one count: ZeRO counts steps without a gradient too
        state["step"] = torch.tensor(max(steps), device=owner.device)  # where the fused optimizer has it
    for shard in some:
        targets = {_WEIGHT: owner} | {kind: state[kind] for kind in kinds}
        for kind, target in targets.items():
            if kind == _WEIGHT or kind in saved[shard.name]["states"]:
                shard.piece(target).copy_(pieces.read(kind, shard.name, shard.start, shard.length))
            else:
                shard.piece(target).zero_()  # it never had a gradient


def _check(directory: str, manifest: dict[str, Any], optimizer: str, mine: list[Shard]) -> None:
    if manifest["optimizer"] != optimizer:
        raise CheckpointError(
            f"{directory} is the state of optimizer={manifest['optimizer']}, but optimizer={optimizer} is set: "
            "resume with the one that it was saved with"
        )
    saved, here = manifest["parameters"], {shard.name: shard for shard in mine}
    cause = "it was saved of another model, or with another adapter. Resume with the configuration that wrote it"
    for what, names in (("lacks", here.keys() - saved.keys()), ("has also", saved.keys() - here.keys())):
        if names:
            first, more = min(names), f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{directory} {what} the trained parameter {first}{more}: {cause}")
    for name, shard in here.items():
        if tuple(saved[name]["shape"]) != shard.shape:
            raise CheckpointError(
                f"{directory} has {name} in shape {tuple(saved[name]['shape'])}, but here it is {shard.shape}: {cause}"
            )


def _tell(engine: Engine, directory: str, manifest: dict[str, Any]) -> None:
    before = manifest["world_size"], manifest["zero_stage"]
    now = engine.world_size, engine.zero_stage
    if engine.rank == 0 and before != now:
        sys.stdout.write(
            f"{directory} was saved by {before[0]} rank(s) at ZeRO {before[1]} and goes on with {now[0]} at ZeRO "
            f"{now[1]}: weights and optimizer are the saved ones, but what follows is not bit-exact\n"
        )
        sys.stdout.flush()
