"""What `rayrlhf serve` is told: models by name, A/B names, replicas, limits, the API key."""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayrlhf.config import Section
from rayrlhf.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")]
Dtype = Literal["float32", "bfloat16", "float16"]
Weight = Annotated[float, Field(gt=0)]
SETTINGS = ("device", "dtype", "max_model_len", "kv_cache_gib", "replicas", "cpus", "autoscaling")
_NO_SCORER = ("dtype", "max_model_len", "kv_cache_gib")  # a reward model runs in float32, and has no cache
_POINTER = re.compile(r"best|latest|model|step_\d+")
_OPTION = re.compile(r"([\w.-]+)=(.*)", re.DOTALL)


class AutoscalingConfig(Section):
    """More replicas than `replicas` while there is work for them."""

    max_replicas: int = Field(ge=1, description="most replicas; `replicas` is the least")
    target_ongoing: float = Field(default=16.0, gt=0, description="requests at a time that each replica should have")
    upscale_delay_s: float = Field(default=30.0, ge=0, description="more are started after so long above the target")
    downscale_delay_s: float = Field(default=600.0, ge=0, description="some are stopped after so long below it")


class LimitsConfig(Section):
    """What is refused, with an error that the client can read."""

    body_mib: float = Field(default=4.0, gt=0, description="largest body of a request (413)")
    max_tokens: int | None = Field(
        default=None, ge=1, description="longest answer in tokens (400 above); unset: what the context leaves"
    )
    max_answers: int = Field(
        default=128, ge=1, description="most answers of one request (prompts times n), or texts to score (400)"
    )
    max_ongoing: int = Field(default=256, ge=1, description="requests at a time in one replica; others wait")
    max_queued: int = Field(default=256, ge=1, description="requests of a model that may wait (429 beyond)")


class ServedModel(Section):
    """One of several models; what is unset here is what the key of that name outside of `models` says."""

    model: str = Field(description="a stage directory or a Hugging Face folder; a reward model answers /v1/score")
    device: Literal["cpu", "gpu"] | None = Field(default=None, description="what its replicas run on")
    dtype: Dtype | None = Field(default=None, description="arithmetic of its engine")
    max_model_len: int | None = Field(default=None, ge=2, description="longest prompt + answer in tokens")
    kv_cache_gib: float | None = Field(default=None, gt=0, description="memory of a replica's KV cache, in GiB")
    replicas: int | None = Field(default=None, ge=1, le=10_000, description="engines that share its requests")
    cpus: float | None = Field(default=None, gt=0, description="Ray CPUs that each of its replicas books")
    autoscaling: AutoscalingConfig | None = Field(default=None, description="more replicas under load")


@dataclass(frozen=True)
class Served:
    """One model with its settings resolved."""

    name: str
    model: str
    device: str
    dtype: str
    max_model_len: int | None
    kv_cache_gib: float
    replicas: int
    cpus: float
    autoscaling: AutoscalingConfig | None


