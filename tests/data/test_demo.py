"""demo: the rules by hand, their tables through Ray."""

import pytest

from rayrlhf.data import demo
from rayrlhf.data.cleaning.normalise import normalise
from rayrlhf.data.config import SnippetsConfig
from rayrlhf.data.order import by_content

CONFIG = SnippetsConfig()


def test_a_raw_line() -> None:
    assert demo.parse("7\t-1.25\tNot good.") == {"rating": -1.25, "text": "Not good."}
    with pytest.raises(ValueError, match="2 fields"):
        demo.parse("7\t-1.25")


def test_normal_forms() -> None:
    assert demo.normal_form(
        "  The ''big''    one &amp; only   `Kid\u2019s' "
    ) == "The \"big\" one & only 'Kid's'".replace('"big" one', '"big" - one').replace("only ", "only - ")
    assert normalise("cafe\u0301\x00 \t bar\r\n\n\n\nnext \n line ") == "café bar\n\nnext\n line"


def test_the_split_is_by_text_and_of_the_right_size() -> None:
    texts = [f"text number {i}" for i in range(4000)]
    held_out = {t for t in texts if demo.split_of(t, 0.1) == "validation"}
    assert 330 < len(held_out) < 470
    assert held_out <= {t for t in texts if demo.split_of(t, 0.2) == "validation"}  # a larger share only adds
    assert demo.split_of("The performances are remarkable.") == "train"  # pinned: resumed runs rely on it


def test_a_prompt_and_its_completion_make_the_text() -> None:
    for i in range(50):
        text = f"w{i} " + " ".join(f"x{j}" for j in range(12))
        row = demo.prompt_completion(text, CONFIG)
        assert row is not None and row["prompt"] + row["completion"] == text
        assert 3 <= len(row["prompt"].split()) <= 6 and row["completion"].startswith(" x")
    cuts = {len(demo.prompt_completion(f"w{i} " + "x " * 12 + "x", CONFIG)["prompt"].split()) for i in range(50)}
    assert cuts == {3, 4, 5, 6}
    exact = SnippetsConfig(min_prompt_words=2, max_prompt_words=2, min_completion_words=2)
    assert demo.prompt_completion("a b c d", exact) == {"prompt": "a b", "completion": " c d"}
    assert demo.prompt_completion("a b c", exact) is None


def test_pairs_by_hand() -> None:
    rated = [("a", 2.0), ("b", 1.5), ("c", -1.0), ("d", 0.9)]
    # a: next unlike is c (then d); b: c; c: d is 1.9 away (then a); d: a is 1.1 above (then c)
    assert demo.pairs(rated, 1.0, 1) == [("a", "c"), ("b", "c"), ("d", "c"), ("a", "d")]
    # with two each: a-c, a-d; b-c (nobody else); c-d, c-a known; d-a, d-c known
    assert demo.pairs(rated, 1.0, 2) == [("a", "c"), ("a", "d"), ("b", "c"), ("d", "c")]
    assert demo.pairs([("a", 1.0), ("b", 0.0)], 1.0, 3) == []  # exactly 1 apart is not more than 1


def test_labels_by_hand() -> None:
    import pyarrow as pa

    words = "a b c d e f g h i j k"
    rated = [
        (f"one {words}", 1.1),
        (f"two {words}", 1.0),
        (f"three {words}", -1.0),
        (f"four {words}", -1.1),
        ("x", 3.0),
    ]
    batch = pa.table({"text": [text for text, _ in rated], "rating": [rating for _, rating in rated]})
    rows = demo._labelled(batch, CONFIG).to_pylist()
    assert [((row["prompt"] + row["completion"]).split()[0], row["label"]) for row in rows] == [
        ("one", True),
        ("four", False),
    ], "exactly 1 is not above it, and x is too short to be cut"


def test_gold_judges_the_response_alone() -> None:
    good, bad, plain = demo.gold(["awful horrible"] * 3, [" a wonderful, great film", " a terrible mess", " in Rome"])
    assert good > 0.5 and bad < -0.3 and plain == 0.0
    assert demo.gold(["a wonderful"], [" in Rome"]) == [0.0]
    with pytest.raises(ValueError, match="2 prompts, but 1"):
        demo.gold(["a", "b"], ["c"])


@pytest.mark.slow
def test_tables_do_not_depend_on_blocks_and_splits_do_not_meet(ray_local: None) -> None:
    from ray import data

    # 40 beginnings, each of 5 texts: training and validation share some, which are then no validation prompts
    config = SnippetsConfig(min_prompt_words=3, max_prompt_words=3)
    texts = [f"beginning {i % 40} is followed by some more words {i}" for i in range(200)]
    rows = [{"text": t, "rating": (i % 9) / 2 - 2} for i, t in enumerate(texts)]
    few = data.from_items(rows, override_num_blocks=2)
    many = data.from_items(rows[::-1], override_num_blocks=11)
    pairs = demo.preference_rows(few, "train", 0.3, config).take_all()
    assert pairs == demo.preference_rows(many, "train", 0.3, config).take_all()
    rating = {row["text"]: row["rating"] for row in rows}
    texts_paired = {p[name] for p in pairs for name in ("chosen", "rejected")}
    assert len(pairs) > 200 and all(demo.split_of(text, 0.3) == "train" for text in texts_paired)
    assert all(p["prompt"] == "" for p in pairs)
    assert all(rating[p["chosen"]] - rating[p["rejected"]] > 1.0 for p in pairs)
    assert len({frozenset((p["chosen"], p["rejected"])) for p in pairs}) == len(pairs)
    assert all(p["margin"] == rating[p["chosen"]] - rating[p["rejected"]] for p in pairs)
    bare = data.from_items([{name: p[name] for name in ("prompt", "chosen", "rejected")} for p in pairs[::-1]])
    assert by_content(bare).take_all() == [
        {name: p[name] for name in ("prompt", "chosen", "rejected")} for p in pairs
    ], "the margin has no part in the order"

    prompts = {
        s: [r["prompt"] for r in demo.prompt_rows(many, s, 0.3, config).take_all()] for s in ("train", "validation")
    }
    training = {" ".join(t.split()[:3]) for t in texts if demo.split_of(t, 0.3) == "train"}
    whole = {" ".join(t.split()[:3]) for t in texts}
    assert sorted(prompts["train"]) == sorted(training)
    assert sorted(prompts["validation"]) == sorted(whole - training)
