"""The learning rate as a pure function of the step."""

import math


def lr_factor(step: int, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Share of the peak learning rate at optimizer step `step` (the first is 0).

    Linear warm-up over `warmup_steps`, reaching 1 at its end, then a cosine to `min_ratio` at
    step `total_steps - 1`, and `min_ratio` ever after.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    length = max(1, total_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / length)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
