"""The steps of cleaning: what each is called, what it takes, its defaults and where they come from.

docs/data.md has them in one table.  A bound of null is not checked.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayrlhf.config import Section

Share = Annotated[float, Field(ge=0, le=1)]


class Repair(Section):
    """Text that was decoded wrongly (mojibake), by the library ftfy."""

    kind: Literal["repair"]
    uncurl_quotes: bool = Field(default=False, description="typographic quotes become plain ones")
    unescape_html: bool = Field(default=True, description="HTML entities become characters where there is no tag")


class Normalise(Section):
    """One Unicode form, no control characters, single spaces, at most one empty line in a row."""

    kind: Literal["normalise"]
    form: Literal["NFC", "NFKC"] = Field(default="NFC", description="Unicode normal form")
    full_width: Literal["keep", "letters", "all"] = Field(
        default="keep",
        description="full-width characters to half width: none, letters, digits and the space, or punctuation too",
    )
    remove_control: bool = Field(default=True, description="remove control and zero-width characters, byte order marks")
    collapse_spaces: bool = Field(default=True, description="runs of spaces in a line to one, of empty lines to one")


class StripHtml(Section):
    """Tags, scripts, styles and comments go; blocks become lines, entities characters."""

    kind: Literal["strip_html"]


class Language(Section):
    """Keep texts of some languages, by the library py3langid (Lui & Baldwin 2012)."""

    kind: Literal["language"]
    languages: tuple[str, ...] = Field(
        default=("en", "zh"),
        min_length=1,
        description="codes of the languages kept; zh has wuu and yue in it, unless they are listed",
    )
    min_confidence: Share = Field(default=0.0, description="texts whose language is less probable than this go, too")
    min_drop_confidence: Share = Field(
        default=0.5,
        description="least probability of another language for which a text goes: a guess on a formula or a few words "
        "is no reason; 0 drops for any guess",
    )


class Length(Section):
    """Characters and words; Chinese words by segmentation."""

    kind: Literal["length"]
    min_chars: int = Field(default=1, ge=0, description="shorter texts are dropped")
    max_chars: int | None = Field(default=None, ge=1, description="longer texts are dropped")
    min_words: int | None = Field(default=None, ge=1, description="texts of fewer words are dropped")
    max_words: int | None = Field(default=None, ge=1, description="texts of more words are dropped")
    min_mean_word: float | None = Field(
        default=None, gt=0, description="least mean length of the words that are not Chinese, in characters"
    )
    max_mean_word: float | None = Field(default=None, gt=0, description="the largest such mean")

    @model_validator(mode="after")
    def _bounds(self) -> "Length":
        for low, high in (
            ("min_chars", "max_chars"),
            ("min_words", "max_words"),
            ("min_mean_word", "max_mean_word"),
        ):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low}={least} is above {high}={most}")
        return self


class Characters(Section):
    """Shares of characters and words that prose has few of (Rae et al. 2021, table A1)."""

    kind: Literal["characters"]
    max_punctuation: Share | None = Field(default=0.3, description="most punctuation, of the characters but spaces")
    max_symbols: Share | None = Field(default=0.1, description="most symbols (Unicode's class S, and #), of the same")
    max_digits: Share | None = Field(default=0.3, description="most digits, of the same")
    min_letter_words: Share | None = Field(default=0.8, description="fewest words with a letter in them, of the words")
    max_bullet_lines: Share | None = Field(default=0.9, description="most lines that begin with a bullet, of the lines")
    max_ellipsis_lines: Share | None = Field(default=0.3, description="most lines that end with an ellipsis, of these")


class Repetition(Section):
    """Repeated lines, paragraphs and word n-grams, by Gopher's rules (Rae et al. 2021, table A1)."""

    kind: Literal["repetition"]
    max_duplicate_lines: Share | None = Field(default=0.3, description="most lines seen before, of the lines")
    max_duplicate_paragraphs: Share | None = Field(default=0.3, description="most paragraphs seen before, of them")
    max_duplicate_line_chars: Share | None = Field(default=0.2, description="most characters in lines seen before")
    max_duplicate_paragraph_chars: Share | None = Field(default=0.2, description="the same, in paragraphs seen before")
    max_top_ngram: dict[int, Share] = Field(
        default={2: 0.2, 3: 0.18, 4: 0.16},
        description="n -> most of the characters that the most frequent n-gram of words covers",
    )
    max_duplicate_ngrams: dict[int, Share] = Field(
        default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1},
        description="n -> most of the characters inside n-grams of words that occur twice or more",
    )


