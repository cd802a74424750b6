"""Train a tokenizer: BPE or unigram over bytes or characters, or whole words spelled in pieces where they are rare."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from rayrlhf.data import characters
from rayrlhf.data.characters import Texts
from rayrlhf.data.config import TokenizerConfig
from rayrlhf.data.templates import SNIPPET

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_WORD_BYTES = 64
PAD, BOS, EOS = SPECIAL = ("<pad>", "<s>", "</s>")
# GPT-2's division into words, as ByteLevel has it, for text that stays text (Radford et al. 2019)
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train(texts: Texts, config: TokenizerConfig) -> Any:
    """A PreTrainedTokenizerFast of at most `config.vocab_size` tokens, from the first `config.max_texts` of `texts`
    (batches of texts, from the beginning each time it is called).

    Special tokens `<pad>` 0, `<s>` 1, `</s>` 2, then `config.special_tokens`; called plainly it puts `<s>` in front,
    as the chat template does, so completion and chat requests start alike.  Any text can be encoded and comes back.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    sample = partial(_first, texts, config.max_texts) if config.max_texts else texts
    if config.alphabet == "characters":
        backend = _characters(sample, config)
    elif config.kind == "words":
        backend = _words(sample, config)
    else:
        backend = _bytes(sample, config, config.vocab_size)
    more = {"extra_special_tokens": list(config.special_tokens)} if config.special_tokens else {}
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
        **more,
    )
    tokenizer.chat_template = SNIPPET
    return tokenizer


def _first(texts: Texts, count: int) -> Iterator[list[str]]:
    left = count
    for batch in texts():
        yield batch[:left]
        left -= len(batch)
        if left <= 0:
            return


def _bytes(texts: Texts, config: TokenizerConfig, vocab_size: int) -> Tokenizer:
    """BPE or unigram (words: their pieces, by BPE) over bytes."""
    from tokenizers import models, pre_tokenizers

    alphabet, is_unigram = pre_tokenizers.ByteLevel.alphabet(), config.kind == "unigram"
    backend = _byte_level(models.Unigram() if is_unigram else models.BPE(), config.split_digits)
    backend.train_from_iterator(texts(), trainer=_trainer(config, vocab_size, alphabet))
    if not is_unigram:
        return backend
    specials = _specials(config)
    scored = json.loads(backend.to_str())["model"]["vocab"]
    found = [(piece, score) for piece, score in characters.ranked(scored) if piece not in specials]
    again = _byte_level(models.Unigram([*((token, 0.0) for token in specials), *found], 0, False), config.split_digits)
    again.add_special_tokens(specials)
    return again


def _characters(texts: Texts, config: TokenizerConfig) -> Tokenizer:
    """BPE or unigram over the frequent characters, bytes for the others."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    specials = _specials(config)
    room = config.vocab_size - len(specials) - len(characters.BYTES)
    kept = characters.frequent(texts, config.coverage, at_most=room)
    short = pre_tokenizers.FixedLength(length=MAX_WORD_BYTES)
    parts: list[Any] = [pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"), short]
    if config.split_digits:
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    learner = Tokenizer(models.Unigram() if config.kind == "unigram" else models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[assignment]
    trainer = _trainer(config, config.vocab_size - len(characters.BYTES), kept)
    learner.train_from_iterator(characters.without_rare(texts, kept), trainer=trainer)
    backend = Tokenizer(characters.with_bytes(learner, specials))
    backend.pre_tokenizer = learner.pre_tokenizer
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])  # type: ignore[assignment]
    backend.add_special_tokens(specials)
    return backend


def _trainer(config: TokenizerConfig, vocab_size: int, alphabet: list[str]) -> Any:
    from tokenizers import trainers

    kind: Any = trainers.UnigramTrainer if config.kind == "unigram" else trainers.BpeTrainer
    specials = _specials(config)
    return kind(vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)


def _specials(config: TokenizerConfig) -> list[str]:
    return [*SPECIAL, *config.special_tokens]


def _words(texts: Texts, config: TokenizerConfig) -> Tokenizer:
    """The most frequent words whole; others from the longest pieces that fit, left to right.

    BPE keeps every intermediate merge as a token: on few texts a small model puts probability on
    thousands of word endings that hardly ever occur, and samples words that do not exist.  Here the
    pieces are few, and a word is in pieces only where it is rare.
    """
    from tokenizers import models

    pieces = _bytes(texts, config, config.num_pieces)
    splitter: Any = pieces.pre_tokenizer
    counts = Counter(word for batch in texts() for text in batch for word, _ in splitter.pre_tokenize_str(text))
    # most frequent first, equal counts by spelling: independent of the texts' order
    ranked = sorted((-count, word) for word, count in counts.items() if count >= config.min_count)
    vocabulary = pieces.get_vocab()
    for _, word in ranked:
        if len(vocabulary) == config.vocab_size:
            break
        vocabulary.setdefault(word, len(vocabulary))
    model: Any = models.WordPiece  # its stub names none of the keyword arguments
    backend = _byte_level(
        # all bytes are pieces, so nothing is unknown
        model(vocabulary, unk_token=PAD, continuing_subword_prefix="", max_input_chars_per_word=MAX_WORD_BYTES),
        config.split_digits,
    )
    backend.add_special_tokens(list(config.special_tokens))
    return backend


def _byte_level(model: Any, split_digits: bool) -> Tokenizer:
    """GPT-2's division into words, a leading space being part of its word, in an alphabet of bytes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # the time of a search for the longest piece grows with the cube of a word's length: spam and texts without spaces
    short = pre_tokenizers.FixedLength(length=MAX_WORD_BYTES)
    parts: list[Any] = [words, short]
    if split_digits:
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return backend
