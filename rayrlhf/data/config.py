"""What a job says about its data."""

from typing import Literal

from pydantic import Field, model_validator

from rayrlhf.config import Section

DEMO = "demo:snippets"
ARITHMETIC = "demo:arithmetic"

Format = Literal["auto", "jsonl", "parquet", "csv", "text"]
TooLong = Literal["drop", "truncate", "truncate_prompt", "error"]
RowFormat = Literal["auto", "own", "conversational", "messages", "sharegpt", "alpaca", "input_output", "rated"]


class DataConfig(Section):
    """The rows a stage trains and validates on."""

    train: str = Field(min_length=1, description="training rows: a file, a folder, a glob or hf://name[:split]")
    validation: str | None = Field(default=None, description="held-out rows, as `train`; null: no validation")
    format: Format = Field(default="auto", description="how files are read; auto goes by their extension")
    row_format: RowFormat = Field(
        default="auto",
        description="the columns that rows have (docs/your_data.md has a table); auto finds it on the first rows",
    )
    columns: dict[str, str] = Field(
        default={}, description="a column's name here: its name in the files (a.b: of b in the object a)"
    )
    max_tokens: int = Field(default=256, ge=2, description="longest row in tokens, its prompt included")
    too_long: TooLong = Field(
        default="drop",
        description="rows over max_tokens: drop them, truncate their end (but never their prompt: such rows are "
        "dropped), truncate_prompt cuts the prompt's beginning (of plain texts their end), error stops",
    )
    turns: Literal["all", "last"] = Field(
        default="all", description="sft on conversations: the loss is on all answers, or on the last one alone"
    )
    max_dropped_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="stop where more of the rows than this are dropped: too long, without an answer, or pairs of equal "
        "texts; null: they are counted and left out",
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
    min_chars: int = Field(default=1, ge=1, description="shorter texts are dropped")
    max_chars: int = Field(default=100_000, ge=1, description="longer texts are dropped")

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
