"""The shape of a model that is trained from scratch."""

import math

from pydantic import Field, model_validator

from rayrlhf.config import Section
from rayrlhf.errors import ConfigError


class ModelConfig(Section):
    """A Llama of this size; its vocabulary is the tokenizer's."""

    from_folder: str | None = Field(
        default=None,
        description="continue from this stage directory or Hugging Face folder instead of a fresh Llama; "
        "the sizes below are then not used",
    )
    tokenizer: str | None = Field(
        default=None, description="folder or stage with the tokenizer of a fresh model (a `prepare` stage)"
    )
    hidden: int = Field(default=128, ge=1, description="width of the residual stream")
    layers: int = Field(default=4, ge=1, le=10_000, description="number of layers")
    heads: int = Field(default=4, ge=1, description="attention heads; must divide hidden")
    kv_heads: int = Field(default=4, ge=1, description="key and value heads; must divide heads")
    intermediate: int = Field(default=344, ge=1, description="width of the gated feed-forward layer")
    context: int = Field(default=128, ge=2, description="longest sequence in tokens")
    tied: bool = Field(default=True, description="share the input and the output embedding")

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(f"hidden={self.hidden} must be an even multiple of heads={self.heads} (rotary positions)")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        return self

    def source(self) -> str:
        """The folder that the tokenizer (and, when continuing, the weights) come from."""
        folder = self.from_folder or self.tokenizer
        if not folder:
            raise ConfigError(
                "model.tokenizer and model.from_folder are both empty: set model.tokenizer to a stage or folder "
                "with a tokenizer (a fresh model) or model.from_folder to a model to continue from"
            )
        return folder

    def num_parameters(self, vocabulary: int) -> int:
        """Parameters of the fresh model with this vocabulary."""
        return sum(math.prod(shape) for shape in self.shapes(vocabulary).values())

    def shapes(self, vocabulary: int) -> dict[str, tuple[int, ...]]:
        """The fresh model's weights by name, with this vocabulary."""
        hidden, wide, keys = self.hidden, self.intermediate, self.hidden // self.heads * self.kv_heads
        block: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes = {f"model.layers.{n}.{name}": shape for n in range(self.layers) for name, shape in block.items()}
        shapes |= {"model.norm": (hidden,), "model.embed_tokens": (vocabulary, hidden)}
        shapes |= {} if self.tied else {"lm_head": (vocabulary, hidden)}
        return {f"{name}.weight": shape for name, shape in shapes.items()}
