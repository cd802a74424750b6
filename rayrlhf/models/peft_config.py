"""Which adapter is trained in the place of a model's own weights."""

from typing import Literal

from pydantic import Field, model_validator

from rayrlhf.config import Section

# the keys that each kind of adapter heeds
_KEYS = {
    "lora": ("rank", "alpha", "dropout", "target_modules"),
    "ia3": ("target_modules",),
    "prompt_tuning": ("num_virtual_tokens",),
    "prefix_tuning": ("num_virtual_tokens",),
}
VIRTUAL = ("prompt_tuning", "prefix_tuning")  # tokens before the text: not to be merged into weights


class PeftConfig(Section):
    """Parameter-efficient fine-tuning: a small adapter learns, the model's own weights stay as they are."""

    kind: Literal["lora", "ia3", "prompt_tuning", "prefix_tuning"] = Field(
        default="lora",
        description="lora: an update of low rank to each linear layer (Hu et al. 2022); "
        "ia3: a learned factor for each key, value and feed-forward activation (Liu et al. 2022); only in SFT: "
        "prompt_tuning: learned embeddings before the text (Lester et al. 2021); "
        "prefix_tuning: learned keys and values before it in every layer (Li & Liang 2021)",
    )
    rank: int = Field(default=16, ge=1, description="lora: rank of each update")
    alpha: float = Field(default=32.0, gt=0, description="lora: updates are scaled by alpha / rank")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="lora: share of the update's inputs dropped in training, drawn anew for each microbatch "
        "(so numbers depend on their split); 0 in RL",
    )
    target_modules: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="linear layers to adapt, by the end of their names, such as q_proj or mlp.c_proj; null: lora: all "
        "of attention and feed-forward layers; ia3: keys, values and the feed-forward layer's last",
    )

    num_virtual_tokens: int = Field(
        default=16, ge=1, description="prompt_tuning, prefix_tuning: how many learned tokens come before the text"
    )

    @property
    def is_mergeable(self) -> bool:
        """Whether a plain model can have the adapter in its weights."""
        return self.kind not in VIRTUAL

    @model_validator(mode="after")
    def _heeded(self) -> "PeftConfig":
        for name, field in type(self).model_fields.items():
            if name != "kind" and name not in _KEYS[self.kind] and getattr(self, name) != field.default:
                raise ValueError(f"{name}={getattr(self, name)} has no effect with kind={self.kind}: leave it out")
        return self
