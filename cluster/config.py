"""Which role runs where: pools of bundles and the roles on them, as the user writes them."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rayrlhf import config_yaml
from rayrlhf.config import Section
from rayrlhf.errors import ConfigError

OFFLOADING = ("policy", "critic", "rollout")  # roles that can leave a GPU to others between calls
LAYOUTS = Path(__file__).parent / "layouts"


class Pool(Section):
    """Equal bundles reserved together, as one Ray placement group."""

    bundles: int = Field(default=1, ge=1, le=100_000, description="Number of bundles; a bundle lies on one node.")
    cpus: float = Field(default=1.0, gt=0, description="CPUs of each bundle.")
    gpus: float = Field(default=0.0, ge=0, description="GPUs of each bundle.")
    gpu_gib: float | None = Field(
        default=None, gt=0, description="Memory of each GPU in GiB, which the roles must fit into; null: not compared."
    )
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        default="PACK", description="How Ray places the bundles: on few nodes, many, exactly one, each on its own."
    )


class RoleLayout(Section):
    """Where one role's ranks (policy, critic) or replicas (rollout, reference, reward) run."""

    pool: str = Field(description="Name of the pool.")
    ranks: int = Field(
        default=1, ge=1, le=100_000, description="Number of actors; rank r starts looking for room at bundle r."
    )
    cpus: float = Field(default=1.0, ge=0, description="CPUs reserved for each actor (may be a fraction).")
    gpus: float = Field(default=0.0, ge=0, description="GPUs reserved for each actor (may be a fraction).")
    threads: int = Field(default=1, ge=1, description="CPU threads each actor computes with (OMP_NUM_THREADS).")
    offload: bool = Field(
        default=False,
        description="Leave the GPU to others between calls: rollout sleeps, its weights on the host and no KV cache "
        "(vLLM's sleep mode); policy and critic keep their optimizer states on the host while they do not learn.",
    )


class LayoutConfig(Section):
    """A shipped layout by name, a YAML file by path, or written out; written parts overlay the base."""

    base: str | None = Field(
        default="cpu",
        description="Shipped layout (cpu, one_gpu, eight_gpu, two_node, disaggregated) or path of a YAML file to start "
        "from; null: pools and roles are written out here.",
    )
    pools: dict[str, Pool] = Field(description="Pools of bundles by name.")
    roles: dict[str, RoleLayout] = Field(description="Roles by name: policy, critic, reference, reward, rollout.")

    @model_validator(mode="before")
    @classmethod
    def _overlay_base(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"base": given}
        if not isinstance(given, dict):
            return given
        base = given.get("base", cls.model_fields["base"].default)
        if not isinstance(base, str):  # null, or what is refused later
            return given
        merged = _merge(_read(base), {**given, "base": base})
        _check_roles(given.get("roles"), merged.get("roles"), str(base))
        return merged

    @model_validator(mode="after")
    def _roles_have_pools(self) -> LayoutConfig:
        for name, role in self.roles.items():
            if role.pool not in self.pools:
                raise ValueError(
                    f"role {name} is on pool {role.pool!r}, which does not exist; pools: "
                    f"{', '.join(self.pools)}. Set layout.roles.{name}.pool or add layout.pools.{role.pool}"
                )
        for name in (name for name, role in self.roles.items() if role.offload):
            if name not in OFFLOADING:
                raise ValueError(
                    f"roles.{name}.offload: only {', '.join(OFFLOADING)} hold what others could use between calls"
                )
            if not self.roles[name].gpus:
                raise ValueError(f"roles.{name}.offload has no effect without a GPU (gpus=0): leave it out")
        idle = set(self.pools) - {role.pool for role in self.roles.values()}
        if idle:
            raise ValueError(f"no role is on pool {', '.join(sorted(idle))}; remove it, or put a role on it")
        return self

    def only(self, roles: Iterable[str]) -> LayoutConfig:
        """These roles, and the pools they are on.  Raises ConfigError when one is missing."""
        missing = [role for role in roles if role not in self.roles]
        if missing:
            raise ConfigError(f"layout.roles has no {', '.join(missing)}; needed are {', '.join(roles)}")
        kept = {role: self.roles[role] for role in self.roles if role in set(roles)}
        return LayoutConfig(base=None, pools={r.pool: self.pools[r.pool] for r in kept.values()}, roles=kept)


def _read(base: str) -> dict[str, Any]:
    path = LAYOUTS / f"{base}.yaml"
    if not os.path.isfile(path):
        path = Path(base)
    if not os.path.isfile(path):  # unlike Path's, of any text at all
        shipped = ", ".join(sorted(p.stem for p in LAYOUTS.glob("*.yaml")))
        raise ValueError(f"no layout {base!r}: neither a shipped one ({shipped}) nor a file")
    try:
        content = config_yaml.read(str(path))
    except ConfigError as error:  # pydantic tells of ValueErrors
        raise ValueError(f"layout file {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"layout file {path} must hold the keys pools and roles")
    return content


def _check_roles(given: Any, merged: Any, base: str) -> None:
    """ValueError for a role that the base has not and that has no pool, as one whose name is misspelt."""
    for name in given if isinstance(given, dict) and isinstance(merged, dict) else ():
        if isinstance(merged[name], dict) and "pool" not in merged[name]:
            known = [str(other) for other in merged if other != name]
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}; a role of its own needs a pool"
            )
            raise ValueError(f"layout {base} has no role {name}; {hint}")


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = copy.copy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
