"""What a score goes through before it becomes a reward: running normalisation, then a clip."""

from __future__ import annotations

import torch
from torch import Tensor


class ScoreShaping:
    """score -> clip((score - mean) / std, -clip, clip), mean and std over all scores seen so far.

    clip: None does not clip.  normalise: False leaves the scores' scale as it is.  The statistics
    are updated with a batch before it is normalised, by the parallel algorithm of Chan et al. 1979;
    scores that have not varied yet are only centred.

    Raises ValueError unless clip is above 0.
    """

    def __init__(self, clip: float | None = None, normalise: bool = False) -> None:
        if clip is not None and not clip > 0:
            raise ValueError(f"ScoreShaping: clip is {clip}; it must be above 0")
        self.clip, self.normalise = clip, normalise
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # squares: sum of squared deviations from the mean

    def __call__(self, scores: Tensor) -> Tensor:
        """Shape one RL step's scores f32 `[B]`.  Raises ValueError for one that is not finite."""
        if not bool(scores.isfinite().all()):
            rows = (~scores.isfinite()).nonzero().flatten().tolist()
            raise ValueError(f"{len(rows)} of {len(scores)} scores are not finite (first rows: {rows[:8]})")
        if self.normalise:
            self._observe(scores.double())
            std = (self.squares / self.count) ** 0.5
            scores = (scores - self.mean) / (std if std > 0 else 1.0)
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)

    def _observe(self, scores: Tensor) -> None:
        count, mean = len(scores), float(scores.mean())
        total, delta = self.count + count, mean - self.mean
        self.squares += float(torch.square(scores - mean).sum()) + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must keep."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore `state_dict()`."""
        self.count, self.mean, self.squares = int(state["count"]), state["mean"], state["squares"]
