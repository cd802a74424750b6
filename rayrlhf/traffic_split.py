"""An A/B test: requests for one name, answered by several models in given shares."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping


def choose(split: str, weights: Mapping[str, float], user: str | None = None) -> str:
    """The model that answers a request for `split`; `weights` are positive, their sum does not matter.

    A user gets the same model each time, on every server: their place in [0, 1) is a hash of the split's name and
    their own.  When weights change, only the users between old and new bounds move.  Without a user each request is
    drawn anew.
    """
    place = random.random() if user is None else _place(f"{split}\0{user}")
    total, bound, name = sum(weights.values()), 0.0, ""
    for name, weight in weights.items():
        bound += weight / total
        if place < bound:
            return name
    return name  # the bounds may add up to a little less than 1


def _place(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
