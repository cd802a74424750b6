"""The language of a text, by py3langid: a naive Bayes classifier over byte n-grams, its model inside the package."""

from __future__ import annotations

from functools import cache
from typing import Any

from rayrlhf.data.cleaning.config import Language
from rayrlhf.data.cleaning.verdict import Dropped, Operator
from rayrlhf.errors import ConfigError

_CHARS = 4000  # more of a text does not change the answer, and takes time
_SINITIC = frozenset(("wuu", "yue"))  # of short texts of standard Chinese the library often says these


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def build(config: Language) -> Operator:
    """Keeps texts of `config.languages`; ConfigError for a language that the library does not know."""
    identifier = _identifier()
    folded = _SINITIC.difference(config.languages)
    known = sorted(str(label) for label in identifier.labels)
    unknown = sorted(set(config.languages) - set(known))
    if unknown:
        raise ConfigError(f"language: no language {', '.join(unknown)}; known are {' '.join(known)}")

    def keep(text: str) -> str | Dropped:
        found, confidence = _guess(identifier, text[:_CHARS], folded)
        if confidence < config.min_confidence:
            return Dropped("language_unsure", f"language {found}, probability {confidence:.2f}")
        if found not in config.languages and confidence >= config.min_drop_confidence:
            return Dropped("language", f"language {found} ({confidence:.2f})")
        return text

    return keep


def _guess(identifier: Any, text: str, folded: frozenset[str]) -> tuple[str, float]:
    """The most probable language of `text` and its probability; those in `folded` count as Chinese."""
    found: dict[str, float] = {}
    for label, probability in identifier.rank(text):
        name = "zh" if label in folded else str(label)
        found[name] = found.get(name, 0.0) + float(probability)
    best = max(found, key=found.__getitem__)
    return best, found[best]
