"""The weight beta of the KL penalty: adaptive, or fixed behind the same interface."""

from __future__ import annotations

from torch import Tensor

MAX_ERROR = 0.2


class AdaptiveKL:
    """Steers the KL of the policy from the reference towards a target.

    beta *= 1 + clip(kl / target - 1, -0.2, 0.2) * num_sequences / horizon

    target: nats per sequence.  horizon: sequences; at the largest error beta changes by 20 % within it.
    Raises ValueError unless init, target and horizon are above 0 (a beta of 0 could never move).

    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2,
    with num_sequences / horizon in the place of K_beta as in their code (`AdaptiveKLController`).
    """

    def __init__(self, init: float, target: float, horizon: float) -> None:
        for name, value in (("init", init), ("target", target), ("horizon", horizon)):
            if not value > 0:
                raise ValueError(f"AdaptiveKL: {name} is {value}; it must be above 0")
        self.beta = float(init)
        self.target = float(target)
        self.horizon = float(horizon)

    def update(self, kl: float | Tensor, num_sequences: int) -> None:
        """Move beta after an RL step.

        kl: the mean over the step's sequences of the KL summed over each (a number or a scalar tensor).
        Raises ValueError for a KL that is not finite, and where beta would turn 0 or negative.
        """
        kl = float(kl)
        if not abs(kl) < float("inf"):
            raise ValueError(f"AdaptiveKL: kl is {kl}: a log-probability of this step is not finite")
        error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
        factor = 1 + error * num_sequences / self.horizon
        if not factor > 0:
            raise ValueError(
                f"AdaptiveKL: {num_sequences} sequences a step with horizon {self.horizon:g} would make beta "
                f"{self.beta * factor:g}: set the horizon well above {MAX_ERROR * num_sequences:g}"
            )
        self.beta *= factor

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must keep; target and horizon come from the config."""
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore `state_dict()`.  Raises ValueError for the state of another controller."""
        if set(state) != {"beta"}:
            raise ValueError(f"AdaptiveKL: expected a state with the key beta, got {sorted(state)}")
        self.beta = float(state["beta"])


class FixedKL:
    """A beta that stays as the config gives it.  Raises ValueError for a negative one."""

    def __init__(self, beta: float) -> None:
        if not beta >= 0:
            raise ValueError(f"FixedKL: beta is {beta}; it must be 0 or above")
        self.beta = float(beta)

    def update(self, kl: float | Tensor, num_sequences: int) -> None:
        """Nothing moves."""

    def state_dict(self) -> dict[str, float]:
        """Empty: the config holds all there is."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Raises ValueError for the state of another controller, which this one would not honour."""
        if state:
            raise ValueError(f"FixedKL: expected an empty state, got {state}: saved by another KL controller")
