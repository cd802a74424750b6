"""Rows in the shapes that others write: recognised, read into the project's own, and refused where they are wrong."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rayrlhf.data import sources
from rayrlhf.data.formats import Reading, recognise
from rayrlhf.data.pair_layouts import implicit_prompt
from rayrlhf.errors import DataError


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def human(value: str) -> dict[str, str]:
    return {"from": "human", "value": value}


def gpt(value: str) -> dict[str, str]:
    return {"from": "gpt", "value": value}


SFT = "prompt_completion"
TALK = [user("Q1"), assistant("A1"), user("Q2"), assistant("A2")]
SHARED = [human("Q1"), gpt("A1"), human("Q2"), gpt("A2")]

# kind, a row as it is published, the layout, the row as it is read
PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    # TRL: prompt-completion, standard and conversational; language modelling, conversational
    ("prompt_completion", {"prompt": "Q", "completion": " A"}, "own", {"prompt": "Q", "completion": " A"}),
    (
        "prompt_completion",
        {"prompt": TALK[:3], "completion": [assistant("A2")]},
        "conversational",
        {"messages": TALK, "num_given": 3},
    ),
    ("prompt_completion", {"messages": TALK}, "messages", {"messages": TALK, "num_given": 0}),
    # UltraChat as the hub has it: a prompt beside the messages
    ("prompt_completion", {"prompt": "Q1", "messages": TALK}, "messages", {"messages": TALK, "num_given": 0}),
    # OpenAI: parts of text, keys that are null
    (
        "prompt_completion",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Q"}, {"type": "text", "text": "?"}],
                    "name": None,
                },
                assistant("A") | {"tool_calls": None},
                user("thanks"),
            ]
        },
        "messages",
        {"messages": [user("Q?"), assistant("A")], "num_given": 0},
    ),
    # ShareGPT, with a column for the system message
    (
        "prompt_completion",
        {"system": "S", "conversations": SHARED, "id": 7},
        "sharegpt",
        {"messages": [system("S"), *TALK], "num_given": 0},
    ),
    ("prompt_completion", {"conversations": TALK}, "sharegpt", {"messages": TALK, "num_given": 0}),
    # Alpaca, and LLaMA-Factory's columns beside it
    (
        "prompt_completion",
        {"instruction": "Add.", "input": "2 3", "output": "5"},
        "alpaca",
        {"messages": [user("Add.\n2 3"), assistant("5")], "num_given": 0},
    ),
    (
        "prompt_completion",
        {"instruction": "Q2", "input": "", "output": "A2", "system": "S", "history": [["Q1", "A1"]]},
        "alpaca",
        {"messages": [system("S"), *TALK], "num_given": 0},
    ),
    (
        "prompt_completion",
        {"instruction": "加", "input": "2 3", "output": "五", "demonstrations": [{"input": "1 1", "output": "二"}]},
        "alpaca",
        {"messages": [user("加\n1 1"), assistant("二"), user("加\n2 3"), assistant("五")], "num_given": 2},
    ),
    # OpenRLHF
    ("prompt_completion", {"input": "Q", "output": "A"}, "input_output", {"prompt": "Q", "completion": "A"}),
    (
        "prompt_completion",
        {"input": TALK[:3], "output": "A2"},
        "input_output",
        {"messages": TALK, "num_given": 3},
    ),
    # TRL: preference, explicit and implicit prompts; OpenRLHF's chat lists are the same
    (
        "preference",
        {"prompt": [user("Q")], "chosen": [assistant("A")], "rejected": [assistant("B")]},
        "conversational",
        {"prompt": [user("Q")], "chosen": "A", "rejected": "B"},
    ),
    (
        "preference",
        {"chosen": TALK, "rejected": [*TALK[:3], assistant("no")]},
        "conversational",
        {"prompt": TALK[:3], "chosen": "A2", "rejected": "no"},
    ),
    (
        "preference",
        {"chosen": "The sky is blue.", "rejected": "The sky is green.", "id": 3},
        "implicit_prompt",
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    ),
    # UltraFeedback: the prompt as a string, whole conversations on both sides, the messages once more
    (
        "preference",
        {"prompt": "Q", "chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]}
        | {"messages": [user("Q"), assistant("A")], "score_chosen": 8.0},
        "conversational",
        {"prompt": [user("Q")], "chosen": "A", "rejected": "B"},
    ),
    # LLaMA-Factory: conversations and two answers; Alpaca's columns
    (
        "preference",
        {"conversations": SHARED[:3], "chosen": gpt("A2"), "rejected": gpt("no")},
        "sharegpt",
        {"prompt": TALK[:3], "chosen": "A2", "rejected": "no"},
    ),
    (
        "preference",
        {"messages": [user("Q")], "chosen": assistant("A"), "rejected": assistant("B"), "system": "S"},
        "messages",
        {"prompt": [system("S"), user("Q")], "chosen": "A", "rejected": "B"},
    ),
    (
        "preference",
        {"instruction": "Q", "input": "more", "chosen": "A", "rejected": "B"},
        "alpaca",
        {"prompt": [user("Q\nmore")], "chosen": "A", "rejected": "B"},
    ),
    (
        "preference",
        {"input": "Q", "chosen": "A", "rejected": "B"},
        "input_output",
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
    ),
    (
        "preference_margin",
        {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")], "margin": 2},
        "conversational",
        {"prompt": [user("Q")], "chosen": "A", "rejected": "B", "margin": 2.0},
    ),
    # TRL's and LLaMA-Factory's KTO rows, ratings, and rated answers
    (
        "labelled",
        {"prompt": [user("Q")], "completion": [assistant("A")], "label": True},
        "conversational",
        {"prompt": [user("Q")], "completion": "A", "label": True},
    ),
    (
        "labelled",
        {"messages": TALK, "label": False},
        "messages",
        {"prompt": TALK[:3], "completion": "A2", "label": False},
    ),
    (
        "scored",
        {"instruction": "Q", "output": "A", "score": 4},
        "alpaca",
        {"prompt": [user("Q")], "completion": "A", "score": 4.0},
    ),
    (
        "ranking",
        {"prompt": "Q", "responses": ["bad", "good", "fair"], "scores": [1, 3.5, 2]},
        "rated",
        {"prompt": "Q", "ranked": ["good", "fair", "bad"]},
    ),
    (
        "ranking",
        {"prompt": "Q", "responses": [assistant("b"), [assistant("a")], "c", "d"], "scores": [4, 5, 4, 1]},
        "rated",
        {"prompt": "Q", "ranked": ["a", "b", "d"]},
    ),
    (
        "ranking",
        {"prompt": "Q", "ranked": [[assistant("a")], assistant("b")]},
        "own",
        {"prompt": "Q", "ranked": ["a", "b"]},
    ),
    ("preference", {"prompt": "Q", "responses": ["b", "a"], "scores": [4, 5]}, "rated", PAIR),
    ("preference_margin", {"prompt": "Q", "responses": ["b", "a"], "scores": [4, 5]}, "rated", PAIR | {"margin": 1.0}),
    ("preference_margin", PAIR | {"score_chosen": 8, "score_rejected": 6.5}, "scored", PAIR | {"margin": 1.5}),
    (
        "preference_margin",
        {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")], "prompt": "Q"}
        | {"score_chosen": 8.0, "score_rejected": 9.0},
        "scored",
        {"prompt": [user("Q")], "chosen": "A", "rejected": "B", "margin": -1.0},
    ),
    # LLaMA-Factory's labels, OpenRLHF's answers as messages, OpenAI's weights and text parts
    (
        "labelled",
        {"instruction": "Q", "input": "", "output": "A", "kto_tag": True},
        "alpaca",
        {"prompt": [user("Q")], "completion": "A", "label": True},
    ),
    (
        "prompt_completion",
        {"input": [user("Q")], "output": [assistant("A")]},
        "input_output",
        {"messages": [user("Q"), assistant("A")], "num_given": 1},
    ),
    (
        "prompt_completion",
        {"messages": [user("Q1"), assistant("A1") | {"weight": 0}, user("Q2"), assistant("A2")], "system": "S"},
        "messages",
        {"messages": [system("S"), *TALK], "num_given": 3},
    ),
    (
        "prompt_completion",
        {"prompt": [{"role": "human", "content": [{"type": "text", "text": "Q"}]}], "completion": "A", "system": "S"},
        "own",
        {"prompt": [system("S"), user("Q")], "completion": "A"},
    ),
    (
        "preference",
        PAIR | {"system": "S"},
        "own",
        PAIR | {"prompt": [system("S"), user("Q")]},
    ),
    # verl's, OpenRLHF's and TRL's prompts
    (
        "prompts",
        {
            "prompt": [user("2+3?")],
            "data_source": "openai/gsm8k",
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "5"},
            "extra_info": {"index": 0},
        },
        "own",
        {"prompt": [user("2+3?")]},
    ),
    ("prompts", {"input": "2+3?", "label": "5"}, "input_output", {"prompt": "2+3?"}),
    ("prompts", {"input": [user("2+3?")], "label": "5"}, "input_output", {"prompt": [user("2+3?")]}),
    ("prompts", {"messages": TALK}, "messages", {"prompt": TALK[:3]}),
    ("prompts", {"conversations": SHARED[:3]}, "sharegpt", {"prompt": TALK[:3]}),
    ("prompts", {"instruction": "Q", "input": "", "output": "A"}, "alpaca", {"prompt": [user("Q")]}),
    ("prompts", {"prompt": "Q", "messages": TALK, "chosen": "x"}, "own", {"prompt": "Q"}),
]


@pytest.mark.parametrize(
    ("kind", "row", "layout", "expected"), CASES, ids=[f"{c[0]}-{c[2]}-{n}" for n, c in enumerate(CASES)]
)
def test_a_published_row_is_recognised_and_read(kind: str, row: dict, layout: str, expected: dict) -> None:
    reading = recognise([("a.jsonl, line 1:", row)], kind)
    assert reading.layout == layout
    assert reading(row) == expected
    assert recognise([("", row)], kind, layout)(row) == expected, "stated"
    assert pa.Table.from_pylist([expected], schema=reading.schema()).to_pylist() == [expected]


def test_files_of_every_layout_go_through_ray(ray_local: None, tmp_path: Path) -> None:
    """Parquet gives the same rows as JSON lines and as a JSON array."""
    for n, (kind, row, _, expected) in enumerate(CASES):
        if n in (2, 9, 13):
            folder = tmp_path / str(n)
            folder.mkdir()
            (folder / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
            (folder / "b.json").write_text(json.dumps([row], indent=2), encoding="utf-8")
            parquet.write_table(pa.Table.from_pylist([row]), folder / "c.parquet")
            for name in ("a.jsonl", "b.json", "c.parquet"):
                assert sources.check(str(folder / name), "auto", kind) == [expected]
                assert sources.read(str(folder / name), "auto", kind).take_all() == [expected], (name, row)


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        (
            SFT,
            {"messages": TALK, "conversations": SHARED},
            "more than one layout .*messages and sharegpt: set data.row_format.*Q1",
        ),
        (
            SFT,
            {"question": "Q"},
            r"(?s)has no prompt and no completion: found the columns \['question'\].*data.columns",
        ),
        (SFT, {"messages": [user("Q")]}, "messages has no turn of the assistant, so nothing to learn: .*Q"),
        (
            SFT,
            {"messages": [user("Q"), {"role": "tool", "content": "7"}, assistant("A")]},
            "a turn of a tool .*7.*not supported",
        ),
        (SFT, {"conversations": [human("Q"), {"from": "function_call", "value": "f()"}]}, "a turn of a tool"),
        (
            SFT,
            {"messages": [user("Q"), {"role": "narrator", "content": "A"}]},
            "the role narrator; there are system, user",
        ),
        (
            SFT,
            {"messages": [user("Q"), {"role": "assistant", "content": None}]},
            "content is null .NoneType., not a string",
        ),
        (SFT, {"messages": [user("Q"), system("S"), assistant("A")]}, "a system message after the first place"),
        (SFT, {"messages": [system("T"), *TALK], "system": "S"}, "a system column and a system message"),
        (SFT, {"messages": TALK, "images": ["a.jpg"]}, "has images .*a.jpg.*text alone"),
        (SFT, {"instruction": "Q", "output": 7}, "output is 7 .int., not a string"),
        (SFT, {"instruction": "Q", "output": "A", "history": ["Q1"]}, "history holds Q1; expected"),
        (SFT, {"instruction": "Q", "output": "A", "demonstrations": ["Q1"]}, "demonstrations holds Q1; expected"),
        (SFT, {"prompt": TALK, "completion": [user("x")]}, "completion has no turn of the assistant"),
        ("preference", {"chosen": TALK, "rejected": TALK[:2]}, "the same conversation but for one last answer"),
        ("preference", {"chosen": TALK[:3], "rejected": [*TALK[:2], user("x")]}, "chosen ends with a turn of the user"),
        ("labelled", {"messages": TALK, "label": "good"}, "label is good, not true or false"),
        ("scored", {"messages": TALK, "score": float("nan")}, "score is NaN, not a finite number"),
        ("ranking", {"prompt": "Q", "responses": ["a", "b"], "scores": [1]}, "to be as many answers as numbers"),
        ("ranking", {"prompt": "Q", "responses": ["a", 3], "scores": [1, 2]}, "responses holds 3, which is no message"),
        ("ranking", {"prompt": "Q", "responses": ["a", "b"], "scores": [1, "x"]}, "scores is x, not a finite number"),
        # whatever holds the question is not to be lost
        (
            "preference",
            {"system": "S", "question": "Q", "chosen": "A", "rejected": "B"},
            r"(?s)has no prompt: found .*question.*data.columns.prompt=question",
        ),
        ("preference", {"chosen": "4", "rejected": "5"}, "no common beginning, which would be the prompt: 4 and 5"),
        (SFT, {"prompt": "Q", "completion": "A", "images": ["a.jpg"]}, "has images"),
        (SFT, {"prompt": [user("Q"), {"role": "tool", "content": "7"}], "completion": "A"}, "a turn of a tool"),
        (SFT, {"conversations": SHARED, "tools": '[{"name": "f"}]'}, "has tools .*not supported"),
        (
            SFT,
            {"messages": [user("Q"), assistant("A") | {"weight": 1}, user("R"), assistant("B") | {"weight": 0}]},
            r"the weights \[1, 0\] on its answers",
        ),
    ],
)
def test_wrong_rows_are_shown_before_anything_starts(tmp_path: Path, kind: str, row: dict, words: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=words) as raised:
        sources.check(str(tmp_path / "a.jsonl"), "auto", kind)
    assert "a.jsonl, line 1" in str(raised.value)


def test_a_row_unlike_the_others_is_shown_with_what_was_expected(tmp_path: Path) -> None:
    rows = [{"messages": TALK}, {"messages": TALK}, {"prompt": "Q", "completion": "A"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"line 3: has the columns \['completion', 'prompt'\], not those of .* messages"
    ):
        sources.check(str(tmp_path / "a.jsonl"), "auto", "prompt_completion")


def test_prompts_are_strings_or_messages_throughout(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": "A"}, {"prompt": [user("Q")], "completion": "A"}]
    for first, words in ((0, "a string in the first row"), (1, "messages in the first row")):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(rows[first - n]) + "\n" for n in range(2)))
        with pytest.raises(DataError, match=f"line 2: mixes types: prompt is .*Q.*, {words}"):
            sources.check(str(tmp_path / "a.jsonl"), "auto", "prompt_completion")


def test_a_layout_can_be_stated(tmp_path: Path) -> None:
    both = {"messages": TALK, "instruction": "Q", "output": "A"}
    assert recognise([("", both)], "prompt_completion", "alpaca")(both)["messages"] == [user("Q"), assistant("A")]
    with pytest.raises(
        DataError, match="data.row_format=rated is no layout of prompt_completion rows; there are own, conversat"
    ):
        recognise([("", both)], "prompt_completion", "rated")
    (tmp_path / "a.jsonl").write_text(json.dumps(both) + "\n")
    with pytest.raises(DataError, match="has no prompt and no completion"):
        sources.check(str(tmp_path / "a.jsonl"), "auto", "prompt_completion", "own")


def test_columns_are_renamed(tmp_path: Path) -> None:
    row = {"question": "Q", "meta": {"answer": {"text": "A"}}, "prompt": "old"}
    columns = {"prompt": "question", "completion": "meta.answer.text"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"question": "Q"}) + "\n")
    assert Reading(SFT, columns=columns)(row) == {"prompt": "Q", "completion": "A"}
    with pytest.raises(
        DataError, match=r"line 2: has no column meta.answer.text, which data.columns names for completion"
    ):
        sources.check(str(tmp_path / "a.jsonl"), "auto", "prompt_completion", columns=columns)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "Q", "prompt": "R", "completion": "A"}', "has prompt more than once in an object"),
        ('{"messages": [{"role": "user", "role": "assistant", "content": "A"}]}', "has role more than once"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=f"line 1: {words}"):
        sources.check(str(tmp_path / "a.jsonl"), "auto", "prompt_completion")


def test_a_broken_array_names_its_element(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\ufeff[{"text": "[x], ä"},\n {"text": "b"} , {"text": ]', encoding="utf-8")
    with pytest.raises(DataError, match=r"a.json, row 3: element 3 of the array is not JSON .*text"):
        sources.check(str(path))
    path.write_text('[{"text": "a"}, {"text": 7}]')
    with pytest.raises(DataError, match=r"a.json, row 2: has text=7"):
        sources.check(str(path))


def test_arrays_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayrlhf.data.json_array.CHUNK_BYTES", 3)
    rows = [{"text": "ä" * n + '"],[{'} for n in range(1, 6)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    assert sources.check(str(tmp_path / "a.json")) == rows
    monkeypatch.setattr("rayrlhf.data.json_array.MAX_ELEMENT", 50)
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": "b" "c"}' + ' {"text": "d"},' * 100)
    with pytest.raises(DataError, match="element 2 of the array is not JSON .*delimiter"):
        sources.check(str(tmp_path / "a.json"))


def test_an_implicit_prompt_ends_between_words() -> None:
    assert implicit_prompt("good day", "great day") == {"prompt": "", "chosen": "good day", "rejected": "great day"}
    assert implicit_prompt("It is good", "It is great") == {"prompt": "It is", "chosen": " good", "rejected": " great"}
    assert implicit_prompt("天气很好", "天气很坏") == {"prompt": "天气很", "chosen": "好", "rejected": "坏"}
    assert implicit_prompt("Q: a\nA: x", "Q: a\nA: y") == {"prompt": "Q: a\nA:", "chosen": " x", "rejected": " y"}
    assert implicit_prompt("same", "same") == {"prompt": "same", "chosen": "", "rejected": ""}
