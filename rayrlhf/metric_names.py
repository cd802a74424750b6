"""Every metric that a stage logs: its unit, what it is over a step, and what it means.

The dashboard's panels (cluster/grafana), the descriptions of Ray's gauges and docs/metrics.md come from this list.
`python -m rayrlhf.metric_names` prints docs/metrics.md.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["", "nats", "s", "tokens", "rows", "bytes", "share", "tokens/s", "TFLOP/s", "steps", "GiB"]
# mean, max, sum: over what a step saw; total: since the stage began; last: as it is after the step
Kind = Literal["mean", "max", "sum", "total", "last"]

SUPERVISED = ("pretrain", "sft", "reward_model", "dpo", "kto")
PAIRWISE = ("reward_model", "dpo", "kto")
PPO = ("ppo",)
_TELLING = ("reward_model", "dpo")  # good from bad
GAUGE_PREFIX = "rayrlhf_"


@dataclass(frozen=True)
class Metric:
    """`name` is `group/name_unit`, with `*` where the run's own words stand; `when`: what it needs to be there."""

    name: str
    unit: Unit
    kind: Kind
    meaning: str
    stages: tuple[str, ...] = PPO
    when: str = ""

    @property
    def group(self) -> str:
        return self.name.split("/")[0]

    @property
    def gauge(self) -> str:
        """Ray's name for it, with `*` a regular expression; Prometheus puts `ray_` before it."""
        return gauge_name(self.name.replace("*", "STAR")).replace("STAR", ".+")

    def is_name(self, name: str) -> bool:
        """Whether `name`, as a row of metrics.jsonl has it, is of this metric."""
        return re.fullmatch(".+".join(map(re.escape, self.name.split("*"))), name) is not None


def gauge_name(name: str) -> str:
    """What Ray calls the gauge of a metric."""
    return GAUGE_PREFIX + re.sub(r"\W", "_", name)


@functools.cache
def find(name: str) -> Metric | None:
    """The metric of that name; where a name with `*` fits too, the one without it.  None: there is none."""
    fitting = [metric for metric in METRICS if metric.is_name(name)]
    return min(fitting, key=lambda metric: "*" in metric.name, default=None)


def described(name: str) -> str:
    """What the metric of that name means, with its unit; the name itself for one that is not here."""
    metric = find(name)
    if metric is None:
        return name
    return f"{name}: {metric.meaning}" + (f" [{metric.unit}]" if metric.unit else "")


_M = Metric
_EVALUATED = (
    ("score", "", "mean score of the responses"),
    ("kl", "nats", "log-ratio to the reference (evaluate: the baseline), summed over a sequence"),
    ("length", "tokens", "mean length of a response"),
    ("finished_share", "share", "responses that ended by themselves"),
    ("distinct_2", "share", "unique word pairs among all word pairs of the responses"),
    ("repetition_2", "share", "word pairs of a response that occurred in it before"),
    ("perplexity", "", "exp of the mean negative log-likelihood of a response token under the base model"),
    ("gold", "", "mean of the gold function, never trained on"),
    ("gold_positive_share", "share", "responses with a gold score above 0"),
    ("known_word_share", "share", "words of the responses that the known texts have"),
)
_EVALUATED_WHEN = {"gold": "gold", "gold_positive_share": "gold", "known_word_share": "words"}

_GROUPED = "algorithm.group_size"
_FAILURES = "reward_failures.score"

