"""Which optimizer steps not to take: a loss or gradient norm that is not finite, or a spike."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

# the standard deviation of a normal distribution over its median absolute deviation
_MAD_TO_STD = 1.4826
# a window that hardly varies would call its own rounding a spike
_LEAST_SPREAD = 0.01


class SpikeGuard:
    """Judges optimizer steps by their loss and gradient norm, and counts those that were skipped.

    x is a spike where x > median + bound * max(1.4826 * MAD, 0.01 * |median|)

    over the last `window` steps that were taken (MAD: the median of |x_i - median|), of the loss or of the
    norm; nothing is one before the window is full.  Median and MAD, unlike mean and standard deviation, are
    not moved by the outliers that they are to find.  bound None: only numbers that are not finite are
    refused.  Every rank that is given the same numbers decides the same.

    Raises ValueError unless bound is None or above 0 and window at least 2.

    Sources: the bound is the Hampel identifier (Davies and Gather 1993, "The Identification of Multiple
    Outliers"), one-sided; z-scores of gradient norms as a bound: Kumar et al. 2025 (ZClip).
    """

    def __init__(self, bound: float | None = None, window: int = 64) -> None:
        if bound is not None and not bound > 0:
            raise ValueError(f"SpikeGuard: bound is {bound}; it must be above 0, or None for no bound")
        if window < 2:
            raise ValueError(f"SpikeGuard: window is {window}; a spread needs 2 steps or more")
        self.bound = bound
        self.num_skipped = 0  # of the whole run
        self.num_in_row = 0  # since the last step that was taken
        self._taken = {name: deque[float](maxlen=window) for name in ("loss", "gradient norm")}

    def problem(self, loss: float, norm: float) -> str:
        """Why a step of this loss and gradient norm is to be skipped, in words; "" where it is to be taken."""
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return f"the {name} is {value}"
            limit = self._limit(self._taken[name])
            if value > limit:
                return f"the {name} {value:.4g} is above its bound {limit:.4g}"
        return ""

    def record(self, loss: float, norm: float, is_taken: bool) -> None:
        """Count a step; what was taken moves the bound."""
        if not is_taken:
            self.num_skipped += 1
            self.num_in_row += 1
            return
        self.num_in_row = 0
        if self.bound is not None:
            self._taken["loss"].append(loss)
            self._taken["gradient norm"].append(norm)

    def _limit(self, values: deque[float]) -> float:
        if self.bound is None or len(values) < (values.maxlen or 0):
            return math.inf
        middle = median(values)
        deviation = median(abs(value - middle) for value in values)
        return middle + self.bound * max(_MAD_TO_STD * deviation, _LEAST_SPREAD * abs(middle))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep; bound and window come from the config."""
        taken = {name: list(values) for name, values in self._taken.items()}
        return {"num_skipped": self.num_skipped, "num_in_row": self.num_in_row, "taken": taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.num_skipped, self.num_in_row = state["num_skipped"], state["num_in_row"]
        for name, values in self._taken.items():
            values.clear()
            values.extend(state["taken"][name])
