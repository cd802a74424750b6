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
    differences = _differences("", stage.manifest["config"], config)
    for role, path in parents.items():
        if known.get(role) != stage_hash(path):
            differences.append(f"parent {role}: {path} is another one now")
    if differences:
        return Standing("changed", stage, tuple(differences))
    return Standing("finished" if stage.manifest["is_final"] else "unfinished", stage)


def refuse(root: str, found: Standing) -> CheckpointError:
    """The error for a stage that stands in the way of another one."""
    listed = "\n  ".join(found.differences[:8])
    more = f"\n  and {len(found.differences) - 8} more" if len(found.differences) > 8 else ""
    return CheckpointError(
        f"{root} was made from other inputs:\n  {listed}{more}\n"
        "Give the run another run.name, or let it be replaced with when_changed=replace."
    )


def remove(root: str) -> None:
    """Delete a stage with all its steps."""
    filesystem, where = fsspec.core.url_to_fs(root)
    filesystem.rm(where, recursive=True)


def _differences(prefix: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            found += _differences(f"{prefix}.{key}" if prefix else key, before.get(key), now.get(key))
        return found
    return [] if before == now else [f"{prefix}: {before!r} -> {now!r}"]
