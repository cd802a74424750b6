"""The n-gram model, the classifier, n-gram overlap and MinHash, against slow references."""

import itertools
import json
import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayrlhf.data.cleaning import classifier, decontaminate, duplicates, hashing, minhash, ngram_model, shards
from rayrlhf.data.cleaning.config import Decontaminate, NearDuplicates, UnitDuplicates
from rayrlhf.data.cleaning.duplicates import compared, without_units
from rayrlhf.data.cleaning.execute import decontaminate_verdict
from rayrlhf.errors import DataError

PINNED = 0x8DBCE87FE32CDDA6
TEXTS = ["abracadabra", "abba 的确 的", "cab"]


def test_windows_of_hashes_depend_on_the_window_alone() -> None:
    one, other = hashing.token_hashes("a b c d e".split()), hashing.token_hashes("x y b c d".split())
    for n in (1, 2, 3):
        mine, theirs = hashing.ngram_hashes(one, n), hashing.ngram_hashes(other, n)
        assert len(mine) == 5 - n + 1 and mine[1] == theirs[2] and len({*mine.tolist()}) == len(mine)
    assert hashing.ngram_hashes(one, 2)[0] != hashing.ngram_hashes(one[[1, 0]], 2)[0], "the order counts"
    assert len(hashing.ngram_hashes(one, 6)) == 0
    long = hashing.token_hashes([str(i % 7) for i in range(5000)])
    assert len(np.unique(hashing.ngram_hashes(long, 13))) == 7
    assert hashing.text_hash("中文") == PINNED, "kept shards and models rely on it"


def slow_probability(texts: list[str], order: int, history: str, char: str) -> float:
    """Witten-Bell by counting in dictionaries."""
    follows: dict[str, Counter] = defaultdict(Counter)
    for text in texts:
        padded = "\x02" * (order - 1) + text
        for place in range(order - 1, len(padded)):
            for n in range(order):
                follows[padded[place - n : place]][padded[place]] += 1
    probability = ngram_model.UNIFORM
    for n in range(order):
        after = follows.get(history[len(history) - n :] if n else "")
        if after:
            kinds = len(after)
            probability = (after[char] + kinds * probability) / (after.total() + kinds)
    return probability


@pytest.mark.parametrize("order", [2, 3, 5])
def test_the_ngram_model_is_witten_bell(order: int, tmp_path: Path) -> None:
    model = ngram_model.train([TEXTS[:1], TEXTS[1:]], order, min_count=1)
    model.save(str(tmp_path))
    model = ngram_model.NgramModel.load(str(tmp_path))
    assert model.order == order
    for text in ("abra", "的确xyz", "cabbage"):
        padded = "\x02" * (order - 1) + text
        wanted = [
            math.log(slow_probability(TEXTS, order, padded[i : i + order - 1], text[i])) for i in range(len(text))
        ]
        assert model.logprobs(text) == pytest.approx(wanted, rel=1e-9)
        assert model.perplexity(text) == pytest.approx(math.exp(-sum(wanted) / len(text)))
    assert model.perplexity("") == 1.0


def test_probabilities_sum_to_one_also_with_rare_ngrams_left_out() -> None:
    for min_count in (1, 2):
        model = ngram_model.train([TEXTS], 3, min_count)
        seen = sorted({char for text in TEXTS for char in text})
        for history in ("ab", "zz", "的"):
            total = sum(math.exp(model.logprobs(history + char)[-1]) for char in seen)
            unseen = math.exp(model.logprobs(history + "\u4444")[-1]) * (1_114_112 - len(seen))
            assert total + unseen == pytest.approx(1.0, abs=1e-6)
    assert len(ngram_model.train([TEXTS], 3, 2).counts[2][0]) < len(ngram_model.train([TEXTS], 3, 1).counts[2][0])
    assert len(ngram_model.train([TEXTS], 3, 2).counts[1][0]) == len(ngram_model.train([TEXTS], 3, 1).counts[1][0])


def test_the_classifier_learns_and_is_kept(tmp_path: Path) -> None:
    good = [
        f"The committee of {n} people has met, and they agreed to the plan. 会议决定采纳第{n}号方案。"
        for n in range(60)
    ]
    bad = [f"buy cheap {n} click here win win free {n} 点击领取{n}元红包" for n in range(20)]
    model = classifier.Classifier(classifier.Features(bits=14, word_ngram=2, char_ngram=3))
    rows = [(text, True) for text in good[:50]] + [(text, False) for text in bad[:15]]
    classifier.fit(model, rows[::2] + rows[1::2], 50 / 65, lr=0.1)
    assert all(model.score(text) > 0.5 for text in good[50:]) and all(model.score(text) < 0.5 for text in bad[15:])
    model.save(str(tmp_path))
    assert classifier.Classifier.load(str(tmp_path)).score(good[0]) == model.score(good[0])
    assert 0 < model.score("") < 1
    words = classifier.Features(bits=14, word_ngram=1, char_ngram=1)
    assert len(words.of("one two one")) == 2
    assert len(classifier.Features(14, 2, 1).of("one two one")) == 4, "and `one two`, `two one`"
    assert len(classifier.Features(14, 1, 2).of("one two one")) == 2 + 8, "on ne e_ _t tw wo o_ _o"


