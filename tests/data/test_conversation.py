"""Conversations: what is learnt of them, by hand, over several chat templates, and what is refused."""

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.data import chat_templates
from rayrlhf.data.chat_templates import CHATML, LLAMA3, ROLES, template_text, with_template
from rayrlhf.data.conversation import encode_conversation, end_of_turn, end_of_turn_id, two_ends
from rayrlhf.data.templates import encode_completion, encode_prompt, rendered, token_ids
from rayrlhf.errors import ConfigError, DataError
from tests.conftest import byte_tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# leaves thinking out of all turns but the last, where it writes an empty one if there is none, as Qwen3 does
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% set parts = message['content'].split('</think>') %}{% if loop.last %}"
    "<think>\n{% if parts | length > 1 %}{{ parts[0].replace('<think>', '').strip() }}{% endif %}"
    "{{ '\\n</think>\\n\\n' }}{% endif %}{{ parts[-1].lstrip('\n') }}{% else %}{{ message['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# takes thinking out of earlier turns, and adds none
STRIPPING = THINKING.replace("<think>\n{%", "{%").replace("{{ '\\n</think>\\n\\n' }}", "")
SYSTEM_ADDED = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
MISTRAL = (  # a system message within the first question, and an end that a space stands before
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
    "{% if loop.first or (loop.index0 == 1 and messages[0]['role'] == 'system') %}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}{% endif %}"
    "{{ message['content'] }} [/INST]{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
ENGLISH = ["Be brief.", "Hi there", "Hello!", "And 2+2?", " It is 4. "]
CHINESE = ["请简短回答。", "你好，世界", "你好！", "二加二等于几？", "等于四。"]


def tokenizer_with(template: str | None) -> Any:
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    made.chat_template = template
    return made


def chat(contents: list[str], first: str = "system") -> list[dict[str, str]]:
    roles = ["system", "user", "assistant", "user", "assistant"]
    return [
        {"role": role, "content": content}
        for role, content in zip(roles[roles.index(first) :], contents[-5 if first == "system" else -4 :], strict=True)
    ]


def learnt(tokenizer: Any, ids: list[int], mask: list[bool]) -> list[str]:
    """The texts of the runs that count."""
    assert len(ids) == len(mask)
    return [
        tokenizer.decode([token for token, _ in run])
        for counts, run in groupby(zip(ids, mask, strict=True), lambda pair: pair[1])
        if counts
    ]


@pytest.mark.parametrize("contents", [ENGLISH, CHINESE], ids=["en", "zh"])
@pytest.mark.parametrize(
    ("template", "start", "end", "trims"),
    [
        (CHATML, "", "<|im_end|>", False),
        (SYSTEM_ADDED, "", "<|im_end|>", False),
        (LLAMA3, "", "<|eot_id|>", True),
        (ROLES, "", "</s>", False),
        (MISTRAL, " ", "</s>", False),
    ],
    ids=["chatml", "system_added", "llama3", "roles", "mistral"],
)
@pytest.mark.parametrize("first", ["system", "user"])
def test_every_answer_and_its_end_is_learnt(
    template: str, start: str, end: str, trims: bool, contents: list[str], first: str
) -> None:
    tokenizer, messages = tokenizer_with(template), chat(contents, first)
    ids, mask = encode_conversation(tokenizer, messages)
    answers = [answer.strip() if trims else answer for answer in (contents[2], contents[4])]
    assert learnt(tokenizer, ids, mask) == [start + answer + end for answer in answers]
    assert tokenizer.decode(ids) == rendered(tokenizer, messages).rstrip(), "nothing of the template is lost"
    before = token_ids(tokenizer, rendered(tokenizer, messages[:-1], is_prompt=True))
    assert ids[: len(before)] == before and mask[len(before) :] == [True] * (len(ids) - len(before))
    given = len(messages) - 2
    assert learnt(tokenizer, ids, encode_conversation(tokenizer, messages, num_given=given)[1]) == [
        start + answers[1] + end
    ]


def test_the_mask_is_that_of_a_template_which_marks_what_the_assistant_writes() -> None:
    marked = CHATML.replace(
        "{{ message['content'] }}<|im_end|>\n",
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
        "\n{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}",
    )
    for contents in (ENGLISH, CHINESE):
        tokenizer = tokenizer_with(marked)
        found = tokenizer.apply_chat_template(chat(contents), return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = encode_conversation(tokenizer, chat(contents))
        assert found["input_ids"][: len(ids)] == ids
        assert [bool(m) for m in found["assistant_masks"]][: len(ids)] == mask


@pytest.mark.parametrize(
    "template", [ROLES, MISTRAL.replace(" {{ message['content'] }}{{", "{{ message['content'] }}{{")]
)
def test_a_single_turn_has_the_tokens_of_a_prompt_and_its_completion(template: str) -> None:
    tokenizer = tokenizer_with(template)
    *asked, answer = chat(ENGLISH)[:3]
    ids, mask = encode_conversation(tokenizer, [*asked, answer])
    prompt, completion = encode_prompt(tokenizer, asked), encode_completion(tokenizer, answer["content"])
    assert (ids, mask) == (prompt + completion, [False] * len(prompt) + [True] * len(completion))


def test_templates_that_render_earlier_turns_in_another_way_are_refused_or_learn_the_last_one() -> None:
    tokenizer, messages = tokenizer_with(THINKING), chat(ENGLISH)
    with pytest.raises(DataError, match="renders earlier turns .* once there are more: .*think.*data.turns=last"):
        encode_conversation(tokenizer, messages)
    thought = "<think>\n\n</think>\n\n"
    assert learnt(tokenizer, *encode_conversation(tokenizer, messages, only_last=True)) == [
        f"{thought} It is 4. <|im_end|>"
    ]
    own = [*messages[:-1], {"role": "assistant", "content": "<think>\nsum\n</think>\n\n4"}]
    assert learnt(tokenizer, *encode_conversation(tokenizer, own, only_last=True)) == [
        "<think>\nsum\n</think>\n\n4<|im_end|>"
    ]
    other = [*messages[:-1], {"role": "assistant", "content": "<think>sum</think>4"}]  # comes out in another form
    with pytest.raises(DataError, match="does not render an answer as it stands in the row"):
        encode_conversation(tokenizer, other, only_last=True)


def test_a_template_that_strips_thoughts_is_right_where_there_are_none() -> None:
    tokenizer = tokenizer_with(STRIPPING)
    ids, mask = encode_conversation(tokenizer, chat(CHINESE))
    assert learnt(tokenizer, ids, mask) == ["你好！<|im_end|>", "等于四。<|im_end|>"]
    thinking = chat(CHINESE)
    thinking[2]["content"] = "<think>嗯</think>你好！"
    with pytest.raises(DataError, match="does not render an answer as it stands"):
        encode_conversation(tokenizer, thinking)


def test_a_template_without_an_end() -> None:
    tokenizer = tokenizer_with(
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    )
    with pytest.raises(DataError, match="no end token after an answer"):
        encode_conversation(tokenizer, chat(ENGLISH, "user"))
    ids, mask = encode_conversation(tokenizer, chat(ENGLISH, "user")[:2])
    assert learnt(tokenizer, ids, mask) == ["assistant: Hello!</s>"], "what it writes itself is learnt too"
    with pytest.raises(ConfigError, match="has no chat template"):
        encode_conversation(tokenizer_with(None), chat(ENGLISH))


def test_what_a_template_refuses_is_shown_with_its_row() -> None:
    tokenizer = tokenizer_with("{{ raise_exception('roles must alternate') }}{{ messages }}")
    with pytest.raises(DataError, match="refuses a conversation of system, user: roles must alternate.*Hi there"):
        encode_prompt(tokenizer, chat(ENGLISH)[:2])
    tokenizer.chat_template = "{{ messages[0]['content'] + 1 }}"
    with pytest.raises(DataError, match="refuses a conversation of user: "):
        encode_prompt(tokenizer, "q")
    assert end_of_turn_id(tokenizer) is None, "engines start all the same"


def test_a_template_brings_its_end_token() -> None:
    for text, end in ((CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>"), (ROLES, "</s>")):
        tokenizer = with_template(tokenizer_with(None), text)
        assert (tokenizer.eos_token, tokenizer.chat_template) == (end, text)
        assert end_of_turn(tokenizer) == end and end_of_turn_id(tokenizer) == tokenizer.eos_token_id
        assert tokenizer.decode(encode_completion(tokenizer, "a")) == f"a{end}"
        assert two_ends(tokenizer) == ""
    assert end_of_turn(tokenizer_with(None)) == "" == two_ends(tokenizer_with(None))
    assert "ends answers with '<|im_end|>', and the tokenizer's end token is '</s>'" in two_ends(tokenizer_with(CHATML))


def test_templates_by_name_and_from_files(tmp_path: Path) -> None:
    assert template_text("chatml") == CHATML and template_text("llama3") == LLAMA3 and template_text("roles") == ROLES
    (tmp_path / "own.jinja").write_text(ROLES.replace("###", "====="), encoding="utf-8")
    text = template_text(str(tmp_path / "own.jinja"))
    messages = chat(CHINESE)[:2]
    assert rendered(tokenizer_with(text), messages, is_prompt=True) == (
        "<s>===== System:\n请简短回答。\n\n===== User:\n你好，世界\n\n===== Assistant:\n"
    )
    (tmp_path / "broken.jinja").write_text("{% for message in messages %}")
    (tmp_path / "deaf.jinja").write_text("hello")
    (tmp_path / "endless.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    for name, words in (
        ("none", "neither a file nor one of chatml, llama3, roles"),
        (str(tmp_path / "broken.jinja"), "is no Jinja template: .*line 1"),
        (str(tmp_path / "deaf.jinja"), "does not use `messages`"),
    ):
        with pytest.raises(ConfigError, match=words):
            template_text(name)
    with pytest.raises(ConfigError, match="chat_template=own puts nothing after an answer"):
        with_template(byte_tokenizer(), template_text(str(tmp_path / "endless.jinja")), "own")
    with pytest.raises(ConfigError, match="ends answers with '<|im_end|>', which is 10 tokens .*roles"):
        with_template(byte_tokenizer(), chat_templates.CHATML, "chatml")


@pytest.mark.parametrize(
    ("name", "learns_newline"),
    [("llama3", False), ("cohere", False), ("cohere2", False), ("glm4moe", False)]
    + [("qwen2_5_vl", True), ("qwen3", True), ("gemma3", True), ("lfm2", True)],
)
def test_published_templates_give_the_mask_that_trl_marks_in_them(name: str, learns_newline: bool) -> None:
    """TRL's copies for training mark what the assistant writes; some count the line break after the end token too."""
    trl = pytest.importorskip("trl")
    text = (Path(trl.__file__).parent / "chat_templates" / f"{name}_training.jinja").read_text()
    tokenizer = tokenizer_with(text)
    for contents in (ENGLISH, CHINESE):
        messages = chat(contents, "user")
        ids, mask = encode_conversation(tokenizer, messages)
        found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        theirs = learnt(tokenizer, found["input_ids"], [bool(counts) for counts in found["assistant_masks"]])
        assert found["input_ids"][: len(ids)] == ids
        assert learnt(tokenizer, ids, mask) == [text.rstrip("\n") if learns_newline else text for text in theirs]


def test_published_templates_that_rewrite_turns_are_refused() -> None:
    trl = pytest.importorskip("trl")
    for name in ("qwen3", "qwen3_6", "gptoss", "phi3"):
        tokenizer = tokenizer_with((Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text())
        with pytest.raises(DataError, match="renders earlier turns of a conversation in another way"):
            encode_conversation(tokenizer, chat(ENGLISH, "user"))
        ids, mask = encode_conversation(tokenizer, chat(ENGLISH, "user"), only_last=True)
        (last,) = learnt(tokenizer, ids, mask)
        assert "It is 4." in last and "Hello" not in last
