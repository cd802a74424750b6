"""One rank of the policy as PPO trains it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from rayrlhf.algorithms.entropy_control import EntropyControl
from rayrlhf.algorithms.kl import kl_loss
from rayrlhf.algorithms.logprobs import chosen_logprobs, chosen_logprobs_and_entropy
from rayrlhf.algorithms.loss_weights import importance_weights, token_weights
from rayrlhf.algorithms.ppo_loss import policy_loss
from rayrlhf.batches import PolicyBatch, Rollouts, TextBatch
from rayrlhf.models.adapters import adapter_off, with_adapter
from rayrlhf.models.causal_lm import load_causal_lm, load_tokenizer, set_end
from rayrlhf.models.forward import chosen_logits
from rayrlhf.roles import Metrics
from rayrlhf.training.distributed import seed_all
from rayrlhf.training.engine import Engine
from rayrlhf.training.flops import Text
from rayrlhf.training.learner import Counts, Learner, texts_of
from rayrlhf.training.moving_average import MovingAverage
from rayrlhf.training.passes import response_logprobs, spread
from rayrlhf.training.ppo_config import Normaliser, PolicyUpdateConfig

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
        self,
        folder: str,
        config: PolicyUpdateConfig,
        temperature: float,
        total_steps: int,
        seed: int,
        normaliser: Normaliser = "tokens",
        normaliser_constant: float | None = None,
        kl_kind: str = "k3",
        stop_strings: Sequence[str] = (),
        offload: bool = False,
    ) -> None:
        """`folder`: a Hugging Face causal LM with its tokenizer.  `temperature`: that of the sampling,
        so that log-probs are of the distribution sampled from.  `total_steps`: optimizer steps of the
        run (`config.optimizer_steps`).  `normaliser`, `normaliser_constant`: of the loss, resolved.
        `kl_kind`: of the KL in the loss, where an update asks for one.  `stop_strings`: of the sampling, saved
        with the model.  `offload`: as Engine has it.  Raises ModelError."""
        seed_all(seed)
        model, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
        if stop_strings:
            set_end(model, tokenizer, stop_strings)
        engine = Engine(with_adapter(model, config.peft), config.engine, total_steps, offload)
        super().__init__(engine, tokenizer, config, seed)
        self.config, self.temperature, self.kl_kind = config, temperature, kl_kind
        self.normaliser, self.normaliser_constant = normaliser, normaliser_constant
        self.entropy_control = EntropyControl(config.entropy.coefficient, config.entropy.target, config.entropy.rate)
        self.average = MovingAverage(engine, config.ema_decay) if config.ema_decay else None
        self._kl_coefficient = 0.0
        self._texts: list[TextBatch] = []

    def logprobs(self, rollouts: Rollouts) -> Tensor:
        """log_softmax(logits / temperature) of each response token, f32 `[B, T]`, 0 elsewhere; the
        whole batch on every rank."""
        return self.forward(rollouts, lambda part: response_logprobs(self.engine.module, part, self.temperature))

    def reference_logprobs(self, rollouts: Rollouts) -> Tensor:
        """`logprobs` of the model that training started from: the adapter of `config.peft` off."""
        with adapter_off(self.engine.module):
            return self.logprobs(rollouts)

    def update(
        self, batch: PolicyBatch, step: int, kl_coefficient: float = 0.0, texts: TextBatch | None = None
    ) -> Metrics:
        """All epochs and minibatches of one RL step; every rank is given the whole `batch`, and `texts`
        where the configuration mixes pretraining in.

        `policy/first_ratio_max_dev` is the largest |ratio - 1| on the first minibatch: 0 up to
        rounding, as no weight has moved since the batch's log-probs were computed.
        """
        self._kl_coefficient = kl_coefficient
        self._texts = [] if texts is None else self._shares_of(texts, len(batch))
        steps = self.learn(batch, step, self._piece_loss)
        if self.average is not None:
            self.average.update()
        metrics = self.averages(steps, _NAMES | self._more_names()) | self.speeds(steps)
        metrics["policy/first_ratio_max_dev"] = steps[0].stats["policy/ratio_dev_max"]
        metrics["policy/optimizer_steps"] = float(sum(not step.is_skipped for step in steps))
        metrics["policy/entropy_coefficient"] = self.entropy_control.coefficient
        if metrics["policy/optimizer_steps"]:
            self.entropy_control.update(metrics["objective/entropy"])
        return metrics

    def _more_names(self) -> dict[str, str]:
        """Statistics that only some configurations have."""
        names = {}
        if self._kl_coefficient:
            names["loss/kl"] = "loss/kl_avg"
        if self._texts:
            names["loss/pretraining"] = "loss/pretraining_avg"
        if self.config.importance_cap is not None:
            names["policy/importance"] = "policy/importance_avg"
            names["policy/importance_capped"] = "policy/importance_capped_share"
        return names

    def _piece_loss(self, part: PolicyBatch | TextBatch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(part, TextBatch):
            return self._text_loss(part, counts)
        config, mask, bonus = self.config, part.response_mask, self.entropy_control.coefficient
        logits = chosen_logits(self.engine.module, part.tokens, part.lengths, mask)
        chosen, entropies = chosen_logprobs_and_entropy(logits, part.tokens[mask], self.temperature)
        logprobs = spread(chosen, mask)
        mean = token_weights(mask, self.normaliser, counts.tokens, counts.sequences, self.normaliser_constant)
        weights, more = mean, {}
        if config.importance_cap is not None:
            importance = importance_weights(part.logprobs, part.sampled_logprobs, mask, config.importance_cap)
            weights = mean * importance
            more["policy/importance"] = importance.sum() / counts.tokens
            more["policy/importance_capped"] = (importance >= config.importance_cap).sum() / counts.tokens
        loss, stats = policy_loss(
            logprobs,
            part.logprobs,
            part.advantages,
            mask,
            config.clip_low,
            config.clip_high,
            counts.tokens,
            config.dual_clip,
            weights,
        )
        if self._kl_coefficient:
            kl, kl_stats = kl_loss(logprobs, part.ref_logprobs, mask, self.kl_kind, counts.tokens, mean)
            loss, more = loss + self._kl_coefficient * kl, more | kl_stats
        entropy = (entropies if bonus else entropies.detach()).sum() / counts.tokens
        deviation = ((logprobs.detach() - part.logprobs)[mask].exp() - 1).abs()
        more["objective/entropy"] = entropy.detach()
        more["policy/ratio_dev_max"] = deviation.max() if len(deviation) else deviation.new_zeros(())
        return loss - bonus * entropy, stats | more

    # ---- PPO-ptx: text in the same optimizer steps

    def _shares_of(self, texts: TextBatch, batch_size: int) -> list[TextBatch]:
        """One part of the texts for each minibatch of an epoch."""
        return texts.dealt(-(-batch_size // self.config.minibatch))

    def also_learn(self, index: int) -> tuple[Iterable[Any], int, list[Text]]:
        if not self._texts:
            return (), 0, []
        mine = self._texts[index % len(self._texts)]
        return self.pieces(mine), int(mine.loss_mask.sum()), texts_of(mine.lengths, mine.loss_mask)

    def _text_loss(self, part: TextBatch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """coefficient * mean negative log-likelihood of a token (InstructGPT eq. 2, gamma), at temperature 1."""
        mix = self.config.pretraining
        assert mix is not None, "texts came, but config.pretraining is not set"
        mask = part.loss_mask
        logits = chosen_logits(self.engine.module, part.tokens, part.lengths, mask)
        loss = -chosen_logprobs(logits, part.tokens[mask]).sum() / counts.text_tokens
        return mix.coefficient * loss, {"loss/pretraining": loss.detach()}

    def is_enough(self, stats: Metrics) -> bool:
        """Early stop on KL, after the update that showed it (OpenAI's Spinning Up stops before that one)."""
        bound = self.config.max_approx_kl
        return bound is not None and stats["policy/approxkl"] > bound

    # ---- checkpoints

    def save(self, model_directory: str, state_directory: str) -> None:
        """As `Learner.save`; with a moving average the model is the averaged one."""
        self.engine.save_model(model_directory, self.tokenizer, self.average.weights if self.average else None)
        self.save_state(state_directory)

    def state(self) -> dict[str, Any]:
        average = {} if self.average is None else {"average": self.average.state_dict()}
        return {"entropy_control": self.entropy_control.state_dict()} | average

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.entropy_control.load_state_dict(state["entropy_control"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
