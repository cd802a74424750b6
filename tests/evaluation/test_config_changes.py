"""A recorded configuration against defaults, key by key."""

from pydantic import Field

from rayrlhf.config import Section
from rayrlhf.evaluation.config_changes import Key, completed, defaults, flat, keys


class Stopping(Section):
    metric: str = Field(default="eval/loss")
    patience: int = Field(default=3)


class Engine(Section):
    lr: float = Field(default=1e-3)
    betas: tuple[float, float] = Field(default=(0.9, 0.95))


class Data(Section):
    train: str
    max_tokens: int = Field(default=256)


class Job(Section):
    model: str
    data: Data
    engine: Engine = Field(default=Engine(lr=1e-4))
    stopping: Stopping | None = Field(default=None)
    hf_token: str | None = Field(default=None)


GIVEN = {"model": "runs/a", "data": {"train": "s3://k:s@b/x"}, "engine": {"betas": [0.9, 0.99]}}


def test_what_differs_comes_first() -> None:
    config = Job.model_validate(GIVEN | {"hf_token": "abc"}).model_dump(mode="json")
    assert keys(config, Job) == [
        Key("model", "runs/a", None, True),  # has no default
        Key("data.train", "s3://***@b/x", None, True),
        Key("engine.betas", "[0.9, 0.99]", "[0.9, 0.95]", True),
        Key("hf_token", "***", "null", True),
        Key("data.max_tokens", "256", "256", False),
        Key("engine.lr", "0.0001", "0.0001", False),  # the default that its parent gives it
        Key("stopping", "null", "null", False),
    ]


def test_a_section_that_is_absent_by_default() -> None:
    config = Job.model_validate(GIVEN | {"stopping": {"patience": 3}}).model_dump(mode="json")
    changed = {key.name: key.default for key in keys(config, Job) if key.is_changed}
    assert changed["stopping.metric"] == "null" and changed["stopping.patience"] == "null"


def test_another_version_s_configuration_is_shown_without_marks() -> None:
    config = {"model": "runs/a", "hf_token": "abc", "gone": {"key": 1}}
    for cls in (Job, None):
        assert keys(config, cls) == [
            Key("model", "runs/a", None, None),
            Key("hf_token", "***", None, None),
            Key("gone.key", "1", None, None),
        ]
    assert completed(config, Job) == config
    assert completed(GIVEN, Job)["engine"]["lr"] == 1e-4, "keys that have come since"


def test_defaults_and_dotted_keys() -> None:
    assert defaults(Job) == {
        "data": {"max_tokens": 256},
        "engine": {"lr": 1e-4, "betas": [0.9, 0.95]},
        "stopping": None,
        "hf_token": None,
    }
    assert flat({"a": {"b": 1, "c": {}}, "d": [{"e": 1}]}) == {"a.b": 1, "a.c": {}, "d": [{"e": 1}]}
