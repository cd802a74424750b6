"""From prompts and completions to token ids: the one place that knows how the two meet.

A string prompt is one user turn, a list is messages, and "" is no conversation at all: only the
tokenizer's start token.  A tokenizer without a chat template just continues the prompt's text.
"""

from __future__ import annotations

from typing import Any

from rayrlhf.errors import ModelError

Prompt = str | list[dict[str, str]]

# The snippets' own template: a reply continues the text of the user, so that chat requests work on a model
# that knows nothing but snippets.
SNIPPET = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """A document: start token (where there is one), text, end token."""
    return _start(tokenizer) + _ids(tokenizer, text) + [_end(tokenizer)]


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The tokens before a response, up to and with what the chat template puts in front of a reply."""
    if not prompt:
        return _start(tokenizer)
    if not tokenizer.chat_template:
        return _start(tokenizer) + _ids(tokenizer, as_text(prompt))
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return _ids(tokenizer, rendered)


def encode_completion(tokenizer: Any, completion: str) -> list[int]:
    """The tokens of a response, the end token last."""
    return _ids(tokenizer, completion) + [_end(tokenizer)]


def as_text(prompt: Prompt) -> str:
    """A prompt for the eye: its string, or its messages' contents, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _start(tokenizer: Any) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _end(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path} has no end token, so a response can never end. "
            "Set eos_token in its tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)
