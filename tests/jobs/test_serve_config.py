"""What `rayrlhf serve` takes: models by name on the command line, settings of each, and what is refused."""

import json
from pathlib import Path

import pytest

from jobs import serve
from jobs.serve_config import ServeConfig, Served, check_follow, check_key, check_models, is_loopback, split_arguments
from rayrlhf.config import load, to_yaml
from rayrlhf.errors import ConfigError


def served(*argv: str) -> dict[str, Served]:
    return {one.name: one for one in load(ServeConfig, None, split_arguments(argv)).served}


def test_stage_directories_are_named_after_their_stages() -> None:
    paths = [
        "runs/demo/sft",
        "runs/demo/ppo/best",
        "runs/demo/dpo/step_000120/",
        "models/Qwen2.5-0.5B",
        "s3://b/kto/latest",
    ]
    assert {name: one.model for name, one in served(*paths, "kv_cache_gib=0.25").items()} == {
        "sft": "runs/demo/sft",
        "ppo": "runs/demo/ppo/best",
        "dpo": "runs/demo/dpo/step_000120/",
        "Qwen2.5-0.5B": "models/Qwen2.5-0.5B",
        "kto": "s3://b/kto/latest",
    }


def test_models_are_named_on_the_command_line(tmp_path: Path) -> None:
    settings = ["kv_cache_gib=0.25", "models.ppo.kv_cache_gib=0.125", "ab={mix: {ppo: 1}}"]
    found = served(f"v1.5={tmp_path}", "runs/demo/ppo", *settings)
    assert {name: (one.model, one.kv_cache_gib) for name, one in found.items()} == {
        "v1.5": (str(tmp_path), 0.25),
        "ppo": ("runs/demo/ppo", 0.125),
    }
    with pytest.raises(ConfigError, match="named ppo: give names, as in first=runs/a/ppo second=runs/b/ppo"):
        split_arguments(["runs/a/ppo", "runs/b/ppo"])
    assert split_arguments(["serve.yaml", "name=x", "model=runs/demo/ppo", "--dry-run"]) == [
        "serve.yaml", "name=x", "model=runs/demo/ppo", "--dry-run",
    ]  # fmt: skip


def test_one_model_or_several() -> None:
    one = ServeConfig(model="runs/demo/ppo", name="policy", replicas=2)
    assert [(s.name, s.model, s.replicas) for s in one.served] == [("policy", "runs/demo/ppo", 2)]
    for wrong in ({}, {"model": "a", "models": {"b": "c"}}):
        with pytest.raises(ValueError, match="give model=PATH for one model, or models="):
            ServeConfig(**wrong)


def test_settings_outside_of_models_are_those_of_every_model_but_for_its_own(tmp_path: Path) -> None:
    given = {
        "models": {"a": "x", "b": {"model": "y", "dtype": "bfloat16", "replicas": 1, "max_model_len": 5}},
        "replicas": 3, "cpus": 0.5, "autoscaling": {"max_replicas": 4}, "ab": {"mix": {"a": 1, "b": 2.5}},
    }  # fmt: skip
    config = ServeConfig.model_validate(given)
    a, b = config.served
    assert (a.dtype, a.replicas, a.cpus, a.max_model_len) == ("float32", 3, 0.5, None)
    assert (b.dtype, b.replicas, b.cpus, b.max_model_len) == ("bfloat16", 1, 0.5, 5)
    assert a.autoscaling is not None and a.autoscaling == b.autoscaling
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load(ServeConfig, str(tmp_path / "again.yaml"), []) == config


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ab": {"a": {"a": 1}}}, "ab.a: a model has that name already"),
        ({"ab": {"mix": {"a": 1, "c": 1}}}, "ab.mix names c; there are a, b"),
        ({"ab": {"mix": {}}}, "ab.mix names no model"),
        ({"ab": {"mix": {"a": 0}}}, "greater than 0"),
        ({"models": {"a:b": "x"}}, "pattern"),
        ({"replicas": 3, "autoscaling": {"max_replicas": 2}}, "max_replicas=2 is below replicas=3"),
    ],
)
def test_names_and_numbers_that_do_not_agree_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServeConfig.model_validate({"models": {"a": "x", "b": "y"}} | given)


