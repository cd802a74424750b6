"""What can be known of a PPO job's configuration before a resource is taken: models, prompts, lengths, batch sizes."""

from __future__ import annotations

import difflib
from functools import partial
from typing import TYPE_CHECKING

from actors.config import check_lengths
from rayrlhf.errors import ConfigError

if TYPE_CHECKING:
    from jobs.ppo_config import PPOConfig


def check(config: PPOConfig) -> None:
    """Raises UserError."""
    from cluster.bring_up import check_run_root
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.causal_lm import check_folder, check_scores, check_writes, load_tokenizer, stop_strings
    from rayrlhf.reward_sources.columns import check_columns
    from rayrlhf.score_function import load_function
    from rayrlhf.training.job import check_data, check_enough

    check_run_root(config.run.root)
    _check_roles(config)
    check_batches(config)
    if config.reward_function:
        load_function(config.reward_function, "reward_function")
        most = max(config.loop.rollout_batch, config.loop.evaluation_prompts)
        config.reward_failures.check_time(-(-most // config.layout.roles["reward"].ranks), config.call_deadline_s)
    if config.gold:
        load_function(config.gold)
    folders = {role: model_folder(path) for role, path in config.models.items()}
    reads_text = check_tokenizers(config, folders)
    contexts = [check_folder(folder) for role, folder in folders.items() if not (reads_text and role == "reward")]
    check_writes(folders["policy"], f"policy_model={config.policy_model}")
    if config.reference_model:
        check_writes(folders["reference"], f"reference_model={config.reference_model}")
    if config.reward_model:
        check_scores(folders["reward"], f"reward_model={config.reward_model}")
    stops = [*config.sampling.stop_strings, *stop_strings(folders["policy"])]
    if config.partial_rollout_tokens and stops:
        raise ConfigError(
            f"partial_rollout_tokens={config.partial_rollout_tokens}, and the text {stops[0]!r} ends a response "
            "(sampling.stop_strings, or the model's generation_config.json): one that begins in a part and ends in the "
            "next would not be seen. Leave one of them out"
        )
    if config.rollout.max_model_len:
        contexts.append(config.rollout.max_model_len)
    check_lengths(config.prompts.max_tokens, config.sampling.max_new_tokens, min(contexts), "prompts.max_tokens")
    if config.prompts.validation is None:
        raise ConfigError("prompts.validation is not set: PPO evaluates on held-out prompts")
    tokenizer = load_tokenizer(folders["policy"])
    held_out, found = config.prompts.validation, check_data(config.prompts, "prompts", "prompts", lambda: tokenizer)
    enough = partial(check_enough, kind="prompts", data=config.prompts, tokenizer=tokenizer)
    enough(held_out, found[held_out], wanted=config.loop.evaluation_prompts, key="loop.evaluation_prompts")
    check_columns(config.reward_function, config.prompts)
    if config.policy.pretraining:
        data = config.policy.pretraining.data
        check_data(data, "text", "policy.pretraining.data")
        if data.packing is not None:
            raise ConfigError("policy.pretraining.data.packing has no effect: rows are single texts. Leave it out")
        if data.max_tokens > min(contexts):
            raise ConfigError(
                f"policy.pretraining.data.max_tokens={data.max_tokens} is above the context of {min(contexts)} tokens"
            )
        if data.max_tokens > config.policy.microbatch_tokens:
            raise ConfigError(
                f"policy.pretraining.data.max_tokens={data.max_tokens} does not fit policy.microbatch_tokens="
                f"{config.policy.microbatch_tokens}: lower one or raise the other"
            )


def _check_roles(config: PPOConfig) -> None:
    from jobs.ppo_config import ROLES

    unknown = sorted(config.layout.roles.keys() - set(ROLES))
    if unknown:
        near = difflib.get_close_matches(unknown[0], ROLES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ROLES)}"
        raise ConfigError(f"layout.roles.{unknown[0]}: no role has that name; {hint}")
    config.layout.only(config.roles)


def check_tokenizers(config: PPOConfig, folders: dict[str, str]) -> bool:
    """Whether the reward model reads other tokens than the policy's, so that responses go to it as text.

    Raises ConfigError for a reference or critic that does: they judge token by token.
    """
    from rayrlhf.data.vocabulary import reads
    from rayrlhf.models.causal_lm import check_folder, load_tokenizer
    from rayrlhf.reward_sources.retokenise import reads_tokens

    for folder in folders.values():
        check_folder(folder)
    policy = load_tokenizer(folders["policy"])
    for role in ("reference", "critic"):
        folder = folders.get(role, folders["policy"])
        if folder == folders["policy"] or reads(load_tokenizer(folder), policy):
            continue
        if role == "critic" and not config.critic_model:
            raise ConfigError(
                f"reward_model={config.reward_model} has another tokenizer than policy_model={config.policy_model}, so "
                "the critic, which reads the policy's tokens, cannot start from it: set critic_model, such as "
                f"critic_model={config.policy_model}, or an algorithm.estimator without a critic"
            )
        raise ConfigError(
            f"{role}_model={getattr(config, f'{role}_model')} has another tokenizer than policy_model="
            f"{config.policy_model}, whose tokens it has to read: give one with the policy's tokens"
        )
    return bool(config.reward_model) and not reads_tokens(folders["reward"], folders["policy"])


def check_batches(config: PPOConfig) -> None:
    """The rollout batch divides into whole minibatches and groups, and an adaptive KL bears it; ConfigError
    otherwise."""
    from rayrlhf.algorithms.kl_control import MAX_ERROR

    group_size = config.algorithm.group_size
    if config.loop.rollout_batch % group_size:
        raise ConfigError(
            f"loop.rollout_batch={config.loop.rollout_batch} is not a multiple of algorithm.group_size={group_size}, "
            "the samples of a prompt; set one of them"
        )
    kl = config.algorithm.kl
    if kl.target is not None and kl.horizon <= MAX_ERROR * config.loop.rollout_batch:
        raise ConfigError(
            f"algorithm.kl.horizon={kl.horizon:g} lets a step of loop.rollout_batch={config.loop.rollout_batch} "
            f"sequences turn beta to 0: set it well above {MAX_ERROR * config.loop.rollout_batch:g}"
        )
    updates = {"policy": config.policy} | ({"critic": config.critic} if config.algorithm.has_critic else {})
    for role, update in updates.items():
        stage = update.engine.zero_stage
        if config.layout.roles[role].offload and stage in (0, 3):
            raise ConfigError(
                f"layout.roles.{role}.offload: DeepSpeed moves optimizer states at ZeRO 1 and 2, not at "
                f"{role}.engine.zero_stage={stage}: set it to 1, 2 or auto, or leave offload out"
            )
    mix, minibatches = config.policy.pretraining, config.loop.rollout_batch // config.policy.minibatch
    if mix is not None and mix.rows < minibatches:
        raise ConfigError(
            f"policy.pretraining.rows={mix.rows} leaves some of the {minibatches} minibatches of an RL step without a "
            f"text: set it to {minibatches} or more"
        )
    longest = config.prompts.max_tokens + config.sampling.max_new_tokens
    for name, update in updates.items():
        budget = min(update.microbatch_tokens, update.forward_tokens)
        if longest > budget:
            raise ConfigError(
                f"a prompt and its response may have {longest} tokens, more than {name}.microbatch_tokens or "
                f"forward_tokens ({budget}) holds: raise them, or lower prompts.max_tokens or sampling.max_new_tokens"
            )
        if config.loop.rollout_batch % update.minibatch:
            raise ConfigError(
                f"loop.rollout_batch={config.loop.rollout_batch} is not a multiple of {name}.minibatch="
                f"{update.minibatch}: the last minibatch of each epoch would be smaller; set one of them"
            )
