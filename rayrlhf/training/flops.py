"""Floating-point operations of the matrix products that a pass needs (Chowdhery et al. 2022, PaLM, appendix B).

A product with a matrix of N weights takes 2 N operations a token forward (a multiplication and an addition each), and
as many again for each of the two gradients: of its input and, where it learns, of itself.  Attention multiplies every
query with every key and every weight with every value of its text: 2 n each, times heads and their size.  As in PaLM:

- The output head counts for the p tokens of a text whose logits are asked for, the only ones that are computed.
- Texts count by their real tokens, n each; padding and passes for nothing (a rank's empty microbatches) do not.
- The causal mask halves nothing, nor does a sliding window take anything off.
- Look-ups, norms, activations, the softmax and the optimizer are no matrix products.
- What is computed twice to save memory counts once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn


class Text(NamedTuple):
    """One text of a pass."""

    tokens: int
    predicted: int  # tokens whose logits are asked for; without meaning to a model of scalars


@dataclass(frozen=True)
class ModelShape:
    """What a pass through a model multiplies with."""

    trained: int  # weights of matrices that learn; an output head that is tied to the embeddings is one
    frozen: int  # and of those that do not, such as those under an adapter
    attention: int  # query heads times their size, summed over layers
    trained_head: int = 0  # of the output head over a vocabulary, which is not among `trained` and `frozen`
    frozen_head: int = 0


def flops(shape: ModelShape, texts: Iterable[Text], backward: bool = True) -> int:
    """Operations of one pass over `texts`; with `backward` also of the gradients.

    (6 trained + 4 frozen) n + (6 trained_head + 4 frozen_head) p + 12 attention n^2 a text; forward alone
    2 (trained + frozen) n + 2 (trained_head + frozen_head) p + 4 attention n^2.
    With frozen weights everywhere below the first adapter that layer's gradient of its input, which nobody needs, is
    counted too.
    """
    tokens = predicted = pairs = 0
    for text in texts:
        tokens += text.tokens
        predicted += text.predicted
        pairs += text.tokens**2
    learning, fixed, product = (6, 4, 12) if backward else (2, 2, 4)
    return (
        (learning * shape.trained + fixed * shape.frozen) * tokens
        + (learning * shape.trained_head + fixed * shape.frozen_head) * predicted
        + product * shape.attention * pairs
    )


def model_shape(model: Any) -> ModelShape | None:
    """Of a transformers causal LM or sequence classifier, with an adapter in it or not.

    None where a token does not go through every weight once, so that the count would be wrong: mixtures of experts,
    convolutions, virtual tokens.
    """
    from transformers.pytorch_utils import Conv1D

    if hasattr(model, "prompt_encoder"):
        return None
    head = model.get_output_embeddings()
    of_head = set() if head is None else set(head.modules())
    counts, head_counts = {True: 0, False: 0}, {True: 0, False: 0}
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.ParameterDict):  # a look-up; IA3's factors, which scale
            continue
        is_product = isinstance(module, nn.Linear | Conv1D)
        for parameter in module.parameters(recurse=False):
            size = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO 3 a rank holds a part
            if len(size) < 2:
                continue
            if not is_product:
                return None
            (head_counts if module in of_head else counts)[parameter.requires_grad] += size.numel()
    config = model.config.get_text_config()
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(counts[True], counts[False], layers * heads * head_dim, head_counts[True], head_counts[False])