def test_a_key_is_asked_for_where_others_can_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")] == [True] * 3 + [
        False
    ] * 2
    plain = ServeConfig(model="x", host="0.0.0.0")
    with pytest.raises(ConfigError, match="host=0.0.0.0 lets other machines connect, and no API key is set"):
        check_key(plain, is_open=True)
    check_key(plain, is_open=False)
    check_key(plain.model_copy(update={"without_key": True}), is_open=True)
    keyed = plain.model_copy(update={"api_key_env": "SERVE_TEST_KEY"})
    for value in (None, " "):
        monkeypatch.delenv("SERVE_TEST_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("SERVE_TEST_KEY", value)
        with pytest.raises(ConfigError, match="that variable is not set here: export SERVE_TEST_KEY="):
            check_key(keyed, is_open=False)
    monkeypatch.setenv("SERVE_TEST_KEY", "abc\n")
    check_key(keyed, is_open=True)
    assert keyed.api_key == "abc" and "abc" not in to_yaml(keyed)


def test_reward_models_and_the_settings_that_they_have(tiny_model, foreign_reward_folder: str) -> None:
    models = {"lm": tiny_model("llama"), "rm": {"model": foreign_reward_folder, "cpus": 0.5}}
    check_models(ServeConfig(models=models, ab={"mix": {"lm": 1}}, kv_cache_gib=0.1))
    with pytest.raises(ConfigError, match=r"ab.mix names rm, a reward model"):
        check_models(ServeConfig(models=models, ab={"mix": {"lm": 1, "rm": 1}}))
    for key, value in (("dtype", "bfloat16"), ("kv_cache_gib", 0.1), ("max_model_len", 10)):
        own = {"model": foreign_reward_folder, key: value}
        with pytest.raises(ConfigError, match=rf"models.rm.{key}={value}: .* is a reward model"):
            check_models(ServeConfig(models={"rm": own}))


def test_following_needs_a_stage(tiny_model) -> None:
    def following(*paths: str) -> ServeConfig:
        return ServeConfig(models={f"m{n}": path for n, path in enumerate(paths)}, follow_s=5)

    check_follow(following("runs/demo/ppo"))
    check_follow(following("runs/demo/ppo/best", tiny_model("llama")))
    with pytest.raises(ConfigError, match="follow_s=5, but no newer checkpoint can come of"):
        check_follow(following("runs/demo/ppo/step_000010", tiny_model("llama")))


def test_the_plan_has_room_for_an_update_that_may_come() -> None:
    models = {"a": "x", "b": {"model": "y", "replicas": 4, "cpus": 2.0, "device": "gpu", "kv_cache_gib": 3.0}}
    plain = ServeConfig(models=models)
    assert [(r.name, r.ranks, r.cpus, r.gpus) for r in serve.plan(plain)] == [
        ("serve a", 1, 1.0, 0.0), ("serve b", 4, 2.0, 1.0),
    ]  # fmt: skip
    assert [r.memory.total for r in serve.plan(plain)] == [3.0, 5.5]
    for surge, ranks in ((100, [2, 8]), (30, [2, 6]), (0, [1, 4])):
        config = plain.model_copy(update={"follow_s": 5.0, "surge_percent": surge})
        assert [role.ranks for role in serve.plan(config)] == ranks


def test_every_setting_of_a_deployment() -> None:
    config = ServeConfig(
        model="x",
        replicas=2,
        cpus=0.5,
        limits={"max_ongoing": 7, "max_queued": 9},
        drain_s=11,
        health_check_s=13,
        surge_percent=50,
    )
    (one,) = config.served
    expected = {
        "num_replicas": 2,
        "ray_actor_options": {"num_cpus": 0.5},
        "max_constructor_retry_count": 1,
        "max_ongoing_requests": 7,
        "max_queued_requests": 9,
        "backpressure_config": {"status_code": 429},
        "graceful_shutdown_timeout_s": 11,
        "health_check_period_s": 13,
        "max_surge_percent": 50,
    }
    assert serve.deployment_settings(one, config) == expected
    scaled = {"max_replicas": 4, "target_ongoing": 3, "upscale_delay_s": 1, "downscale_delay_s": 2}
    config = ServeConfig.model_validate(config.model_dump() | {"autoscaling": scaled})
    del expected["num_replicas"]
    assert serve.deployment_settings(config.served[0], config) == expected | {
        "autoscaling_config": {
            "min_replicas": 2,
            "max_replicas": 4,
            "target_ongoing_requests": 3,
            "upscale_delay_s": 1,
            "downscale_delay_s": 2,
        }  # fmt: skip
    }


def test_the_example_can_be_pasted(tiny_model, foreign_reward_folder: str) -> None:
    config = ServeConfig(models={"lm": tiny_model("llama")}, api_key_env="KEY")
    line = serve._example(config, "http://h:1/v1")
    assert line.startswith('curl http://h:1/v1/completions -H "Authorization: Bearer $KEY" -H ')
    assert json.loads(line.split("-d ")[1].strip("'"))["model"] == "lm"
    assert "/v1/score" in serve._example(ServeConfig(models={"rm": foreign_reward_folder}), "http://h:1/v1")


@pytest.mark.parametrize("key", ["host", "port", "start_deadline_s", "follow_s"])
def test_an_application_of_a_file_takes_no_keys_of_the_listening(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: not of an application's args"):
        serve.application({"models": {"a": "x"}, key: 1})


def test_an_application_of_a_file_asks_for_a_key_and_names_unknown_ones(tiny_model) -> None:
    with pytest.raises(ConfigError, match="no API key is set"):
        serve.application({"models": {"a": tiny_model("llama")}})
    with pytest.raises(ConfigError, match="replica"):
        serve.application({"models": {"a": "x"}, "replica": 2})
