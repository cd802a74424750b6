"""Whether a stage is there already, and made from the same inputs: what a pipeline may skip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import fsspec

from rayrlhf.checkpoint import StageDir, find_stage, stage_hash
from rayrlhf.errors import CheckpointError


@dataclass(frozen=True)
class Standing:
    """`absent`: nothing there.  `finished`, `unfinished`: with these inputs.  `changed`: with others."""

    state: Literal["absent", "finished", "unfinished", "changed"]
    stage: StageDir | None
    differences: tuple[str, ...] = ()


def standing(root: str, config: dict[str, Any], parents: dict[str, str]) -> Standing:
    """Compare the newest step of the stage at `root` with a resolved config and its parents' hashes."""
    filesystem, where = fsspec.core.url_to_fs(root)
    if not filesystem.exists(f"{where}/latest"):
        return Standing("absent", None)
    stage = find_stage(root)
    known = {role: parent["hash"] for role, parent in stage.manifest["parents"].items()}
    differences = _differences("", _inputs(stage.manifest["config"]), _inputs(config))
    for role, path in parents.items():
        if known.get(role) != stage_hash(path):
            differences.append(f"parent {role}: {path} is another one now")
    if differences:
        return Standing("changed", stage, tuple(differences))
    return Standing("finished" if stage.manifest["is_final"] else "unfinished", stage)


def check(root: str, config: dict[str, Any], parents: dict[str, str]) -> Standing:
    """What a stage that is about to be made finds at `root`.

    Raises CheckpointError, with the differences, for a stage of other inputs unless
    `config["run"]["when_changed"]` is replace.
    """
    found = standing(root, config, parents)
    if found.state == "changed" and config["run"]["when_changed"] == "refuse":
        raise _refusal(root, found)
    return found


def claim(root: str, config: dict[str, Any], parents: dict[str, str]) -> Standing:
    """`check`, and remove a stage of other inputs: absent, finished or unfinished is left."""
    found = check(root, config, parents)
    if found.state != "changed":
        return found
    filesystem, where = fsspec.core.url_to_fs(root)
    filesystem.rm(where, recursive=True)
    return Standing("absent", None)


def _refusal(root: str, found: Standing) -> CheckpointError:
    listed = "\n  ".join(found.differences[:8])
    more = f"\n  and {len(found.differences) - 8} more" if len(found.differences) > 8 else ""
    return CheckpointError(
        f"{root} was made from other inputs:\n  {listed}{more}\n"
        "Give the run another run.name, or let it be replaced with run.when_changed=replace."
    )


def _inputs(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without the key that says what to do about differences."""
    if "run" not in config:
        return config
    return config | {"run": {key: value for key, value in config["run"].items() if key != "when_changed"}}


def _differences(prefix: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            found += _differences(f"{prefix}.{key}" if prefix else key, before.get(key), now.get(key))
        return found
    return [] if before == now else [f"{prefix}: {before!r} -> {now!r}"]
