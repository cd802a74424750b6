"""PPO with two ranks of policy and critic and two rollout engines: the same numbers on one node, two and three."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.jobs.test_ppo import assert_invariants, overrides, rows_of

PAIRS = """
layout:
  base: null
  pools:
    train: {{bundles: 2, cpus: 1, strategy: {strategy}}}
    rollout: {{bundles: 2, cpus: 1, strategy: {strategy}}}
    frozen: {{bundles: 1, cpus: 1}}
  roles:
    policy: {{pool: train, ranks: 2, cpus: 0.5}}
    critic: {{pool: train, ranks: 2, cpus: 0.5}}
    rollout: {{pool: rollout, ranks: 2, cpus: 1}}
    reference: {{pool: frozen, cpus: 0.5}}
    reward: {{pool: frozen, cpus: 0.5}}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ranks_and_engines_spread_over_nodes_give_the_numbers_of_one_node(
    tiny_model, reward_folder, prompts_file, tmp_path
):
    def run(name: str, num_nodes: int, layout: str) -> tuple[dict[int, dict[str, float]], dict[str, list[str]]]:
        root = tmp_path / name
        root.mkdir()
        (root / "layout.yaml").write_text(layout)
        keys = overrides(root, tiny_model("llama"), reward_folder("llama"), prompts_file)
        command = [sys.executable, "-m", "tests.jobs.spread", str(root / "layout.yaml"), str(num_nodes), *keys]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (seen,) = (line for line in done.stdout.splitlines() if line.startswith("SEEN "))
        return rows_of(root), json.loads(seen.removeprefix("SEEN "))

    single, _ = run("single", 1, "layout: cpu")
    packed, where = run("packed", 1, PAIRS.format(strategy="PACK"))
    assert len({node for nodes in where.values() for node in nodes}) == 1
    assert_invariants(packed)
    assert packed.keys() == single.keys()
    for step, row in packed.items():
        for name in (name for name in row if name.startswith(("objective/", "loss/", "eval/", "policy/", "critic/"))):
            assert row[name] == pytest.approx(single[step][name], rel=2e-3, abs=2e-4), (step, name)
    for num_nodes in (2, 3):
        spread, where = run(f"nodes{num_nodes}", num_nodes, PAIRS.format(strategy="STRICT_SPREAD"))
        assert len(set(where["train"])) == len(set(where["rollout"])) == 2
        assert len({node for nodes in where.values() for node in nodes}) == num_nodes
        for step, row in spread.items():
            compared = [name for name in row if not name.startswith(("time", "perf", "sync/publish"))]
            assert {name: row[name] for name in compared} == {name: packed[step][name] for name in compared}


def test_every_rank_stands_on_a_bundle_of_its_own(tmp_path):
    import yaml

    from cluster.config import LayoutConfig
    from cluster.layout import places, plan

    layout = LayoutConfig.model_validate(yaml.safe_load(PAIRS.format(strategy="STRICT_SPREAD"))["layout"])
    roles = plan(layout)
    assert {role.name: role.bundles for role in roles if role.ranks == 2} == dict.fromkeys(
        ("policy", "critic", "rollout"), (0, 1)
    )
    found, unplaced = places(roles, [{"CPU": 2.0}] * 3)
    assert unplaced is None and {node for nodes in found.values() for node in nodes} == {0, 1, 2}