def test_a_step_of_the_classifier_follows_the_gradient() -> None:
    model = classifier.Classifier(classifier.Features(bits=10, word_ngram=1, char_ngram=1))
    model.learn("one two", True, weight=1.0, lr=0.1)
    places = model.features.of("one two")
    # AdaGrad's first step is the learning rate, whatever the gradient's size
    assert model.weights[places] == pytest.approx([0.1, 0.1], rel=1e-3) and model.bias == pytest.approx(0.1, rel=1e-3)
    assert model.score("one two") == pytest.approx(1 / (1 + math.exp(-(0.1 + 0.2 / math.sqrt(2)))), rel=1e-3)


def test_a_class_s_weight_scales_its_slope() -> None:
    even, heavy = (classifier.Classifier(classifier.Features(10, 1, 1)) for _ in range(2))
    for weight, model in ((1.0, even), (4.0, heavy)):
        model.learn("one", True, 1.0, 0.1)
        model.learn("one", True, weight, 0.1)
    assert heavy.weights.max() > even.weights.max() * 1.1, "AdaGrad's first step has no scale, later ones have"


def test_the_area_under_the_curve() -> None:
    assert classifier.area([0.9, 0.4, 0.4, 0.1], [True, True, False, False]) == (1 + 1 + 1 + 0.5) / 4


# ---- overlap ---------------------------------------------------------------------------------------


def test_shared_ngrams_are_found_in_both_languages() -> None:
    question = "What is the capital city of the largest country in the whole wide world today"
    known = decontaminate.index(iter([question, "short one", "水的化学式是什么？请给出答案"]), (6, 4), (6, 4))
    assert (known.num_texts, known.num_too_short) == (3, 1)
    assert decontaminate.match("He asked: what is THE capital, city of X", known) == "what is the capital city of"
    assert decontaminate.match("what is the capital town of the largest", known) is None
    assert decontaminate.match("老师问：水的化学式是什么？", known) == "水 的 化 学 式 是"
    assert decontaminate.match("", known) is None
    whole = decontaminate.index(iter(["who wrote the iliad"]), (13, 4), (13, 4))
    assert decontaminate.match("so who wrote the Iliad then", whole) == "who wrote the iliad", (
        "a short text counts whole"
    )


def test_evaluation_sets_of_any_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"q": ["one two three four"], "choices": {"a": "five six seven eight"}, "n": 3}\n'
    )
    (tmp_path / "b.json").write_text('[{"prompt": "nine ten eleven twelve"}]')
    (tmp_path / "c.txt").write_text("thirteen fourteen fifteen sixteen\n")
    config = Decontaminate(
        kind="decontaminate", against=tuple(str(tmp_path / name) for name in ("a.jsonl", "b.json", "c.txt")), ngram=4,
        min_tokens=3,
    )  # fmt: skip
    keep = decontaminate.build(config)
    for text in (
        "one two three four",
        "five six seven eight",
        "nine ten eleven twelve",
        "thirteen fourteen fifteen sixteen",
    ):
        found = keep(f"so {text} x")
        assert isinstance(found, tuple) and found == ("contaminated", text)
    assert keep("one two three five") == "one two three five"
    some = decontaminate.build(config.model_copy(update={"against": config.against[:2], "columns": ("q", "prompt")}))
    assert isinstance(some("one two three four"), tuple) and isinstance(some("nine ten eleven twelve"), tuple)
    assert some("five six seven eight") == "five six seven eight", "in a column that does not count"
    with pytest.raises(DataError, match="no row of .*c.txt has a column of .'q', 'prompt'."):
        decontaminate.build(config.model_copy(update={"columns": ("q", "prompt")}))
    with pytest.raises(DataError, match="none of the 4 texts .* has 5 tokens"):
        decontaminate.build(config.model_copy(update={"ngram": 5, "min_tokens": 5}))
    (tmp_path / "d.jsonl").write_text('{"q": "x"}\n{"q": \n')
    with pytest.raises(DataError, match=r"d.jsonl, line 2: not JSON"):
        decontaminate.build(config.model_copy(update={"against": (str(tmp_path / "d.jsonl"),)}))


