"""Whether a stage is there already, and made from the same inputs: what a pipeline may skip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import fsspec
from pydantic import ValidationError

from rayrlhf.checkpoint import StageDir, newest_whole, set_aside, stage_hash
from rayrlhf.config import Section
from rayrlhf.errors import CheckpointError
from rayrlhf.redaction import redacted

# How long to wait, what to keep, when to give up, where memory is: after an error that says to raise one, the run still
# resumes.
NO_INPUTS = (
    *("when_changed", "trackers", "call_deadline_s", "start_deadline_s", "save_every", "keep", "max_rollbacks"),
    *("gpu_gib", "offload", "recovery", "max_restarts", "stall_s", "reward_failures", "health"),
    # where it runs, and how much of a batch at a time: the numbers are the same within float rounding
    *("layout", "num_workers", "cpus_per_worker", "gpus_per_worker", "threads_per_worker", "zero_stage"),
    *("microbatch_tokens", "forward_tokens"),
)


@dataclass(frozen=True)
class Standing:
    """`absent`: nothing there.  `finished`, `unfinished`: with these inputs.  `changed`: with others.

    `stage` is the newest whole step; `torn`: why each newer one is not whole, by its name."""

    state: Literal["absent", "finished", "unfinished", "changed"]
    stage: StageDir | None
    differences: tuple[str, ...] = ()
    torn: Mapping[str, str] = field(default_factory=dict)


def standing(root: str, config: Section, parents: dict[str, str]) -> Standing:
    """Compare the newest whole step of the stage at `root` with a configuration and its parents' hashes.

    A key that this version has and the one which made the stage had not counts as its default there, so
    that a run outlives an update.
    """
    filesystem, where = fsspec.core.url_to_fs(root)
    if not filesystem.exists(f"{where}/latest"):
        return Standing("absent", None)
    try:
        stage, torn = newest_whole(root)
    except CheckpointError as error:
        return Standing("changed", None, (f"it cannot be read: {error}",))
    known = {role: parent["hash"] for role, parent in stage.manifest["parents"].items()}
    # masked, as the stage's own is: other credentials for the same place change nothing
    before, now = _completed(type(config), stage.manifest["config"]), redacted(config.model_dump(mode="json"))
    differences = _differences("", _inputs(redacted(before)), _inputs(now))
    for role, path in parents.items():
        if known.get(role) != stage_hash(path):
            differences.append(f"parent {role}: {path} is another one now")
    if differences:
        return Standing("changed", stage, tuple(differences), torn)
    return Standing("finished" if stage.manifest["is_final"] else "unfinished", stage, (), torn)


def check(root: str, config: Any, parents: dict[str, str]) -> Standing:
    """What a stage that is about to be made finds at `root`.

    Raises CheckpointError, with the differences, for a stage of other inputs unless
    `config.run.when_changed` is replace, and also then for one that is made from itself.
    """
    found = standing(root, config, parents)
    if found.state == "changed" and config.run.when_changed == "refuse":
        raise _refusal(root, found)
    if found.state == "changed":
        _check_outside(root, parents)
    return found


def claim(root: str, config: Any, parents: dict[str, str]) -> Standing:
    """`check`, remove a stage of other inputs, and set torn steps aside: absent, finished or unfinished is left."""
    found = check(root, config, parents)
    if found.state != "changed":
        if found.stage is not None and found.torn:
            step = found.stage.manifest["step"]
            for problem in found.torn.values():
                print(f"warning: {problem}", flush=True)
            print(
                f"warning: {root} goes on from step {step}, which is whole; torn steps are kept as torn_*", flush=True
            )
            set_aside(root, found.torn, found.stage.path)
        return found
    filesystem, where = fsspec.core.url_to_fs(root)
    filesystem.rm_file(f"{where}/latest")  # first: what a kill leaves of the rest then counts as absent
    filesystem.rm(where, recursive=True)
    return Standing("absent", None)


def _check_outside(root: str, parents: dict[str, str]) -> None:
    """CheckpointError where a stage that is to be replaced would be made from itself."""
    where = fsspec.core.url_to_fs(root)[1]
    for role, path in parents.items():
        if not path.startswith("hf://") and _is_inside(fsspec.core.url_to_fs(path)[1], where):
            raise CheckpointError(
                f"{role}={path} lies inside {root}, which run.when_changed=replace would delete first: "
                "give this run another run.name"
            )


def _is_inside(path: str, folder: str) -> bool:
    return f"{path.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def _refusal(root: str, found: Standing) -> CheckpointError:
    listed = "\n  ".join(found.differences[:8])
    more = f"\n  and {len(found.differences) - 8} more" if len(found.differences) > 8 else ""
    return CheckpointError(
        f"{root} was made from other inputs:\n  {listed}{more}\n"
        "Give the run another run.name, or let it be replaced with run.when_changed=replace."
    )


def _completed(cls: type[Section], config: dict[str, Any]) -> dict[str, Any]:
    """A stage's `config` with the keys that have come since at their defaults; as it is where this version
    does not take it."""
    try:
        return cls.model_validate(config).model_dump(mode="json")
    except ValidationError:
        return config


def _inputs(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without the keys that change nothing in what is made."""
    kept = {}
    for key, value in config.items():
        if key not in NO_INPUTS:
            kept[key] = _inputs(value) if isinstance(value, dict) else value
    return kept


def _differences(prefix: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            found += _differences(f"{prefix}.{key}" if prefix else key, before.get(key), now.get(key))
        return found
    return [] if before == now else [f"{prefix}: {before!r} -> {now!r}"]
