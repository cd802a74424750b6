"""The weight of the entropy bonus: steered towards an entropy, or fixed."""

from __future__ import annotations

import math


class EntropyControl:
    """Steers the policy's entropy towards a target through the bonus's coefficient.

    coefficient <- max(0, coefficient + rate * (target - entropy))

    which is dual gradient descent on the constraint entropy >= target: below the target the bonus
    grows, above it it shrinks to nothing.  A fixed coefficient has no such balance: too small and the
    policy collapses, a little larger and it drifts into noise, as more entropy leaves a weaker reward
    signal to hold it.

    target: nats per token; None keeps the coefficient as it is.  Raises ValueError for a negative
    coefficient, and unless rate is above 0 where there is a target.

    Source: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", section 5, eq. 18,
    where the temperature is what the coefficient is here.
    """

    def __init__(self, coefficient: float, target: float | None = None, rate: float = 0.0) -> None:
        if not coefficient >= 0:
            raise ValueError(f"EntropyControl: coefficient is {coefficient}; it must be 0 or above")
        if target is not None and not rate > 0:
            raise ValueError(f"EntropyControl: rate is {rate}; with a target it must be above 0")
        self.coefficient, self.target, self.rate = float(coefficient), target, rate

    def update(self, entropy: float) -> None:
        """Move the coefficient after an RL step of this mean entropy, nats per response token.

        Raises ValueError for an entropy that is not finite.
        """
        if not math.isfinite(entropy):
            raise ValueError(f"EntropyControl: entropy is {entropy}: the policy's logits are not finite")
        if self.target is not None:
            self.coefficient = max(0.0, self.coefficient + self.rate * (self.target - entropy))

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must keep; target and rate come from the config."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore `state_dict()`."""
        self.coefficient = float(state["coefficient"])
