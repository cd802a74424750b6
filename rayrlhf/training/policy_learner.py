"""One rank of the policy as PPO trains it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rayrlhf.algorithms.entropy_control import EntropyControl
from rayrlhf.algorithms.logprobs import token_logprobs_and_entropy
from rayrlhf.algorithms.masking import masked_sum
from rayrlhf.algorithms.ppo_loss import policy_loss
from rayrlhf.batches import PolicyBatch, Rollouts
from rayrlhf.models.causal_lm import load_causal_lm, load_tokenizer
from rayrlhf.models.forward import causal_logits
from rayrlhf.roles import Metrics
from rayrlhf.training.distributed import seed_all
from rayrlhf.training.engine import Engine
from rayrlhf.training.learner import Learner
from rayrlhf.training.passes import response_logprobs
from rayrlhf.training.ppo_config import PolicyUpdateConfig

_NAMES = {
    "loss/policy": "loss/policy_avg",
    "policy/approxkl": "policy/approxkl_avg",
    "policy/clipfrac": "policy/clipfrac_avg",
    "policy/ratio": "val/ratio",
    "objective/entropy": "objective/entropy",
}


class PolicyLearner(Learner):
    """Log-probs and updates of a causal language model."""

    role = "policy"

    def __init__(
        self, folder: str, config: PolicyUpdateConfig, temperature: float, total_steps: int, seed: int
    ) -> None:
        """`folder`: a Hugging Face causal LM with its tokenizer.  `temperature`: that of the sampling,
        so that log-probs are of the distribution sampled from.  `total_steps`: optimizer steps of the
        run (`config.optimizer_steps`).  Raises ModelError."""
        seed_all(seed)
        engine = Engine(load_causal_lm(folder), config.engine, total_steps)
        super().__init__(engine, load_tokenizer(folder), config, seed)
        self.config, self.temperature = config, temperature
        self.entropy_control = EntropyControl(config.entropy.coefficient, config.entropy.target, config.entropy.rate)

    def logprobs(self, rollouts: Rollouts) -> Tensor:
        """log_softmax(logits / temperature) of each response token, f32 `[B, T]`, 0 elsewhere; the
        whole batch on every rank."""
        return self.forward(rollouts, lambda part: response_logprobs(self.engine.module, part, self.temperature))

    def update(self, batch: PolicyBatch, step: int) -> Metrics:
        """All epochs and minibatches of one RL step; every rank is given the whole `batch`.

        `policy/first_ratio_max_dev` is the largest |ratio - 1| on the first minibatch: 0 up to
        rounding, as no weight has moved since the batch's log-probs were computed.
        """
        steps = self.learn(batch, step, self._piece_loss)
        metrics = self.averages(steps, _NAMES)
        metrics["policy/first_ratio_max_dev"] = steps[0][1]["policy/ratio_dev_max"]
        metrics["policy/entropy_coefficient"] = self.entropy_control.coefficient
        self.entropy_control.update(metrics["objective/entropy"])
        return metrics

    def state(self) -> dict[str, Any]:
        return {"entropy_control": self.entropy_control.state_dict()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.entropy_control.load_state_dict(state["entropy_control"])

    def _piece_loss(self, part: PolicyBatch, num_tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
        config, mask = self.config, part.response_mask
        logits = causal_logits(self.engine.module, part.tokens, part.lengths)
        bonus = self.entropy_control.coefficient
        logprobs, entropies = token_logprobs_and_entropy(logits, part.tokens, self.temperature, entropy_grad=bonus > 0)
        loss, stats = policy_loss(
            logprobs, part.logprobs, part.advantages, mask, config.clip_low, config.clip_high, num_tokens
        )
        entropy = masked_sum(entropies, mask) / num_tokens
        deviation = ((logprobs.detach() - part.logprobs)[mask].exp() - 1).abs()
        stats |= {
            "objective/entropy": entropy.detach(),
            "policy/ratio_dev_max": deviation.max() if len(deviation) else deviation.new_zeros(()),
        }
        return loss - bonus * entropy, stats
