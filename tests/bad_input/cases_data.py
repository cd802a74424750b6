"""Mistakes in rows: files, columns, values, conversations, raw text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.bad_input.registry import DPO, PPO, PRETRAIN, REWARD, SFT, Case, file, given, without
from tests.bad_input.workshop import ROWS, Answer, Workshop

Provoke = Callable[[Workshop], Answer]
GOOD = json.dumps({"prompt": "a", "completion": " b"}) + "\n"
PREPARE = ("prepare", "run.name=mine")


def _rows(content: Any, name: str = "mine.jsonl", job: tuple[str, ...] = SFT, *more: str) -> Provoke:
    """`content` as the training rows of a job."""
    return file(name, content, *without(job, "data.train"), f"data.train={name}", *more)


def _prompts(content: Any) -> Provoke:
    return file("mine.jsonl", content, *without(PPO, "prompts.train"), "prompts.train=mine.jsonl")


def _table(**columns: list[Any]) -> Provoke:
    def provoke(here: Workshop) -> Answer:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table(columns), "mine.parquet")
        return here.run(*without(SFT, "data.train"), "data.train=mine.parquet")

    return provoke


def _raw(content: str | bytes, name: str = "mine.txt", *more: str) -> Provoke:
    return file(name, content, *PREPARE, f"data.source={name}", *more)


def _chat(*turns: tuple[str, Any]) -> Provoke:
    return _rows([{"messages": [{"role": role, "content": content} for role, content in turns]}] * ROWS)


def _template(text: str | bytes) -> Provoke:
    return file("mine.jinja", text, *SFT, "chat_template=mine.jinja")


def _folder_of_two(here: Workshop) -> Answer:
    here.write("mine/a.jsonl", GOOD)
    here.write("mine/b.csv", "prompt,completion\n")
    return here.run(*without(SFT, "data.train"), "data.train=mine")


CASES = (
    Case(
        "the file is not there",
        given(*without(SFT, "data.train"), "data.train=mine.jsonl"),
        ("mine.jsonl", "working directory"),
    ),
    Case("the file is empty", _rows(""), ("mine.jsonl is empty", "without a single row")),
    Case("the file has nothing but blank lines", _rows("\n\n"), ("mine.jsonl is empty",)),
    Case("a CSV file has nothing but its first line", _rows("prompt,completion\n", "mine.csv"), ("mine.csv is empty",)),
    Case(
        "a pattern that no file fits", given(*without(SFT, "data.train"), "data.train=*.csv"), ("*.csv", "no data file")
    ),
    Case("an extension that says nothing", _rows(GOOD, "mine.data"), ("'.data'", "Set `format`")),
    Case("a folder of files of two kinds", _folder_of_two, ("'.csv', '.jsonl'", "files of one kind")),
    Case(
        "a bucket without its library",
        given(*without(SFT, "data.train"), "data.train=s3://bucket/rows.jsonl"),
        ("s3fs",),
    ),
    Case(
        "a data set of the hub without a name",
        given(*without(SFT, "data.train"), "data.train=hf://"),
        ("'hf://'", "write hf://name"),
    ),
    Case("one broken line", _rows(GOOD * 3 + '{"prompt": "a", \n' + GOOD), ("line 4", "not JSON", "one object a line")),
    Case(
        "single quotes in place of JSON's", _rows("{'prompt': 'a', 'completion': 'b'}\n"), ("line 1", "double quotes")
    ),
    Case("a line is a list", _rows('["a", "b"]\n'), ("line 1", "is list", "not an object with")),
    Case(
        "an object is cut off in a JSON array",
        _rows('[{"prompt": "a", "completion": "b"},\n {"prompt":', "mine.json"),
        ("mine.json, row 2", "not JSON"),
    ),
    Case(
        "a key stands twice in a row",
        _rows('{"prompt": "a", "prompt": "b", "completion": "c"}\n'),
        ("line 1", "prompt more than once"),
    ),
    Case(
        "text in Latin-1",
        _rows('{"prompt": "caf\xe9", "completion": "b"}\n'.encode("latin-1")),
        ("line 1", "0xe9", "iconv"),
    ),
    Case("text in UTF-16", _rows(GOOD.encode("utf-16")), ("0xff", "iconv -f utf-16")),
    Case("a file of two files, each with a byte order mark", _rows(GOOD + "\ufeff" + GOOD), ("line 2", "BOM")),
    Case("the columns have other names", _rows([{"q": "a", "a": "b"}]), ("'a', 'q'", "data.columns.prompt=question")),
    Case(
        "a column that data.columns names is not there",
        _rows([{"q": "a", "completion": "b"}], "mine.jsonl", SFT, "data.columns.prompt=question"),
        ("no column question", "data.columns names for prompt"),
    ),
    Case(
        "a CSV file without the column", _rows("question,answer\na,b\n", "mine.csv"), ("line 2", "'answer', 'question'")
    ),
    Case("a CSV file with semicolons", _rows("prompt;completion\na;b\n", "mine.csv"), ("prompt;completion",)),
    Case(
        "a CSV row has a field too many", _rows("prompt,completion\na,b,c\n", "mine.csv"), ("line 2", "3 fields", "2")
    ),
    Case("a CSV row has a field too few", _rows("prompt,completion\na\n", "mine.csv"), ("line 2", "1 field,", "2")),
    Case(
        "a CSV column stands twice", _rows("prompt,prompt,completion\na,b,c\n", "mine.csv"), ("prompt more than once",)
    ),
    Case(
        "a CSV file in UTF-16",
        _rows("prompt,completion\na,b\n".encode("utf-16"), "mine.csv"),
        ("line 1", "not UTF-8", "utf-16"),
    ),
    Case(
        "numbers where text is expected",
        _rows('{"prompt": "a", "completion": 3}\n'),
        ("completion=3 (int)", "not a string"),
    ),
    Case("a null in a row", _rows(GOOD * 5 + '{"prompt": null, "completion": "b"}\n'), ("line 6", "prompt=null")),
    Case("half an emoji", _rows('{"prompt": "\\ud83d", "completion": "b"}\n'), ("line 1", "half a character", "ud83d")),
    Case("a file that is called Parquet and is none", _rows(GOOD, "mine.parquet"), ("not a Parquet file",)),
    Case(
        "a Parquet column of numbers", _table(prompt=["a"] * 3, completion=[1, 2, 3]), ("row 1", "completion=1 (int)")
    ),
    Case("a Parquet column with a null", _table(prompt=["a", None], completion=["b", "c"]), ("row 2", "prompt=null")),
    Case("plain text for SFT", _rows("hello\n", "mine.txt"), ("need ['prompt', 'completion']", "use JSONL or CSV")),
    Case("too few rows for a minibatch", _rows(GOOD * 5), ("5 rows", "train.minibatch=64", "Lower train.minibatch")),
    Case(
        "all rows are too long",
        _rows([{"prompt": "a" * 100, "completion": "b"}] * ROWS),
        ("80 longer", "=64", "raise data.max_tokens"),
    ),
    Case(
        "answers that are all empty",
        _rows([{"prompt": "a", "completion": ""}] * ROWS),
        ("80 without an answer", "mend"),
    ),
    Case(
        "chosen is the same as rejected",
        _rows([{"prompt": "a", "chosen": "b", "rejected": "b"}] * ROWS, "mine.jsonl", REWARD),
        ("80 pairs of equal texts", "mend"),
    ),
    Case(
        "pairs without the worse answer",
        _rows([{"prompt": "a", "chosen": "b"}], "mine.jsonl", DPO),
        ("no rejected", "preference rows need"),
    ),
    Case(
        "pairs without a prompt",
        _rows([{"chosen": "yes", "rejected": "no"}], "mine.jsonl", DPO),
        ("no common beginning", "data.columns.prompt"),
    ),
    Case(
        "a label that is a word",
        _rows([{"prompt": "a", "completion": "b", "label": "good"}], "mine.jsonl", ("kto", *SFT[1:])),
        ("label=good", "true or false"),
    ),
    Case(
        "a score that is not a number",
        _rows('{"prompt": "a", "completion": "b", "score": NaN}\n', "mine.jsonl", REWARD, "loss=regression"),
        ("score=NaN", "a finite number"),
    ),
    Case(
        "a ranking of one text",
        _rows([{"prompt": "a", "ranked": ["b"]}], "mine.jsonl", REWARD, "loss=ranking"),
        ("two texts or more",),
    ),
    Case(
        "a margin that rows have not",
        _rows([{"prompt": "a", "chosen": "b", "rejected": "c"}], "mine.jsonl", REWARD, "margin=1"),
        ("has no margin",),
    ),
    Case("a conversation without an answer", _chat(("user", "a")), ("no turn of the assistant", "nothing to learn")),
    Case(
        "a conversation that begins with the assistant",
        _chat(("assistant", "a"), ("user", "b"), ("assistant", "c")),
        ("begins with the assistant", "Put the user's turn"),
    ),
    Case(
        "a role that is none",
        _chat(("customer", "a"), ("assistant", "b")),
        ("the role customer", "there are system, user"),
    ),
    Case(
        "a system message in the middle",
        _chat(("user", "a"), ("system", "b"), ("assistant", "c")),
        ("system message after the first",),
    ),
    Case(
        "a turn of a tool",
        _chat(("user", "a"), ("tool", "b"), ("assistant", "c")),
        ("turn of a tool", "write them out as text"),
    ),
    Case("a turn without content", _chat(("user", None), ("assistant", "b")), ("content is null", "not a string")),
    Case(
        "a role that is a list",
        _rows([{"messages": [{"role": ["user"], "content": "a"}, {"role": "assistant", "content": "b"}]}]),
        ('role is ["user"]', "not a string"),
    ),
    Case(
        "a part of a content that is a number",
        _chat(("user", [{"type": "text", "text": 3}]), ("assistant", "b")),
        ('"text": 3', "not a string"),
    ),
    Case(
        "a conversation with pictures",
        _rows(
            [
                {
                    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                    "images": ["a.png"],
                }
            ]
        ),
        ("a.png", "text alone"),
    ),
    Case(
        "columns of two layouts",
        _rows(
            [
                {
                    "instruction": "a",
                    "output": "b",
                    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                }
            ]
        ),
        ("messages and alpaca", "set data.row_format"),
    ),
    Case(
        "a layout that the rows have not",
        _rows(GOOD, "mine.jsonl", SFT, "data.row_format=alpaca"),
        ("layout alpaca", "instruction, output"),
    ),
    Case(
        "the same source twice",
        given(*without(SFT, "data.train"), "data.train=[{path: sft.jsonl}, {path: sft.jsonl}]"),
        ("sft.jsonl twice",),
    ),
    Case(
        "prompts that are some strings, some messages",
        _prompts([{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}]),
        ("line 2", "mixes types", "throughout"),
    ),
    Case(
        "fewer held-out prompts than evaluated",
        given(*PPO, "loop.evaluation_prompts=90"),
        ("80 rows", "loop.evaluation_prompts=90"),
    ),
    Case(
        "SFT's rows for pretraining",
        given(*without(PRETRAIN, "data.train"), "data.train=sft.jsonl"),
        ("has no text", "completion"),
    ),
    Case("a chat template that is not there", given(*SFT, "chat_template=chatlm"), ("chatlm", "chatml, llama3, roles")),
    Case(
        "a chat template with an open loop",
        _template("{% for message in messages %}"),
        ("mine.jinja is no Jinja template", "endfor"),
    ),
    Case(
        "a chat template without an end",
        _template("{% for m in messages %}{{ m['content'] }}{% endfor %}"),
        ("{{ eos_token }}",),
    ),
    Case(
        "a chat template that raises",
        _template("{% for m in messages %}{{ 1 / 0 }}{{ eos_token }}{% endfor %}"),
        ("mine.jinja", "division by zero"),
    ),
    Case(
        "a chat template in Latin-1",
        _template("{% for m in messages %}caf\xe9{% endfor %}".encode("latin-1")),
        ("mine.jinja", "UTF-8"),
    ),
    Case(
        "a chat template for another tokenizer",
        given(*SFT, "chat_template=chatml"),
        ("'<|im_end|>'", "10 tokens", "chat_template=roles"),
    ),
    Case("raw text is not there", given(*PREPARE, "data.source=mine.txt"), ("mine.txt", "working directory")),
    Case("raw text in Latin-1", _raw("caf\xe9\n".encode("latin-1")), ("line 1", "0xe9", "set data.encoding")),
    Case("an encoding that is none", _raw("a\n", "mine.txt", "data.encoding=utf-88"), ("'utf-88'", "try utf-8")),
    Case("a file that is called .gz and is none", _raw("a\n", "mine.txt.gz"), ("mine.txt.gz", "gzip")),
    Case("raw text in another column", _raw('{"body": "a"}\n', "mine.jsonl"), ("has no text", "'body'")),
    Case(
        "a step of cleaning is misspelt",
        _raw("a\n", "mine.txt", "clean.steps=[{kind: lenght}]"),
        ("'lenght'", "'length'"),
    ),
    Case(
        "the shortest text longer than the longest",
        _raw("a\n", "mine.txt", "data.min_chars=9", "data.max_chars=5"),
        ("min_chars=9", "max_chars=5"),
    ),
)
