"""The shape of a model that is trained from scratch."""

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
    layers: int = Field(default=4, ge=1, description="number of layers")
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
        attention = 2 * self.hidden * (self.hidden + self.hidden // self.heads * self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + vocabulary * self.hidden * (1 if self.tied else 2)
