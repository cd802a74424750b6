"""Everything that transformers reads from a folder goes through here: no pickles, no code from the folder."""

from __future__ import annotations

from typing import Any

from rayrlhf.errors import ModelError


def tokenizer_of(folder: str, **options: Any) -> Any:
    """The folder's tokenizer, as `AutoTokenizer.from_pretrained(folder, **options)`.  Raises ModelError as
    `model_of`."""
    from transformers import AutoTokenizer

    return _loaded(AutoTokenizer, folder, **options)


def model_of(auto_class: Any, folder: str, **options: Any) -> Any:
    """`auto_class.from_pretrained(folder, **options)`, weights from safetensors alone.

    Raises ModelError for a model that only code of its own folder can build.
    """
    return _loaded(auto_class, folder, use_safetensors=True, **options)


def _loaded(auto_class: Any, folder: str, **options: Any) -> Any:
    try:
        # said explicitly: left out, transformers asks on a terminal whether to run the folder's code
        return auto_class.from_pretrained(folder, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelError(
            f"{folder} needs Python code of its own (auto_map in its config.json), which is never run here: "
            "use a model that transformers itself knows"
        ) from error