def test_chinese_evaluation_texts_have_lengths_of_their_own(tmp_path: Path) -> None:
    stock, question = "下列说法正确的是", "小明从家出发步行去学校每分钟走六十米走了二十分钟到达"
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps({"q": text}) + "\n" for text in (stock, question, "GPT 与 Llama 哪个更好")))
    keep = decontaminate.build(Decontaminate(kind="decontaminate", against=(str(path),)))
    page = "例三：下列说法正确的是哪一个？"
    assert keep(page) == page, "a stock phrase is no question"
    found = keep(f"题目：{question}，求距离。")
    assert isinstance(found, tuple) and found.detail == " ".join(question[:20])
    part = question[:19] + "。"
    assert keep(part) == part
    strict = Decontaminate(kind="decontaminate", against=(str(path),), han_ngram=8, min_han_tokens=8)
    assert isinstance(decontaminate.build(strict)(page), tuple)
    with pytest.raises(ValueError, match="min_han_tokens=16 is above han_ngram=8"):
        Decontaminate(kind="decontaminate", against=(str(path),), han_ngram=8)


def test_ngrams_of_many_rows_count_for_nothing() -> None:
    group = pa.table({"key": pa.array([7, 7, 7, 5, 5, 9], pa.uint64()), "id": [1, 2, 3, 1, 4, 8]})
    found = decontaminate.contaminated(group, max_matches=2)
    assert found.to_pylist() == [
        {"id": 1, "ngram": 5}, {"id": 4, "ngram": 5}, {"id": 8, "ngram": 9}, {"id": decontaminate.COMMON, "ngram": 7},
    ]  # fmt: skip
    step = Decontaminate(kind="decontaminate", against=("x",), max_matches=2)
    verdict = decontaminate_verdict(("d", step), np.array([8, -1, 4, 4]), np.array([9, 7, 6, 5], np.uint64))
    assert (verdict.ids.tolist(), verdict.units.tolist()) == ([4, 8], [5, 9])
    assert verdict.notes == {"common_ngrams_ignored": 1}


# ---- near duplicates -------------------------------------------------------------------------------


