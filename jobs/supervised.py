"""What SFT, the reward model, DPO and KTO share as jobs: a model, rows, a training; no job itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from rayrlhf.config import Section
from rayrlhf.data.config import DataConfig
from rayrlhf.errors import ConfigError
from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.run import RunConfig
from rayrlhf.training.config import TrainConfig
from rayrlhf.training.job import LOSS_ONLY

if TYPE_CHECKING:
    from cluster.layout import RolePlan
    from rayrlhf.models.targets import Shapes
    from rayrlhf.profile_steps import Steps


class FineTuneConfig(Section):
    """A stage that starts from a model."""

    run: RunConfig = Field(description="which run this is")
    model: str = Field(description="the model to start from: a stage directory or a Hugging Face folder")
    data: DataConfig = Field(description="the rows")
    chat_template: str | None = Field(
        default=None,
        description="how conversations become text: chatml, llama3, roles (### User: ...) or a Jinja file, saved with "
        "the stage's tokenizer, for the stages after it and the server; null: the template of model's tokenizer",
    )
    peft: PeftConfig | None = Field(
        default=None, description="train an adapter (and a reward model's head); null: all weights"
    )
    train: TrainConfig = Field(default=TrainConfig(), description="how it is trained")


class WriterConfig(FineTuneConfig):
    """A stage whose model writes answers."""

    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="texts that end an answer, besides the end token: saved in the stage's generation_config.json, for "
        "rollouts, `rayrlhf generate` and the server",
    )


class PreferenceTuningConfig(WriterConfig):
    """A policy that learns from preferences against a frozen reference."""

    beta: float = Field(default=0.1, gt=0, description="how much leaving the reference costs")
    reference: str | None = Field(default=None, description="what leaving is measured against; null: model")


class FineTuning:
    """The four functions of a job whose stage `kind` learns from rows of form `rows`."""

    def __init__(self, kind: str, rows: str, metrics: tuple[str, ...] = LOSS_ONLY, texts_per_row: int = 1) -> None:
        """`metrics`, `texts_per_row`: as `rayrlhf.training.job.check` takes them."""
        self.kind, self.rows, self.metrics, self.texts_per_row = kind, rows, metrics, texts_per_row

    def form(self, config: Any) -> str:
        """The form of the rows in the data."""
        return self.rows

    def validated(self, config: Any) -> tuple[str, ...]:
        """The metrics of a validation."""
        return self.metrics

    def num_texts(self, config: Any) -> int:
        """Texts that a row has, or at least."""
        return self.texts_per_row

    def times(self, config: Any) -> int:
        """Examples that a row gives."""
        return 1

    def parents(self, config: FineTuneConfig) -> dict[str, str]:
        """What this stage is made from."""
        from rayrlhf.training.job import data_parents

        return {"model": config.model} | data_parents(config.data)

    def check(self, config: FineTuneConfig) -> None:
        """Model and data are there and fit together; UserError otherwise."""
        from rayrlhf.model_folder import model_folder
        from rayrlhf.models.causal_lm import check_known, check_writes
        from rayrlhf.training import job

        may_score = self.kind == "reward_model"  # a reward model may be continued
        context = (check_known if may_score else check_writes)(model_folder(config.model), f"model={config.model}")
        metrics, num_texts = self.validated(config), self.num_texts(config)
        tokenizer = self.tokenizer(config)
        job.check(
            self.form(config),
            config.data,
            config.train,
            context,
            metrics,
            num_texts,
            lambda: tokenizer,
            self.times(config),
        )
        self.plan(config)  # finds the layers of an adapter
        if config.peft is not None and not config.peft.is_mergeable:
            self.check_virtual_tokens(config.peft, config.data.max_tokens, context)

    def tokenizer(self, config: FineTuneConfig) -> Any:
        """The model's tokenizer, with the stage's chat template."""
        from rayrlhf.data.chat_templates import template_text, with_template
        from rayrlhf.model_folder import model_folder
        from rayrlhf.models.causal_lm import load_tokenizer

        found = load_tokenizer(model_folder(config.model))
        if config.chat_template is None:
            return found
        return with_template(found, template_text(config.chat_template), config.chat_template)

    def check_virtual_tokens(self, peft: PeftConfig, max_tokens: int, context: int) -> None:
        """They serve this stage, and there is room for them; ConfigError otherwise."""
        if self.kind != "sft":
            raise ConfigError(
                f"peft.kind={peft.kind} is for SFT only: its virtual tokens cannot be merged into weights, which are "
                "all that later stages, vLLM and the server read, and fresh ones change the model, so that training "
                "would not start at its reference. Set peft.kind=lora or ia3"
            )
        if max_tokens + peft.num_virtual_tokens > context:
            raise ConfigError(
                f"data.max_tokens={max_tokens} and peft.num_virtual_tokens={peft.num_virtual_tokens} are together more "
                f"than the model's context of {context} tokens: lower one of them"
            )

    def plan(self, config: FineTuneConfig) -> list[RolePlan]:
        """The Ray Train workers."""
        from rayrlhf.model_folder import model_folder
        from rayrlhf.models.headers import tensor_shapes
        from rayrlhf.models.targets import adapter_size

        shapes = tensor_shapes(model_folder(config.model))
        return worker_plan(self.kind, config.train, shapes, adapter_size(config.peft, shapes))

    def steps(self, config: FineTuneConfig) -> int | None:
        """The most steps that are taken; None where the rows decide."""
        return config.train.max_steps

    def run(self, config: FineTuneConfig, profile: Steps | None = None) -> str:
        """Train; returns the finished stage directory.  `profile`: the steps to record.  Ray is connected."""
        from rayrlhf.model_folder import model_folder
        from rayrlhf.training.launcher import fit

        parents, folder, rows = self.parents(config), model_folder(config.model), self.form(config)
        more = self.options(config) | {"peft": config.peft, "chat_template": config.chat_template, "profile": profile}
        return fit(self.kind, rows, config.run, config.data, config.train, folder, config, parents, **more)

    def options(self, config: Any) -> dict[str, Any]:
        """Further arguments of `fit`: a loss of its own, its reference."""
        return {}


class PreferenceTuning(FineTuning):
    """A job whose policy and reference are causal language models."""

    def parents(self, config: Any) -> dict[str, str]:
        return super().parents(config) | ({"reference": config.reference} if config.reference else {})

    def check(self, config: Any) -> None:
        from rayrlhf.model_folder import model_folder
        from rayrlhf.models.causal_lm import check_writes

        for key, path in (("model", config.model), ("reference", config.reference)):
            if path:
                check_writes(model_folder(path), f"{key}={path}")
        super().check(config)

    def options(self, config: Any) -> dict[str, Any]:
        from rayrlhf.model_folder import model_folder

        return {"reference": model_folder(config.reference or config.model), "stop_strings": config.stop_strings}


def worker_plan(name: str, train: TrainConfig, shapes: Shapes, num_adapter: int | None = None) -> list[RolePlan]:
    """One role of `train.num_workers` equal Ray Train workers that train weights of these `shapes`, or only an adapter
    of `num_adapter` parameters beside them."""
    from cluster import layout, memory

    tokens, has_logits = train.microbatch_tokens, name != "reward_model"
    need = memory.trained(shapes, train.engine, train.num_workers, tokens, tokens, num_adapter, has_logits)
    need = replace(need, process=need.process + memory.ROWS_AHEAD_GIB)
    cpus, gpus, threads = train.cpus_per_worker, train.gpus_per_worker, train.threads_per_worker
    return [layout.worker_plan(name, train.num_workers, cpus, gpus, need, threads)]
