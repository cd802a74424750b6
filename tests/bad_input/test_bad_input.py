"""Every mistake of the table is made, through the entry that a user has, and answered as the table says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_input.document import answers, cases, document
from tests.bad_input.registry import AREAS, GOOD, Case
from tests.bad_input.workshop import Answer, workshops

NUMBERED = [(number, *one) for number, one in enumerate(cases())]
PAGE = Path(__file__).parents[2] / "docs/bad_input.md"


@pytest.fixture(scope="module")
def opened() -> Iterator:
    with workshops() as found:
        yield found


@pytest.fixture(scope="module")
def found(opened) -> list[Answer]:
    return answers(opened)


@pytest.mark.parametrize("argv", GOOD, ids=lambda argv: argv[0])
def test_without_a_mistake_a_job_gets_as_far_as_a_cluster(opened, argv) -> None:
    with opened() as workshop:
        answer = workshop.run(*argv)
    assert answer == Answer(0, "", answer.out, started=True)


@pytest.mark.parametrize(("number", "area", "case"), NUMBERED, ids=lambda one: getattr(one, "wrong", ""))
def test_a_mistake_is_refused_before_anything_starts(found, number: int, area: str, case: Case) -> None:
    answer = found[number]
    assert not answer.started, "it was noticed too late, or not at all"
    assert answer.code == case.code
    assert "Traceback" not in answer.message + answer.out
    missing = [words for words in case.says if words not in answer.message]
    assert not missing, f"the message says nothing of {missing}: {answer.message}"
    if area == "server":
        assert set(answer.error) == {"message", "type", "param", "code"}
        assert answer.error["type"] == "invalid_request_error"
    else:
        assert answer.message.startswith("error: ") and answer.message.count("error: ") == 1


def test_the_table_is_what_the_mistakes_give(found) -> None:
    assert PAGE.read_text() == document(found), "python -m tests.bad_input > docs/bad_input.md"


def test_the_table_has_mistakes_of_every_area_and_none_twice() -> None:
    assert {area for area, _ in cases()} == set(AREAS) and len(cases()) >= 200
    assert len({(area, case.wrong) for area, case in cases()}) == len(cases())
    assert all(case.says for _, case in cases())
