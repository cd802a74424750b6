"""What a stage that trained an adapter must have saved."""

from __future__ import annotations

from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rayrlhf.checkpoint import find_stage

TOKENS = torch.arange(30)[None]


def check_saved(stage: str, base: str, scores: bool = False) -> None:
    """model/ loads with plain transformers, adapter/ with plain peft on the base model: the same outputs, others
    than the base model's; and both are among the files that the stage vouches for."""
    found = find_stage(stage)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= found.manifest["files"].keys()
    cls: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    # in float64 what is left is the rounding of the merged weights to float32, not that of two ways to multiply
    labels: dict[str, Any] = {"dtype": torch.float64} | ({"num_labels": 1, "pad_token_id": 0} if scores else {})
    merged, plain, under = (cls.from_pretrained(path, **labels).eval() for path in (found.model_dir, base, base))
    with torch.no_grad():
        expected = merged(input_ids=TOKENS).logits
        beside = peft.PeftModel.from_pretrained(under, f"{found.path}/adapter").eval()
        near = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(beside(input_ids=TOKENS).logits, expected, atol=near, rtol=0)
        assert not torch.allclose(plain(input_ids=TOKENS).logits, expected, atol=1e-3)
