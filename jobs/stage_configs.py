"""Which configuration belongs to a stage of which kind: what a recorded one is compared with."""

from __future__ import annotations

import importlib

from rayrlhf.config import Section

CLASSES = {
    "prepare": "PrepareConfig",
    "ngram_model": "NgramModelConfig",
    "quality_classifier": "QualityClassifierConfig",
    "pretrain": "PretrainConfig",
    "sft": "SFTConfig",
    "reward_model": "RewardModelConfig",
    "pairs": "PairsConfig",
    "dpo": "DPOConfig",
    "kto": "KTOConfig",
    "ppo": "PPOConfig",
    "evaluate": "EvaluateConfig",
}


def config_class(kind: str) -> type[Section] | None:
    """The configuration of the job that makes stages of `kind`; None for a kind that this version has not."""
    name = CLASSES.get(kind)
    return None if name is None else getattr(importlib.import_module(f"jobs.{kind}"), name)
