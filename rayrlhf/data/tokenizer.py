"""Train a tokenizer: byte-level BPE, or whole words spelled in pieces where they are rare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from rayrlhf.data.config import TokenizerConfig
from rayrlhf.data.templates import SNIPPET

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_WORD_BYTES = 64
PAD, BOS, EOS = SPECIAL = ("<pad>", "<s>", "</s>")

Texts = Callable[[], Iterable[list[str]]]  # batches of texts, from the beginning each time it is called


def train(texts: Texts, config: TokenizerConfig) -> Any:
    """A PreTrainedTokenizerFast of at most `config.vocab_size` tokens.

    Special tokens `<pad>` 0, `<s>` 1, `</s>` 2; called plainly it puts `<s>` in front, as the chat
    template does, so completion and chat requests start alike.  Any text can be encoded and comes back.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if config.kind == "bpe":
        backend = _bpe(texts, config.vocab_size)
    else:
        backend = _words(texts, config.vocab_size, config.num_pieces, config.min_count)
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=config.model_max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = SNIPPET
    return tokenizer


def _bpe(texts: Texts, vocab_size: int) -> Tokenizer:
    from tokenizers import models, pre_tokenizers, trainers

    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts(), trainer=trainer)
    return backend


def _words(texts: Texts, vocab_size: int, num_pieces: int, min_count: int) -> Tokenizer:
    """The most frequent words whole; others from the longest pieces that fit, left to right.

    BPE keeps every intermediate merge as a token: on few texts a small model puts probability on
    thousands of word endings that hardly ever occur, and samples words that do not exist.  Here the
    pieces are few, and a word is in pieces only where it is rare.
    """
    from tokenizers import models

    pieces = _bpe(texts, num_pieces)
    splitter: Any = pieces.pre_tokenizer
    counts = Counter(word for batch in texts() for text in batch for word, _ in splitter.pre_tokenize_str(text))
    # most frequent first, equal counts by spelling: independent of the texts' order
    ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    vocabulary = pieces.get_vocab()
    for _, word in ranked:
        if len(vocabulary) == vocab_size:
            break
        vocabulary.setdefault(word, len(vocabulary))
    model: Any = models.WordPiece  # its stub names none of the keyword arguments
    return _byte_level(
        # all bytes are pieces, so nothing is unknown
        model(vocabulary, unk_token=PAD, continuing_subword_prefix="", max_input_chars_per_word=MAX_WORD_BYTES)
    )


def _byte_level(model: Any) -> Tokenizer:
    """GPT-2's division into words, a leading space being part of its word, in an alphabet of bytes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # the time of a search for the longest piece grows with the cube of a word's length: spam and texts without spaces
    short = pre_tokenizers.FixedLength(length=MAX_WORD_BYTES)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, short])  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return backend
