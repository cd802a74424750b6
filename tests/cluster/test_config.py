"""Layouts as users write them: by name, by path, in parts, inline."""

import pytest
from pydantic import Field

from cluster.config import LayoutConfig
from rayrlhf.config import Section, load, to_yaml
from rayrlhf.errors import ConfigError


class Job(Section):
    layout: LayoutConfig = Field(default_factory=lambda: LayoutConfig.model_validate("cpu"), description="where")


def from_text(tmp_path, text, *overrides):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load(Job, str(path), list(overrides)).layout


def test_by_name_on_the_command_line():
    assert load(Job, None, ["layout=eight_gpu"]).layout.roles["rollout"].ranks == 3


def test_parts_overlay_the_base(tmp_path):
    layout = from_text(tmp_path, "layout: {base: eight_gpu}", "layout.roles.rollout.ranks=2")
    assert layout.roles["rollout"].ranks == 2
    assert layout.roles["rollout"].gpus == 1  # the rest stays
    assert layout.roles["policy"].ranks == 4


def test_parts_without_a_base_overlay_cpu():
    layout = load(Job, None, ["layout.roles.policy.ranks=2"]).layout
    assert (layout.roles["policy"].ranks, layout.roles["policy"].cpus) == (2, 0.2)


def test_by_path(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("pools: {p: {cpus: 2}}\nroles: {policy: {pool: p, cpus: 2}}\n")
    assert set(from_text(tmp_path, f"layout: {mine}").roles) == {"policy"}


def test_what_print_config_prints_loads_back_the_same(tmp_path):
    config = load(Job, None, ["layout=two_node"])
    path = tmp_path / "printed.yaml"
    path.write_text(to_yaml(config))
    assert load(Job, str(path), []) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layout: nine_gpu", "no layout 'nine_gpu'.*cpu, disaggregated, eight_gpu, one_gpu, two_node"),
        ("layout: {roles: {policy: {pool: nowhere}}}", "role policy is on pool 'nowhere'.*pools: all"),
        ("layout: {pools: {idle: {cpus: 1}}}", "no role is on pool idle"),
        ("layout: {roles: {policy: {rank: 2}}}", "layout.roles.policy.rank.*ranks"),
        ("layout: {roles: {policy: {ranks: 0}}}", "layout.roles.policy.ranks"),
        ("layout: {roles: {policy: {offload: true}}}", "policy.offload has no effect without a GPU"),
        ("layout: {base: one_gpu, roles: {reward: {offload: true}}}", "reward.offload: only policy, critic, rollout"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        from_text(tmp_path, text)