class ServeConfig(Section):
    """`rayrlhf serve STAGE_DIR ... [NAME=STAGE_DIR ...] [key=value ...]` serves each stage's model, under the stage's
    name or NAME."""

    model: str | None = Field(
        default=None, description="the one model to serve: a stage directory (runs/NAME/ppo) or a Hugging Face folder"
    )
    name: Name = Field(default="rayrlhf", description="the one model's name in OpenAI requests")
    models: dict[Name, str | ServedModel] = Field(
        default={}, description="several models: NAME -> stage directory or Hugging Face folder, or settings of its own"
    )
    ab: dict[Name, dict[Name, Weight]] = Field(
        default={},
        description="A/B names: NAME -> {model: weight}; each request for NAME goes to one of them, a `user` always to "
        "the same",
    )
    host: str = Field(default="127.0.0.1", description="interface to listen on")
    port: int = Field(default=8000, ge=1, le=65535, description="HTTP port")
    api_key_env: str | None = Field(
        default=None, min_length=1, description="environment variable with the API key that requests must bring"
    )
    without_key: bool = Field(
        default=False, description="serve other machines without a key, as behind a gateway that asks for one"
    )
    device: Literal["cpu", "gpu"] = Field(default="cpu", description="what the replicas run on")
    dtype: Dtype = Field(
        default="float32", description="arithmetic of the engine; on CPU only float32 runs at every batch size"
    )
    max_model_len: int | None = Field(
        default=None, ge=2, description="longest prompt + answer in tokens; unset: the model's own context"
    )
    kv_cache_gib: float = Field(default=0.5, gt=0, description="memory for the KV cache of one replica, in GiB")
    replicas: int = Field(default=1, ge=1, le=10_000, description="engines that share a model's requests")
    cpus: float = Field(default=1.0, gt=0, description="Ray CPUs that each replica books")
    autoscaling: AutoscalingConfig | None = Field(
        default=None, description="more replicas under load; unset: always `replicas`"
    )
    limits: LimitsConfig = Field(default=LimitsConfig(), description="what is refused")
    score_batch: int = Field(default=64, ge=1, description="most texts that a reward model scores in one pass")
    follow_s: float | None = Field(
        default=None, gt=0, description="look every so many seconds for newer checkpoints and roll them out; unset: no"
    )
    surge_percent: int = Field(
        default=100, ge=0, le=100, description="replicas of an update that start before old ones stop; 0: stop first"
    )
    drain_s: float = Field(default=60.0, ge=0, description="how long a replica that is to stop may finish its requests")
    health_check_s: float = Field(default=10.0, gt=0, description="how often replicas are asked whether they are well")
    start_deadline_s: float = Field(default=300.0, gt=0, description="give up when it does not answer by then")

    @model_validator(mode="after")
    def _names_agree(self) -> ServeConfig:
        if bool(self.models) == (self.model is not None):
            what = "both are" if self.models else "neither is"
            raise ValueError(f"give model=PATH for one model, or models={{NAME: PATH, ...}} for several; {what} given")
        names = [served.name for served in self.served]
        alike = Counter(re.sub(r"[^A-Za-z0-9]+", "_", name) for name in names).most_common(1)
        if alike[0][1] > 1:
            raise ValueError(
                f"{', '.join(names)}: two names differ in punctuation alone, and would be one deployment's"
            )
        for split, weights in self.ab.items():
            if split in names:
                raise ValueError(f"ab.{split}: a model has that name already")
            unknown = [name for name in weights if name not in names]
            if unknown or not weights:
                raise ValueError(f"ab.{split} names {', '.join(unknown) or 'no model'}; there are {', '.join(names)}")
        for served in self.served:
            if served.autoscaling is not None and served.autoscaling.max_replicas < served.replicas:
                raise ValueError(
                    f"{served.name}: autoscaling.max_replicas={served.autoscaling.max_replicas} is below "
                    f"replicas={served.replicas}, which is the least"
                )
        return self

    @property
    def served(self) -> list[Served]:
        """Every model with its settings."""
        given = {self.name: self.model} if self.model is not None else self.models
        found = []
        for name, one in given.items():
            own = ServedModel(model=one) if isinstance(one, str) else one
            settings = {key: getattr(own, key) for key in SETTINGS}
            filled = {key: getattr(self, key) if value is None else value for key, value in settings.items()}
            found.append(Served(name, own.model, **filled))
        return found

    @property
    def api_key(self) -> str | None:
        """The key from the environment; ConfigError where it is not there."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"api_key_env={self.api_key_env}, but that variable is not set here: "
                f"export {self.api_key_env}=$(openssl rand -hex 32), and give the same to the clients"
            )
        return key


def is_reward_model(folder: str) -> bool:
    """Whether the model of a Hugging Face folder scores texts."""
    from rayrlhf.models.causal_lm import architecture

    return "SequenceClassification" in architecture(folder)


def check_models(config: ServeConfig) -> None:
    """Every folder holds a model that can be served with its settings; A/B names are of language models."""
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.causal_lm import check_folder, check_scores, load_tokenizer

    scorers = []
    for served in config.served:
        folder = model_folder(served.model)
        context = check_folder(folder)
        load_tokenizer(folder)
        if is_reward_model(folder):
            check_scores(folder, f"models.{served.name}={served.model}")
            _check_scorer(config, served)
            scorers.append(served.name)
        elif served.max_model_len is not None and served.max_model_len > context:
            raise ConfigError(
                f"max_model_len={served.max_model_len} exceeds the {context} positions that {folder} "
                f"was made for: set max_model_len={context} or less"
            )
    for split, weights in config.ab.items():
        wrong = [name for name in weights if name in scorers]
        if wrong:
            raise ConfigError(f"ab.{split} names {', '.join(wrong)}, a reward model, which answers no request for text")


def _check_scorer(config: ServeConfig, served: Served) -> None:
    own = config.models.get(served.name)
    for key in _NO_SCORER:
        if isinstance(own, ServedModel) and getattr(own, key) is not None:
            raise ConfigError(
                f"models.{served.name}.{key}={getattr(own, key)}: {served.model} is a reward model, which runs in "
                f"float32, at its own context and without a KV cache. Remove {key}"
            )


def check_key(config: ServeConfig, is_open: bool) -> None:
    """The API key is there where one is asked for; ConfigError too for none where other machines can connect."""
    if config.api_key is None and is_open and not config.without_key:
        raise ConfigError(
            f"host={config.host} lets other machines connect, and no API key is set, so anyone could use the models: "
            "set api_key_env=NAME (a variable that holds the key), host=127.0.0.1, or without_key=true where a gateway "
            "in front asks for a key"
        )


def check_follow(config: ServeConfig) -> None:
    """With `follow_s` there is a model of which newer checkpoints can come."""
    paths = [served.model for served in config.served]
    if config.follow_s is not None and not any(map(_can_change, paths)):
        raise ConfigError(
            f"follow_s={config.follow_s:g}, but no newer checkpoint can come of {', '.join(paths)}: name stages "
            "(runs/NAME/STAGE, or runs/NAME/STAGE/best) instead of steps or plain folders, or unset follow_s"
        )


def _can_change(path: str) -> bool:
    name = posixpath.basename(posixpath.normpath(path))
    return name in ("best", "latest") or not (_POINTER.fullmatch(name) or os.path.isfile(f"{path}/config.json"))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_arguments(argv: Sequence[str]) -> list[str]:
    """The common command line of `rayrlhf serve [CONFIG.yaml] [STAGE_DIR ...] [NAME=STAGE_DIR ...] [key=value ...]`.

    A stage's model is named after the stage (runs/demo/ppo and runs/demo/ppo/best: ppo).  Raises ConfigError where two
    get one name.
    """
    options: list[str] = []
    models: dict[str, str] = {}
    for argument in argv:
        option = _OPTION.fullmatch(argument)
        name, path = option.groups() if option else (stage_name(argument), argument)
        is_key = name.partition(".")[0] in ServeConfig.model_fields
        is_model = not option or not is_key and (os.path.isdir(path) or "://" in path)
        if argument.startswith("-") or argument.endswith((".yaml", ".yml")) or not is_model:
            options.append(argument)
            continue
        if name in models:
            raise ConfigError(
                f"{models[name]} and {path} would both be named {name}: give names, as in first={models[name]} "
                f"second={path}"
            )
        models[name] = path
    if not models:
        return options
    entries = ", ".join(f'"{name}": {{"model": "{path}"}}' for name, path in models.items())
    return [f"models={{{entries}}}", *options]  # before the overrides of single settings


def stage_name(path: str) -> str:
    """The last part of a path that is no step, pointer or model folder."""
    parts = [part for part in posixpath.normpath(path).split("/") if part]
    while len(parts) > 1 and _POINTER.fullmatch(parts[-1]):
        parts.pop()
    return parts[-1] if parts else path
