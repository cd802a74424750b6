"""What a job says about its data."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rayrlhf.config import Section

DEMO = "demo:snippets"
ARITHMETIC = "demo:arithmetic"

Format = Literal["auto", "jsonl", "parquet", "csv", "text"]
TooLong = Literal["drop", "truncate"]


class DataConfig(Section):
    """The rows a stage trains and validates on."""

    train: str = Field(min_length=1, description="training rows: a file, a folder, a glob or hf://name[:split]")
    validation: str | None = Field(default=None, description="held-out rows, as `train`; null: no validation")
    format: Format = Field(default="auto", description="how files are read; auto goes by their extension")
    max_tokens: int = Field(default=256, ge=2, description="longest row in tokens, its prompt included")
    too_long: TooLong = Field(
        default="drop",
        description="rows over max_tokens: drop them or cut their end; prompts too long are dropped",
    )


class SourceConfig(Section):
    """Where raw text comes from, what of it is kept and how it is split."""

    source: str = Field(
        default=DEMO,
        min_length=1,
        description=f"{DEMO} (rated movie-review snippets), {ARITHMETIC} (sums), or text rows: a file, a folder, a "
        "glob or hf://name[:split]",
    )
    format: Format = Field(default="auto", description="how files are read; auto goes by their extension")
    validation_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of the texts held out, chosen by a hash of the text"
    )
    min_chars: int = Field(default=1, ge=1, description="shorter texts are dropped, where clean.steps is null")
    max_chars: int = Field(default=100_000, ge=1, description="longer texts are dropped, where clean.steps is null")
    encoding: str = Field(default="utf-8", description="of JSONL, text and CSV files, such as gb18030 or latin-1")
    max_row_bytes: int = Field(default=64 * 2**20, ge=1, description="a longer row counts as one that cannot be read")
    max_bad_rows: int = Field(
        default=0, ge=0, description="as many rows that cannot be read are left out, counted and shown; then an error"
    )
    licence: str | None = Field(default=None, description="the data's licence, for the data card")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            newline = "\n".encode(encoding)
        except LookupError:
            raise ValueError(f"Python knows no encoding {encoding!r}; try utf-8, gb18030, big5 or latin-1") from None
        if newline != b"\n":
            raise ValueError(f"lines of {encoding} cannot be told apart by bytes: convert the files to utf-8 (iconv)")
        return encoding

    @model_validator(mode="after")
    def _lengths(self) -> "SourceConfig":
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars={self.min_chars} is above max_chars={self.max_chars}")
        return self


class SnippetsConfig(Section):
    """How prompts and preference pairs are made of the rated snippets of the demo."""

    min_prompt_words: int = Field(default=3, ge=1, description="fewest first words that make a prompt")
    max_prompt_words: int = Field(default=6, ge=1, description="most first words that make a prompt")
    min_completion_words: int = Field(
        default=4, ge=1, description="snippets with fewer words after the prompt make no row"
    )
    min_rating_difference: float = Field(
        default=1.0, ge=0, description="the mean ratings of a pair differ by more than this"
    )
    pairs_per_text: int = Field(
        default=3, ge=1, description="pairs each training text begins; a validation text begins one"
    )
    label_rating: float = Field(
        default=1.0, ge=0, description="texts rated above it are labelled good, below its negative bad"
    )

    @model_validator(mode="after")
    def _words(self) -> "SnippetsConfig":
        if self.min_prompt_words > self.max_prompt_words:
            raise ValueError(
                f"min_prompt_words={self.min_prompt_words} is above max_prompt_words={self.max_prompt_words}"
            )
        return self


class TokenizerConfig(Section):
    """The tokenizer trained on the training texts."""

    kind: Literal["bpe", "words"] = Field(
        default="bpe", description="byte-level BPE; or whole words, and pieces for the rare ones (for few texts)"
    )
    vocab_size: int = Field(default=8192, ge=259, description="most tokens in all: 3 special, 256 bytes, merges, words")
    num_pieces: int = Field(
        default=400, ge=259, description="kind=words: tokens that are no words: 3 special, 256 bytes, merges"
    )
    min_count: int = Field(default=2, ge=1, description="kind=words: rarer words are spelled in pieces")
    model_max_length: int = Field(default=256, ge=8, description="longest input it announces, in tokens")

    @model_validator(mode="after")
    def _room_for_words(self) -> "TokenizerConfig":
        if self.kind == "bpe" and (self.num_pieces, self.min_count) != (400, 2):
            raise ValueError("num_pieces and min_count have no effect with kind=bpe: leave them out, or set kind=words")
        if self.kind == "words" and self.num_pieces >= self.vocab_size:
            raise ValueError(
                f"num_pieces={self.num_pieces} leaves no room for words in vocab_size={self.vocab_size}: "
                "raise vocab_size or lower num_pieces"
            )
        return self