def jaccard(one: str, other: str, n: int) -> float:
    sets = [set(minhash.ngram_set(text, n).tolist()) for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_signatures_estimate_the_similarity() -> None:
    words = [f"w{n}" for n in range(300)]
    one, other = " ".join(words[:250]), " ".join(words[50:])
    signatures = minhash.signatures([one, other, one, "", "!"], 3, 256)
    assert (signatures[0] == signatures[2]).all() and not (signatures[3] == signatures[4]).all()
    short = minhash.signatures(["One, two!", "one two"], 5, 64)
    assert (short[0] == short[1]).all(), "fewer words than an n-gram: all of them"
    wanted = jaccard(one, other, 3)
    assert wanted == 198 / 298
    assert (signatures[0] == signatures[1]).mean() == pytest.approx(wanted, abs=0.09)


def test_bands_find_pairs_at_the_threshold() -> None:
    for threshold, permutations in ((0.8, 128), (0.5, 128), (0.9, 64)):
        rows = minhash.band_rows(threshold, permutations)
        found = 1 - (1 - threshold**rows) ** (permutations // rows)
        more = 1 - (1 - threshold ** (rows + 1)) ** (permutations // (rows + 1))
        assert found >= 0.98 > more
    assert minhash.band_rows(0.8, 128) == 7
    keys = minhash.band_keys(np.array([[1, 2, 3, 4], [1, 2, 9, 9], [3, 4, 1, 2]], np.uint32), 2)
    assert keys.shape == (3, 2) and keys[0, 0] == keys[1, 0] and keys[0, 1] != keys[1, 1]
    assert keys[0, 0] != keys[2, 1], "the same numbers in another band are another key"


def kept_in(folder: Path, texts: list[str], order: list[int], num_shards: int, config: NearDuplicates) -> pa.Table:
    """The keys of `texts` in some order, in some shards; `paths` has where they lie."""
    tables = []
    for shard in range(num_shards):
        made = minhash.keys(pa.table({"text": [texts[n] for n in order[shard::num_shards]]}), config)
        for name in ("signature", "rank"):
            np.save(folder / f"{shard}.parquet.{name}.npy", made[name])
        ids = shards.row_ids(shard, made["place"])
        tables.append(pa.table({"key": made["key"], "rank": made["rank"][made["place"]], "id": ids}))
    return pa.concat_tables(tables)


def paths_of(folder: Path, num_shards: int) -> dict[int, str]:
    return {shard: str(folder / f"{shard}.parquet") for shard in range(num_shards)}


def test_like_rows_and_one_of_each_cluster_stays(tmp_path: Path) -> None:
    base = " ".join(f"w{n}" for n in range(120))
    texts = [base, base.replace("w60", "x"), "another text", base.replace("w15", "y"), "无关的文字"]
    config = NearDuplicates(kind="near_duplicates")
    group, paths = kept_in(tmp_path, texts, list(range(5)), 1, config), paths_of(tmp_path, 1)
    found = minhash.pairs(group, paths, 0.8)
    rank = minhash.keys(pa.table({"text": texts}), config)["rank"]
    first = min((0, 1, 3), key=lambda row: rank[row])
    pairs = {(row["one"], row["other"]) for row in found.to_pylist()}
    assert pairs <= set(itertools.permutations((0, 1, 3), 2)) and len({row for pair in pairs for row in pair}) == 3
    assert minhash.clusters([0, 1, 4], [1, 2, 5], 6).tolist() == [0, 0, 0, 3, 4, 4]
    dropped = minhash.to_drop(found["one"].to_numpy(), found["other"].to_numpy(), paths)
    assert dropped.tolist() == sorted({0, 1, 3} - {first})
    assert minhash.pairs(group.slice(0, 0), paths, 0.8).num_rows == 0


@pytest.mark.parametrize(("all_pairs", "leaders"), [(1024, 256), (8, 120), (8, 3)])
def test_pages_with_the_same_boilerplate_in_any_order(
    all_pairs: int, leaders: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands full of unlike texts: what is found depends on no order, and every like pair of a band is (with bounds that
    do not bite)."""
    monkeypatch.setattr(minhash, "_ALL_PAIRS", all_pairs)
    monkeypatch.setattr(minhash, "_LEADERS", leaders)
    monkeypatch.setattr(minhash, "_AT_ONCE", 50)
    draw = random.Random(0)
    site = " ".join(f"menu{n}" for n in range(120))
    texts = [f"{site} {' '.join(draw.choices([f'w{n}' for n in range(4000)], k=70))}" for _ in range(120)]
    texts += [texts[n].replace("menu3 ", "") for n in range(10)] + texts[:3]
    config = NearDuplicates(kind="near_duplicates", threshold=0.5)
    signatures = minhash.signatures(texts, config.ngram, config.permutations)
    bands = minhash.band_keys(signatures, minhash.band_rows(0.5, config.permutations))
    wanted = [
        pair
        for pair in itertools.combinations(range(len(texts)), 2)
        if (bands[pair[0]] == bands[pair[1]]).any() and (signatures[pair[0]] == signatures[pair[1]]).mean() >= 0.5
    ]
    left = set()
    for _ in range(3):
        order = draw.sample(range(len(texts)), len(texts))
        group, paths = kept_in(tmp_path, texts, order, 3, config), paths_of(tmp_path, 3)
        found = minhash.pairs(group.take(draw.sample(range(len(group)), len(group))), paths, 0.5)
        dropped = set(minhash.to_drop(found["one"].to_numpy(), found["other"].to_numpy(), paths).tolist())
        ids = [int(id) for shard in range(3) for id in shards.row_ids(shard, np.arange(len(order[shard::3])))]
        rows = [n for shard in range(3) for n in order[shard::3]]
        left.add(tuple(sorted(texts[n] for n, id in zip(rows, ids, strict=True) if id not in dropped)))
    assert len(left) == 1, "no order matters"
    clusters = minhash.clusters([one for one, _ in wanted], [other for _, other in wanted], len(texts))
    assert len(wanted) > 40 and 2 < len(set(clusters.tolist())) < 100
    if leaders > 3:
        assert len(left.pop()) == len(set(clusters.tolist()))
    else:
        assert len(left.pop()) <= len(set(clusters.tolist())) + 12, "some are found in runs of 8 only, or not"


def test_units_are_compared_by_their_letters() -> None:
    assert compared("Read  more!") == compared("read more") == "readmore"
    assert compared("你好，世界。") == compared("你好世界")
    assert without_units("One. Two. Three.", "sentence", {1}) == "One. Three."
    assert without_units("one\ntwo\nthree", "line", {0, 2}) == "two"
    assert without_units("one\n\n    two:\n        three\n", "line", {0}) == "    two:\n        three"


def test_numbers_are_compared_as_they_stand_and_rules_not_at_all() -> None:
    texts = [
        "| --- | ------ | ------ |", "======================", "$$ .......................... a",
        "The price today: -3.5", "The price today: 35", "The price, today: 3.5", "the price today:   35!",
        "1 | 2 | 3 | 4 | 5 | 6 | 7", "12 | 34 | 5 | 6 | 7 |  |", "2020-2021 12:30 1,000.5",
    ]  # fmt: skip
    table = pa.table({"text": texts})
    found = duplicates.unit_keys(table, UnitDuplicates(kind="unit_duplicates", unit="line", min_chars=16))
    assert found["place"].tolist() == list(range(3, 10)), "a line without letters and digits equals no other"
    assert len(set(found["key"].tolist())) == 6 and found["key"][1] == found["key"][3], "the line in other signs"
    assert compared("2020-2021 12:30 1,000.5") == " 2020-2021  12:30  1,000.5 "
