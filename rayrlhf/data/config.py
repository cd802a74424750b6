"""What a job says about its data."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rayrlhf.config import Section

DEMO = "demo:snippets"
ARITHMETIC = "demo:arithmetic"

Format = Literal["auto", "jsonl", "parquet", "csv", "text"]
TooLong = Literal["drop", "truncate", "truncate_prompt", "error"]
RowFormat = Literal[
    "auto",
    "own",
    "conversational",
    "implicit_prompt",
    "messages",
    "sharegpt",
    "alpaca",
    "input_output",
    "rated",
    "scored",
]


class MixedSource(Section):
    """One of several sources of training rows."""

    path: str = Field(min_length=1, description="a file, a folder, a glob or hf://name[[:config]:split]")
    weight: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="its share of the rows, over the sum of all weights; null, for all or for none: by size",
    )
    max_rows: int | None = Field(
        default=None,
        ge=1,
        description="without weights: it counts as no larger than this, and no pass takes more of its rows (the next "
        "pass takes the next ones)",
    )
    epochs: int = Field(
        default=1, ge=1, description="as if it stood there so many times: most times that a pass repeats its rows"
    )
    format: Format | None = Field(default=None, description="how its files are read; null: data.format")
    row_format: RowFormat | None = Field(
        default=None, description="the columns that its rows have; null: data.row_format"
    )
    columns: dict[str, str] | None = Field(default=None, description="names of its columns; null: data.columns")

    @model_validator(mode="after")
    def _cap_is_a_size(self) -> "MixedSource":
        if self.weight is not None and self.max_rows is not None:
            raise ValueError(
                f"max_rows={self.max_rows} limits a size, which has no effect beside weight={self.weight:g}: give one"
            )
        return self


class PretrainingSource(Section):
    """Text among the rows of SFT, whose loss is on all of its tokens."""

    path: str = Field(min_length=1, description="text rows: a file, a folder, a glob or hf://name[[:config]:split]")
    share: float = Field(gt=0, lt=1, description="share of the rows of training that are of this text")
    epochs: int = Field(default=1, ge=1, description="most times that a pass repeats it")
    format: Format | None = Field(default=None, description="how its files are read; null: data.format")


class MixingConfig(Section):
    """How several sources become one stream of rows."""

    temperature: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=True,
        description="without weights: shares go as size^(1/temperature); 1: by size, .inf: all alike",
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        description="rows of one pass over the mixture; null: as many as the source that is used up first allows",
    )
    short: Literal["error", "lower"] = Field(
        default="error",
        description="a source without enough rows for its share, its epochs counted: an error, or a lower share",
    )


class PackingConfig(Section):
    """Text packed into rows of data.max_tokens tokens; each document sees only itself."""

    overlap: int = Field(
        default=0,
        ge=0,
        description="tokens by which the pieces of a longer document overlap; they count once in the loss",
    )
    buffer: int = Field(default=4096, ge=1, description="about as many pieces are packed together at a time")


class DataConfig(Section):
    """The rows a stage trains and validates on."""

    train: str | tuple[MixedSource, ...] = Field(
        min_length=1,
        description="training rows: a file, a folder, a glob or hf://name[[:config]:split]; or a list of sources",
    )
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
    max_bad_rows: int = Field(
        default=0,
        ge=0,
        description="as many rows of a path that cannot be read (broken JSON, a wrong encoding, other columns) are "
        "left out, counted and shown; then an error",
    )
    max_dropped_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="stop where more of the rows than this are dropped: too long, without an answer, pairs of equal "
        "texts, or not to be read; null: they are counted and left out",
    )
    mixing: MixingConfig | None = Field(default=None, description="how several sources are mixed; null: by default")
    pretraining: PretrainingSource | None = Field(default=None, description="SFT: text mixed in; null: none")
    packing: PackingConfig | None = Field(
        default=None, description="pretraining: texts packed into rows of max_tokens; null: a row each"
    )

    @property
    def sources(self) -> tuple[MixedSource, ...]:
        """The training sources; of a path alone just that one."""
        return (MixedSource(path=self.train),) if isinstance(self.train, str) else self.train

    @property
    def all_sources(self) -> tuple[MixedSource, ...]:
        """Those of training, and the validation."""
        return self.sources + ((MixedSource(path=self.validation),) if self.validation else ())

    def reading(self, source: MixedSource, kind: str) -> tuple[Format, str, RowFormat, dict[str, str]]:
        """How `sources.read` and `sources.check` are to read rows of `kind`."""
        columns = self.columns if source.columns is None else source.columns
        return source.format or self.format, kind, source.row_format or self.row_format, columns

    @property
    def is_mixed(self) -> bool:
        """Whether the training rows are put together by shares."""
        has_length = self.mixing is not None and self.mixing.rows is not None
        return not isinstance(self.train, str) or self.pretraining is not None or has_length

    @model_validator(mode="after")
    def _sources(self) -> "DataConfig":
        paths, weights = [source.path for source in self.sources], [source.weight for source in self.sources]
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"train lists {path} twice: list it once, with a higher weight or more epochs")
        if None in weights and any(weights):
            without = paths[weights.index(None)]
            raise ValueError(f"train gives some sources a weight and {without} none: give one to all, or to none")
        if len(paths) == 1 and weights[0] is not None:
            raise ValueError(f"train has one source, so its weight={weights[0]:g} has no effect: leave it out")
        return self

    @model_validator(mode="after")
    def _mixing_has_an_effect(self) -> "DataConfig":
        mixing = self.mixing
        if mixing is None:
            return self
        if mixing.temperature != 1 and (len(self.sources) == 1 or self.sources[0].weight is not None):
            why = "one source" if len(self.sources) == 1 else "weights"
            raise ValueError(f"mixing.temperature={mixing.temperature:g} has no effect with {why}: leave it out")
        if mixing.rows is None and self.pretraining is None and mixing.short != "error":
            raise ValueError(
                "mixing.short=lower has no effect without mixing.rows or pretraining: a pass ends with the source that "
                "is used up first"
            )
        return self

    @model_validator(mode="after")
    def _packing_cuts(self) -> "DataConfig":
        if self.packing is None:
            return self
        if self.too_long != "drop":
            raise ValueError("too_long=truncate has no effect with packing, which cuts long texts into pieces")
        if self.packing.overlap >= self.max_tokens:
            raise ValueError(
                f"packing.overlap={self.packing.overlap} leaves nothing new in a piece of max_tokens="
                f"{self.max_tokens}: lower it"
            )
        return self


class SourceConfig(Section):
    """Where raw text comes from, what of it is kept and how it is split."""

    source: str = Field(
        default=DEMO,
        min_length=1,
        description=f"{DEMO} (rated movie-review snippets), {ARITHMETIC} (sums), or text rows: a file, a folder, a "
        "glob or hf://name[[:config]:split]",
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
    """The tokenizer, trained on the training texts or taken as it is; its fertility is measured on held-out texts."""

    from_folder: str | None = Field(
        default=None,
        description="take this tokenizer (a stage directory or a Hugging Face folder) in the place of a trained one; "
        "null: train",
    )
    kind: Literal["bpe", "unigram", "words"] = Field(
        default="bpe", description="bpe, unigram; or whole words, and pieces for the rare ones (for few texts)"
    )
    alphabet: Literal["bytes", "characters"] = Field(
        default="bytes", description="what pieces are made of: bytes; or frequent characters, bytes for the others"
    )
    coverage: float = Field(
        default=0.9995, gt=0, le=1, description="alphabet=characters: share of the text that the frequent ones make up"
    )
    vocab_size: int = Field(default=8192, ge=259, description="most tokens in all: special, 256 bytes, merges, words")
    special_tokens: tuple[str, ...] = Field(
        default=(), description="further tokens beside <pad>, <s> and </s> that text never is part of"
    )
    split_digits: bool = Field(default=False, description="every digit is a token of its own")
    num_pieces: int = Field(
        default=400, ge=259, description="kind=words: tokens that are no words: special, 256 bytes, merges"
    )
    min_count: int = Field(default=2, ge=1, description="kind=words: rarer words are spelled in pieces")
    max_texts: int | None = Field(
        default=None, ge=1, description="train on so many texts, the first in the order of their hash; null: on all"
    )
    model_max_length: int = Field(default=256, ge=8, description="longest input it announces, in tokens")
    fertility_texts: int = Field(
        default=1000, ge=1, description="most held-out texts that its fertility is measured on"
    )

    @model_validator(mode="after")
    def _nothing_is_trained(self) -> "TokenizerConfig":
        given = self.model_fields_set - {"from_folder", "fertility_texts"}
        own = sorted(name for name in given if getattr(self, name) != type(self).model_fields[name].default)
        if self.from_folder is not None and own:
            raise ValueError(f"{', '.join(own)} have no effect with from_folder={self.from_folder}: leave them out")
        return self

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> "TokenizerConfig":
        if self.kind != "words" and (self.num_pieces, self.min_count) != (400, 2):
            raise ValueError(
                f"num_pieces and min_count have no effect with kind={self.kind}: leave them out, or set kind=words"
            )
        if self.kind == "words" and self.alphabet == "characters":
            raise ValueError("kind=words spells rare words in bytes: leave alphabet out, or set kind=bpe or unigram")
        if self.alphabet == "bytes" and self.coverage != 0.9995:
            raise ValueError(
                f"coverage={self.coverage} has no effect with alphabet=bytes, which covers all: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _room(self) -> "TokenizerConfig":
        least = 259 + len(self.special_tokens) + (self.alphabet == "characters")
        if min(self.vocab_size, self.num_pieces if self.kind == "words" else least) < least:
            raise ValueError(
                f"vocab_size={self.vocab_size} (kind=words: num_pieces={self.num_pieces}) has no room for 256 bytes "
                f"and {3 + len(self.special_tokens)} special tokens: at least {least} are needed"
            )
        if self.kind == "words" and self.num_pieces >= self.vocab_size:
            raise ValueError(
                f"num_pieces={self.num_pieces} leaves no room for words in vocab_size={self.vocab_size}: "
                "raise vocab_size or lower num_pieces"
            )
        return self

    @model_validator(mode="after")
    def _special_tokens_are_new(self) -> "TokenizerConfig":
        for token in self.special_tokens:
            if not token.strip() or token in ("<pad>", "<s>", "</s>") or self.special_tokens.count(token) > 1:
                raise ValueError(f"special_tokens holds {token!r}, which is empty, there already, or there twice")
        return self
