"""A/B names: shares, and users that stay."""

import hashlib
from collections import Counter

from rayrlhf.traffic_split import choose


def test_a_user_goes_where_the_hash_of_the_name_says() -> None:
    place = int(hashlib.sha256(b"mix\0ann").hexdigest()[:16], 16) / 16**16
    assert 0 < place < 1
    for weights in ({"a": place * 0.99, "b": 1 - place * 0.99}, {"a": place * 1.01, "b": 1 - place * 1.01}):
        expected = "a" if place < weights["a"] else "b"
        assert [choose("mix", weights, "ann") for _ in range(3)] == [expected] * 3


def test_shares_are_the_weights_whatever_they_add_up_to() -> None:
    users = [f"user {n}" for n in range(4000)]
    found = Counter(choose("mix", {"a": 1, "b": 3}, user) for user in users)
    assert abs(found["a"] / len(users) - 0.25) < 0.02
    drawn = Counter(choose("mix", {"a": 1, "b": 3}) for _ in range(4000))
    assert abs(drawn["a"] / 4000 - 0.25) < 0.05  # 7 standard deviations


def test_another_split_sorts_the_users_anew_and_new_weights_move_only_some() -> None:
    users = [f"user {n}" for n in range(2000)]
    half = [choose("mix", {"a": 1, "b": 1}, user) for user in users]
    other = [choose("other", {"a": 1, "b": 1}, user) for user in users]
    assert 0.45 < sum(x == y for x, y in zip(half, other, strict=True)) / 2000 < 0.55
    more = [choose("mix", {"a": 6, "b": 4}, user) for user in users]
    moved = {(x, y) for x, y in zip(half, more, strict=True) if x != y}
    assert moved == {("b", "a")} and 0.07 < sum(x != y for x, y in zip(half, more, strict=True)) / 2000 < 0.13