OBJECTIVE = (
    _M("objective/scores", "", "mean", "score of a response, before shaping"),
    _M("objective/scores_std", "", "mean", "standard deviation of the scores"),
    _M("objective/frac_reward_zero_std", "share", "mean", "prompts whose samples have equal scores", when=_GROUPED),
    _M("objective/scores_reward_model", "", "mean", "the reward model's part of the score", when="reward_model"),
    _M("objective/scores_function", "", "mean", "the reward function's part of the score", when="reward_function"),
    *(
        _M(f"objective/failed_{kind}", "rows", "sum", f"responses: the reward function {meaning}", when=_FAILURES)
        for kind, meaning in (
            ("timeout", "took too long"),
            ("exception", "raised"),
            ("count", "gave none or several scores for the one"),
            ("died", "ended its process"),
            ("not_number", "gave no number"),
            ("not_finite", "gave no finite number"),
        )
    ),
    _M("objective/scored_alone", "rows", "sum", "responses scored alone, as the batch's call failed", when=_FAILURES),
    _M("objective/kl", "nats", "mean", "log-ratio to the reference, summed over a sequence", ("ppo", "kto")),
    _M("objective/kl_per_token", "nats", "mean", "log-ratio to the reference of a response token"),
    _M("objective/kl_token_max_abs", "nats", "max", "largest log-ratio to the reference of one token"),
    _M("objective/non_score_reward", "nats", "mean", "reward of a sequence without its score: the KL term"),
    _M("objective/rlhf_reward", "", "mean", "reward of a sequence: score and KL term"),
    _M("objective/beta", "", "last", "coefficient of the KL"),
    _M("objective/entropy", "nats", "mean", "entropy of the policy's next token"),
)
POLICY = (
    _M("policy/approxkl_avg", "nats", "mean", "half the squared log-ratio to the policy that sampled, a token"),
    _M("policy/clipfrac_avg", "share", "mean", "response tokens whose ratio was clipped"),
    _M("policy/first_ratio_max_dev", "", "max", "largest |ratio - 1| on the first minibatch: 0 up to rounding"),
    _M("policy/optimizer_steps", "steps", "sum", "optimizer steps that were taken in the RL step"),
    _M("policy/entropy_coefficient", "", "last", "coefficient of the entropy bonus"),
    _M("policy/importance_avg", "", "mean", "weight of a token for the engine's other log-prob", when="importance_cap"),
    _M("policy/importance_capped_share", "share", "mean", "tokens whose weight was cut", when="importance_cap"),
    _M("val/ratio", "", "mean", "probability of a token under the policy over that when it was sampled"),
    _M("val/clipfrac_avg", "share", "mean", "values whose change was clipped", when="a critic"),
)
CRITIC = (
    _M("critic/explained_variance", "", "mean", "1 - Var(returns - values) / Var(returns)", when="a critic"),
    _M("critic/value_mean", "", "mean", "value of a response token", when="a critic"),
    _M("critic/return_mean", "", "mean", "return of a response token", when="a critic"),
)
LOSS = (
    _M("loss/train", "", "mean", "the stage's loss", SUPERVISED),
    _M("loss/policy_avg", "", "mean", "clipped policy loss"),
    _M("loss/value_avg", "", "mean", "clipped value loss", when="a critic"),
    _M("loss/kl_avg", "nats", "mean", "KL term of the loss", when="algorithm.kl.kind k2 or k3"),
    _M("loss/pretraining_avg", "nats", "mean", "NLL of a mixed-in token", when="policy.pretraining"),
)
REWARDS = (
    _M("rewards/chosen", "", "mean", "reward of chosen or good texts", PAIRWISE, "pairs or labels"),
    _M("rewards/rejected", "", "mean", "reward of rejected or bad texts", PAIRWISE, "pairs or labels"),
    _M("rewards/margins", "", "mean", "chosen less rejected", PAIRWISE, "pairs or labels"),
    _M(
        "rewards/accuracies",
        "share",
        "mean",
        "pairs, or labels, that are told right",
        ("reward_model", "dpo"),
        "pairs or labels",
    ),
    _M("rewards/absolute_error", "", "mean", "|score - rating|", ("reward_model",), "loss=regression"),
    _M("logps/chosen", "nats", "mean", "log-prob of the chosen completion", ("dpo",)),
    _M("logps/rejected", "nats", "mean", "log-prob of the rejected completion", ("dpo",)),
)
ROLLOUT = (
    _M("rollout/length", "tokens", "mean", "length of a response"),
    _M("rollout/length_max", "tokens", "max", "length of the longest response"),
    _M("rollout/finished_share", "share", "mean", "responses that ended by themselves"),
    _M("rollout/repetition_4", "share", "mean", "token 4-grams of a response that occurred in it before"),
    _M("rollout/distinct_2", "share", "mean", "unique token pairs among all token pairs of the responses"),
    _M("rollout/tokens", "tokens", "sum", "response tokens"),
)
HEALTH = (
    _M("health/fired", "", "last", "watches that have fired and not recovered"),
    _M("health/*", "", "last", "1 while this watch (loop.health) has fired"),
)
SYNC = (
    _M("sync/logprob_gap", "nats", "mean", "|log-prob as the engine sampled - the policy's own| of a token"),
    _M("sync/logprob_gap_max", "nats", "max", "the largest such gap"),
    _M("sync/logprob_drift", "nats", "mean", "the same of weights as old as sync/staleness", when="max_staleness"),
    _M("sync/logprob_drift_max", "nats", "max", "the largest such difference", when="max_staleness"),
    _M(
        "sync/partial_share",
        "share",
        "mean",
        "responses sampled in more than one part, the later ones by newer weights",
        when="partial_rollout_tokens",
    ),
    _M("sync/staleness", "steps", "mean", "RL steps between the weights that sampled and those that learn"),
    _M("sync/publish_s", "s", "last", "time to bring the weights to the rollout engines"),
    _M("sync/bytes", "bytes", "last", "size of the published weights"),
    _M("sync/version", "", "last", "version of the published weights"),
)
OPTIM = (
    _M("optim/grad_norm", "", "last", "gradient norm before clipping", SUPERVISED),
    _M("optim/lr", "", "last", "learning rate", SUPERVISED),
    _M("optim/skipped_steps", "steps", "total", "optimizer steps that were skipped", SUPERVISED),
    _M("optim/rollbacks", "", "total", "returns to a checkpoint", (*SUPERVISED, "ppo")),
    _M("optim/rolled_back_to", "steps", "last", "the step of that checkpoint", SUPERVISED, "a rollback"),
    _M("optim/policy_grad_norm", "", "mean", "gradient norm of the policy before clipping"),
    _M("optim/policy_lr", "", "last", "learning rate of the policy"),
    _M("optim/policy_skipped_steps", "steps", "total", "optimizer steps of the policy that were skipped"),
    _M("optim/critic_grad_norm", "", "mean", "gradient norm of the critic before clipping", when="a critic"),
    _M("optim/critic_lr", "", "last", "learning rate of the critic", when="a critic"),
    _M("optim/critic_skipped_steps", "steps", "total", "optimizer steps of the critic skipped", when="a critic"),
)
TIME = (
    _M("time/step_s", "s", "sum", "the whole step", (*SUPERVISED, "ppo")),
    _M("time/data_s", "s", "sum", "waiting for the step's rows (before the step; ppo: in it)", (*SUPERVISED, "ppo")),
    _M("time/evaluate_s", "s", "sum", "the validation or evaluation after the step", (*SUPERVISED, "ppo"), "one due"),
    _M("time/rollout_generate_s", "s", "sum", "sampling responses"),
    _M("time/policy_logprobs_s", "s", "sum", "the policy's log-probs of the responses"),
    _M("time/reference_logprobs_s", "s", "sum", "the reference's log-probs of the responses"),
    _M("time/critic_values_s", "s", "sum", "the critic's values"),
    _M("time/reward_scores_s", "s", "sum", "scoring the responses"),
    _M("time/policy_update_s", "s", "sum", "the policy's optimizer steps"),
    _M("time/critic_update_s", "s", "sum", "the critic's optimizer steps", when="a critic"),
    _M("time/sample_wait_s", "s", "sum", "the step's wait for responses sampled ahead", when="max_staleness"),
    _M("time/publisher_export_s", "s", "sum", "copying the weights for sampling ahead", when="max_staleness"),
    _M("time/publisher_load_s", "s", "sum", "bringing the engines such a copy", when="max_staleness"),
    _M("time/publisher_publish_s", "s", "sum", "publishing the weights, with what the driver adds"),
)
_KNOWN = "no experts, no virtual tokens"
PERF = (
    _M("perf/tokens_per_s", "tokens/s", "mean", "tokens trained on a second", SUPERVISED),
    _M("perf/matrix_share", "share", "mean", "matrix_tflops that training reaches in a step", SUPERVISED, _KNOWN),
    _M("perf/matrix_tflops", "TFLOP/s", "last", "fastest matrix products of all workers, as measured", SUPERVISED),
    _M("perf/policy_matrix_share", "share", "mean", "policy_matrix_tflops that its update reaches", when=_KNOWN),
    _M("perf/policy_matrix_tflops", "TFLOP/s", "last", "fastest matrix products of the policy's ranks, as measured"),
    _M("perf/critic_matrix_share", "share", "mean", "critic_matrix_tflops that its update reaches", when="a critic"),
    _M("perf/critic_matrix_tflops", "TFLOP/s", "last", "the same as the policy's", when="a critic"),
    _M("perf/generate_tokens_per_s", "tokens/s", "mean", "response tokens a second of sampling"),
    _M("perf/policy_update_tokens_per_s", "tokens/s", "mean", "tokens the policy learns from, a second of its update"),
    _M("perf/critic_update_tokens_per_s", "tokens/s", "mean", "the same of the critic", when="a critic"),
    _M("perf/role_restarts", "", "total", "actors begun anew after a failure (policy and critic together are one)"),
    _M("perf/rollout_tokens_per_s", "tokens/s", "mean", "response tokens sampled, judged and learnt a second"),
    *(
        _M(f"perf/{who}_{device}memory_gib", "GiB", "max", f"most {what} that {of} held so far", stages, when)
        for device, what, where in (("", "memory", ""), ("gpu_", "GPU memory", "a GPU"))
        for who, of, stages, when in (
            ("worker", "a worker", SUPERVISED, where or "data.validation"),
            ("policy", "a rank of the policy", PPO, where),
            ("critic", "a rank of the critic", PPO, where or "a critic"),
            ("reference", "a reference", PPO, where or "reference actors"),
            ("reward", "a reward actor", PPO, where),
            ("rollout", "a rollout engine's actor", PPO, where),
        )
    ),
)
EVAL = (
    _M("eval/loss", "", "mean", "loss of the held-out rows", SUPERVISED, "data.validation"),
    _M("eval/accuracy", "share", "mean", "held-out pairs, or labels, told right", _TELLING, "data.validation"),
    _M("eval/margin", "", "mean", "chosen less rejected, held out", PAIRWISE, "data.validation"),
    _M("eval/mae", "", "mean", "|score - rating|, held out", ("reward_model",), "loss=regression"),
    _M("eval/demonstration_score", "", "mean", "score that all scores lose", ("reward_model",), "demonstrations"),
    _M("eval/demonstration_noise", "", "mean", "how unevenly they lose it", ("reward_model",), "demonstrations"),
    *(
        _M(f"eval/{name}", unit, "mean", f"{meaning}, held-out prompts", when=_EVALUATED_WHEN.get(name, ""))  # type: ignore[arg-type]
        for name, unit, meaning in _EVALUATED
        if name not in ("repetition_2", "perplexity", "known_word_share")
    ),
    *(
        _M(f"eval/{side}/{name}", unit, "mean", f"{side}: {meaning}", ("evaluate",), _EVALUATED_WHEN.get(name, ""))  # type: ignore[arg-type]
        for side in ("policy", "baseline")
        for name, unit, meaning in _EVALUATED
    ),
    *(
        _M(f"eval/win_rate_{judge}{end}", "share", "mean", f"{meaning} by {by}", ("evaluate",), when)
        for judge, by, when in (("reward", "the reward", ""), ("gold", "the gold function", "gold"))
        for end, meaning in (
            ("", "prompts on which the policy beats the baseline,"),
            ("_low", "lower end of the 95 % interval of the win rate"),
            ("_high", "upper end of the 95 % interval of the win rate"),
        )
    ),
)
PAIRS = tuple(
    _M(f"pairs/{name}_{split}", unit, "mean", meaning, ("pairs",), when)  # type: ignore[arg-type]
    for split, when in (("train", ""), ("validation", "prompts.validation"))
    for name, unit, meaning in (
        ("score", "", "score of a sample"),
        ("margin", "", "score of the chosen sample less that of the rejected one"),
        ("kept_share", "share", "prompts that gave a pair"),
    )
)
_ROWS = {
    "read": "rows that were read",
    "kept": "rows that are used",
    "cut": "rows cut to the longest length, of those used",
    "dropped_bad": "rows that cannot be read",
    "dropped_too_long": "rows that are too long",
    "dropped_equal": "pairs of equal texts",
    "dropped_empty": "rows without an answer",
}
DATA = (
    _M("data/tokens", "tokens", "total", "tokens trained on", SUPERVISED),
    _M("data/packing_fill", "share", "last", "how full packed rows are", ("pretrain",), "data.packing"),
    *(
        _M(f"data/{part}rows_{name}", "rows", "last", f"{meaning}{of}", stages, when)
        for part, of, stages, when in (
            ("", "", (*SUPERVISED, "ppo"), "one source"),
            ("validation_", ", held out", SUPERVISED, "data.validation"),
            ("*_", ", by source", (*SUPERVISED, "ppo"), "several sources"),
        )
        for name, meaning in _ROWS.items()
    ),
    _M("data/mixture_rows_*", "rows", "total", "rows trained on, by source", SUPERVISED, "several sources"),
    _M("data/mixture_tokens_*", "tokens", "total", "tokens trained on, by source", SUPERVISED, "several sources"),
    _M("data/mixture_row_share_*", "share", "total", "share of the rows, by source", SUPERVISED, "several sources"),
    _M("data/mixture_token_share_*", "share", "total", "share of the tokens, by source", SUPERVISED, "several sources"),
)
METRICS: tuple[Metric, ...] = (
    *OBJECTIVE,
    *POLICY,
    *CRITIC,
    *LOSS,
    *REWARDS,
    *EVAL,
    *PAIRS,
    *ROLLOUT,
    *HEALTH,
    *SYNC,
    *OPTIM,
    *TIME,
    *PERF,
    *DATA,
)


_HEAD = """# Metrics

Made from `rayrlhf/metric_names.py` by `python -m rayrlhf.metric_names > docs/metrics.md`; a test compares the two.

What each stage writes to `metrics.jsonl`, its trackers and Ray's gauges, a row a step. `*` stands for a word of the
run's own, such as a source's name. In Prometheus `objective/kl` is `ray_rayrlhf_objective_kl`, with the labels `run`
and `stage`.

Over a step: mean, max and sum are over what the step saw; total is since the stage began (of what was skipped: since
the run began); last is as it is after the step."""


def document() -> str:
    """docs/metrics.md."""
    lines = [_HEAD]
    for group in dict.fromkeys(metric.group for metric in METRICS):
        lines += [
            "",
            f"## {group}",
            "",
            "| metric | unit | over a step | meaning | stages | with |",
            "|---|---|---|---|---|---|",
        ]
        for metric in (metric for metric in METRICS if metric.group == group):
            meaning, stages = metric.meaning.replace("|", "\\|"), ", ".join(metric.stages)
            cells = f"`{metric.name}`", metric.unit, metric.kind, meaning, stages, metric.when
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