class StopWords(Section):
    """Running text has function words (Rae et al. 2021); word lists and keyword spam have few."""

    kind: Literal["stop_words"]
    words: tuple[str, ...] | None = Field(
        default=None, description="the words counted; null: Gopher's eight for English, ten particles for Chinese"
    )
    min_count: int = Field(default=2, ge=0, description="fewest of them")
    min_share: Share = Field(default=0.0, description="fewest of them, of all words")


class Keywords(Section):
    """Texts with listed words or phrases are dropped; case does not count."""

    kind: Literal["keywords"]
    words: tuple[str, ...] = Field(default=(), description="words and phrases")
    path: str | None = Field(default=None, description="a file with one more a line")
    max_matches: int = Field(default=0, ge=0, description="as many of them are borne")

    @model_validator(mode="after")
    def _some(self) -> "Keywords":
        if not self.words and self.path is None:
            raise ValueError("keywords needs words or a path")
        return self


class Links(Section):
    """Lists of links, and what is left of pages."""

    kind: Literal["links"]
    max_url_share: Share | None = Field(default=0.2, description="most characters in web addresses, of all")
    max_html_share: Share | None = Field(default=0.1, description="most characters in HTML tags and entities, of all")


class NgramPerplexity(Section):
    """Perplexity a character under an n-gram model of `rayrlhf ngram_model` (as CCNet, Wenzek et al. 2020)."""

    kind: Literal["ngram_perplexity"]
    model: str = Field(min_length=1, description="the stage directory of `rayrlhf ngram_model`")
    max_perplexity: float | None = Field(default=None, gt=1, description="texts above it are dropped")
    min_perplexity: float | None = Field(default=None, gt=1, description="texts below it are dropped")

    @model_validator(mode="after")
    def _bounds(self) -> "NgramPerplexity":
        check_bounds(self.min_perplexity, self.max_perplexity)
        return self


class CausalPerplexity(Section):
    """Perplexity a token under a causal language model, scored by Ray Data actors."""

    kind: Literal["causal_perplexity"]
    model: str = Field(min_length=1, description="a stage directory or a Hugging Face folder")
    max_perplexity: float | None = Field(default=None, gt=1, description="texts above it are dropped")
    min_perplexity: float | None = Field(default=None, gt=1, description="texts below it are dropped")
    max_tokens: int = Field(default=512, ge=2, description="as many first tokens of a text are scored")
    microbatch_tokens: int = Field(default=4096, ge=2, description="most tokens in a forward pass, padding included")
    num_actors: int = Field(default=1, ge=1, description="actors that hold the model, one CPU each")

    @model_validator(mode="after")
    def _bounds(self) -> "CausalPerplexity":
        check_bounds(self.min_perplexity, self.max_perplexity)
        return self


class QualityClassifier(Section):
    """Probability of being good, by a classifier of `rayrlhf quality_classifier` (as Brown et al. 2020)."""

    kind: Literal["quality_classifier"]
    model: str = Field(min_length=1, description="the stage directory of `rayrlhf quality_classifier`")
    min_score: Share = Field(default=0.5, description="texts with a lower probability are dropped")


class ExactDuplicates(Section):
    """Of rows with the same text, anywhere in the data set, the first in the order of their content stays."""

    kind: Literal["exact_duplicates"]


class UnitDuplicates(Section):
    """Lines or sentences that come again in the data set are removed (as in C4, Raffel et al. 2020)."""

    kind: Literal["unit_duplicates"]
    unit: Literal["line", "sentence"] = Field(default="sentence", description="what is compared")
    min_chars: int = Field(default=20, ge=1, description="shorter ones are left alone, such as `Yes.`")


