"""Whether two tokenizers speak of the same things; by what they hold, not by where they lie."""

from __future__ import annotations

import json
from typing import Any


def reads(reader: Any, writer: Any) -> bool:
    """Whether every token of `writer` has the same id in `reader`, so that a model with `reader` can be given
    the token ids of one with `writer`."""
    known = reader.get_vocab()
    return all(known.get(token) == number for token, number in writer.get_vocab().items())


def is_same(one: Any, other: Any) -> bool:
    """Whether both make the same token ids of every prompt and completion, chat template included.

    A pad token that only one of them has makes no difference: no text has it.
    """
    (added, rest), (other_added, other_rest) = _encoding(one), _encoding(other)
    shared = added.keys() & other_added.keys()
    only_pads = added.keys() - shared <= {one.pad_token} and other_added.keys() - shared <= {other.pad_token}
    return rest == other_rest and only_pads and all(added[token] == other_added[token] for token in shared)


def _encoding(tokenizer: Any) -> tuple[dict[str, Any], Any]:
    """(added tokens, the rest of) what `rayrlhf.data.templates` depends on."""
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}, (type(tokenizer).__name__, tokenizer.get_vocab(), ends)
    parts = json.loads(backend.to_str())
    added = {token["content"]: token for token in parts["added_tokens"]}
    return added, ([parts[name] for name in ("normalizer", "pre_tokenizer", "model")], ends)
