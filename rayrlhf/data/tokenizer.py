"""Train a byte-level BPE tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rayrlhf.data.templates import SNIPPET

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def train(batches: Iterable[list[str]], vocab_size: int, model_max_length: int) -> Any:
    """A PreTrainedTokenizerFast of at most `vocab_size` tokens, trained on batches of texts.

    Special tokens `<pad>` 0, `<s>` 1, `</s>` 2; called plainly it puts `<s>` in front, as the chat
    template does, so completion and chat requests start alike.  Any text can be encoded and comes back.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(batches, trainer=trainer)
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = SNIPPET
    return tokenizer