class NearDuplicates(Section):
    """Of rows with nearly the same text one stays: MinHash-LSH over the whole data set (Broder 1997)."""

    kind: Literal["near_duplicates"]
    threshold: float = Field(default=0.8, gt=0, lt=1, description="least Jaccard similarity of the n-gram sets")
    ngram: int = Field(default=5, ge=1, description="words, or Chinese characters, an n-gram")
    permutations: int = Field(default=128, ge=16, le=1024, description="hash functions; the similarity's error falls")


class Privacy(Section):
    """Personal data become tokens; checksums are checked where a number has one."""

    kind: Literal["privacy"]
    email: str | None = Field(default="<EMAIL>", description="what takes its place; null: it stays")
    phone: str | None = Field(default="<PHONE>", description="the same, numbers valid by the library phonenumbers")
    ip: str | None = Field(default="<IP>", description="the same, IPv4 and IPv6")
    card: str | None = Field(default="<CARD>", description="the same, payment cards (Luhn's checksum)")
    iban: str | None = Field(default="<IBAN>", description="the same, bank accounts (ISO 13616's checksum)")
    national_id: str | None = Field(
        default="<ID>", description="the same, US social security and Chinese resident numbers (GB 11643's checksum)"
    )
    url: str | None = Field(default=None, description="the same, web addresses")
    phone_regions: tuple[str, ...] = Field(
        default=("US", "CN"), description="countries whose national notation is known; +NN is known everywhere"
    )


class Decontaminate(Section):
    """Rows that share an n-gram with an evaluation set are dropped (Brown et al. 2020, appendix C)."""

    kind: Literal["decontaminate"]
    against: tuple[str, ...] = Field(
        min_length=1, description="evaluation sets: files, folders or globs; the texts in their rows count"
    )
    columns: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="the columns of evaluation rows that count; null: every text in them"
    )
    ngram: int = Field(default=13, ge=2, description="words an n-gram")
    min_tokens: int = Field(
        default=8, ge=2, description="an evaluation text shorter than ngram counts whole, unless shorter than this"
    )
    han_ngram: int = Field(
        default=20, ge=2, description="the same in Chinese characters, for evaluation texts that are mostly Chinese"
    )
    min_han_tokens: int = Field(
        default=16, ge=2, description="such a text shorter than han_ngram counts whole, unless shorter than this"
    )
    max_matches: int | None = Field(
        default=None,
        ge=1,
        description="n-grams in more rows than this are stock phrases and count for nothing (Brown et al.: 10); null: "
        "every n-gram counts",
    )

    @model_validator(mode="after")
    def _lengths(self) -> "Decontaminate":
        for least, most in (("min_tokens", "ngram"), ("min_han_tokens", "han_ngram")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least}={getattr(self, least)} is above {most}={getattr(self, most)}")
        return self


def check_bounds(least: float | None, most: float | None) -> None:
    """ValueError for a perplexity filter that keeps everything, or nothing."""
    if least is None and most is None:
        raise ValueError("set max_perplexity, min_perplexity or both")
    if least is not None and most is not None and least >= most:
        raise ValueError(f"min_perplexity={least} is not below max_perplexity={most}")


Step = Annotated[
    Repair
    | Normalise
    | StripHtml
    | Language
    | Length
    | Characters
    | Repetition
    | StopWords
    | Keywords
    | Links
    | NgramPerplexity
    | CausalPerplexity
    | QualityClassifier
    | ExactDuplicates
    | UnitDuplicates
    | NearDuplicates
    | Privacy
    | Decontaminate,
    Field(discriminator="kind"),
]


class CleanConfig(Section):
    """What raw text goes through, step by step, in this order."""

    steps: tuple[Step, ...] | None = Field(
        default=None,
        description="the steps; null: normalise, length (data.min_chars to data.max_chars), exact_duplicates",
    )
    examples: int = Field(default=5, ge=0, description="examples of each step's work in the data card")


def default_steps(min_chars: int, max_chars: int) -> tuple[Step, ...]:
    """What is done without a list of one's own."""
    return (
        Normalise(kind="normalise"),
        Length(kind="length", min_chars=min_chars, max_chars=max_chars),
        ExactDuplicates(kind="exact_duplicates"),
    )
