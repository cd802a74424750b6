"""Near duplicates over the whole data set: MinHash signatures, bands, pairs, clusters (Broder 1997; Leskovec et al.
2020, chapter 3).

A text's set is that of its n-grams (words, or Chinese characters).  Texts that agree in all rows of one band are
compared, and a pair counts when the share of equal signature entries, which estimates the Jaccard similarity, reaches
the threshold.  One text of each cluster of pairs stays: the one with the smallest hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rayrlhf.data.cleaning import shards
from rayrlhf.data.cleaning.config import NearDuplicates
from rayrlhf.data.cleaning.hashing import mixed, ngram_hashes, text_hash, token_hashes
from rayrlhf.data.cleaning.words import tokens

if TYPE_CHECKING:
    import pyarrow as pa

_SEED = 1
_RECALL = 0.98  # of pairs just at the threshold that some band finds
_ALL_PAIRS = 1024  # rows of a band that are all compared with each other
_LEADERS = 256  # rows of a larger band with which all are compared
_AT_ONCE = 65536  # signatures held at a time

Signatures = Any  # a numpy array, uint32 [rows, permutations]


def ngram_set(text: str, n: int) -> Any:
    """The hashes of the n-grams of `text`, each once; of a text with fewer tokens one hash of them all."""
    hashes = token_hashes(tokens(text))
    return np.unique(ngram_hashes(hashes, min(n, len(hashes)))) if len(hashes) else np.empty(0, np.uint64)


def signatures(texts: Sequence[str], n: int, permutations: int) -> Signatures:
    """The MinHash signature of each text; one without any token has that of its characters' hash."""
    from rensa import RMinHash

    sets = [ngram_set(text, n) for text in texts]
    sets = [
        found if len(found) else np.array([text_hash(text)], np.uint64) for found, text in zip(sets, texts, strict=True)
    ]
    ends = np.cumsum([0, *map(len, sets)]).astype(np.uint64)
    flat = np.concatenate(sets) if sets else np.empty(0, np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, permutations, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(texts), permutations)


@lru_cache(maxsize=16)
def band_rows(threshold: float, permutations: int) -> int:
    """The most rows a band may have so that a pair at `threshold` is found with `_RECALL`: 1 - (1 - t^r)^b."""
    for rows in range(permutations, 1, -1):
        if 1 - (1 - threshold**rows) ** (permutations // rows) >= _RECALL:
            return rows
    return 1


def band_keys(found: Signatures, rows: int) -> Any:
    """One hash for each text and band, uint64 [texts, bands]."""
    bands = found.shape[1] // rows
    values = found[:, : bands * rows].astype(np.uint64).reshape(len(found), bands, rows)
    keys = np.broadcast_to(mixed(np.arange(bands, dtype=np.uint64)), (len(found), bands)).copy()
    for row in range(rows):
        keys = mixed(keys ^ values[:, :, row])
    return keys


def keys(table: pa.Table, config: NearDuplicates) -> dict[str, Any]:
    """`key`: the hash of each band of each row; `place`; and the rows' `signature` and `rank`, to be looked up."""
    texts = table["text"].to_pylist()
    found = signatures(texts, config.ngram, config.permutations)
    bands = band_keys(found, band_rows(config.threshold, config.permutations))
    return {
        "key": bands.ravel(),
        "place": np.repeat(np.arange(len(texts), dtype=np.int32), bands.shape[1]),
        "signature": found,
        "rank": np.array([text_hash(text) for text in texts], np.uint64),
    }


def pairs(group: pa.Table, paths: dict[int, str], threshold: float) -> pa.Table:
    """Like rows {one, other} among rows {key, rank, id}: those of each key whose signatures agree in a share of at
    least `threshold`, or as few of them as connect the same rows.

    Of up to _ALL_PAIRS rows of a key every two are compared.  Of more, all are compared with up to _LEADERS leaders,
    the first by rank that are like no leader before, and those like none of them with each other in runs of
    _ALL_PAIRS.  The order is that of the texts' hashes, so what is found does not depend on where rows stand.
    """
    import pyarrow as pa

    ordered = group.sort_by([(name, "ascending") for name in ("key", "rank", "id")])
    key, ids = ordered["key"].to_numpy(), ordered["id"].to_numpy()
    edges = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1], [True]])) if len(key) else np.zeros(1, np.int64)
    runs = [ids[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True) if end - start > 1]
    found = [np.empty((0, 2), np.int64)]
    for run in runs:
        if len(run) > _ALL_PAIRS:
            found += _of_large_run(run, paths, threshold)
    for some in _batches([run for run in runs if len(run) <= _ALL_PAIRS]):
        every = _signatures_of(np.concatenate(some), paths)
        ends = np.cumsum([len(run) for run in some])
        found += [_connected(run, every[end - len(run) : end], threshold) for run, end in zip(some, ends, strict=True)]
    both = np.unique(np.concatenate(found), axis=0)
    return pa.table({"one": both[:, 0], "other": both[:, 1]})


def _batches(runs: Sequence[shards.Ids]) -> Iterator[list[shards.Ids]]:
    """`runs`, some at a time: their signatures are held together."""
    some, size = list[shards.Ids](), 0
    for run in runs:
        if some and size + len(run) > _AT_ONCE:
            yield some
            some, size = [], 0
        some.append(run)
        size += len(run)
    if some:
        yield some


def _connected(ids: shards.Ids, found: Signatures, threshold: float) -> Any:
    """Pairs [n, 2] that connect those of `ids` which like ones connect: each row with the first of its cluster."""
    if len(ids) == 2:
        return ids[None] if (found[0] == found[1]).mean() >= threshold else np.empty((0, 2), np.int64)
    cluster = np.arange(len(ids))
    for row in range(len(ids) - 1):
        like = cluster[row:][(found[row:] == found[row]).mean(1) >= threshold]  # its own too
        cluster[np.isin(cluster, like)] = like.min()
        if not cluster.any():  # all in one
            break
    rest = np.flatnonzero(cluster != np.arange(len(ids)))
    return np.stack([ids[cluster[rest]], ids[rest]], 1)


def _of_large_run(ids: shards.Ids, paths: dict[int, str], threshold: float) -> list[Any]:
    """Pairs of many rows of one key, of which _AT_ONCE signatures are held."""
    leaders, found = list[tuple[int, Any]](), list[Any]()
    for start in range(0, len(ids), _AT_ONCE):
        mine = ids[start : start + _AT_ONCE]
        every, is_free = _signatures_of(mine, paths), np.ones(len(mine), bool)
        for place in range(_LEADERS):
            if place == len(leaders):
                if not is_free.any():
                    break
                leaders.append((int(mine[is_free.argmax()]), every[is_free.argmax()]))
            leader, signature = leaders[place]
            like = (every == signature).mean(1) >= threshold
            is_free &= ~like
            like &= mine != leader
            found.append(np.stack([np.full(like.sum(), leader), mine[like]], 1))
        mine, every = mine[is_free], every[is_free]
        for begin in range(0, len(mine), _ALL_PAIRS):
            part = slice(begin, begin + _ALL_PAIRS)
            found.append(_connected(mine[part], every[part], threshold))
    return found


def _signatures_of(ids: shards.Ids, paths: dict[int, str]) -> Signatures:
    different, which = np.unique(ids, return_inverse=True)
    return look_up(different, paths, "signature")[which]


def look_up(ids: shards.Ids, paths: dict[int, str], name: str) -> Any:
    """The keys `name` of rows with sorted numbers, shard by shard, read from their files."""
    parts = []
    for shard in np.unique(ids >> shards.PLACE_BITS).tolist():
        wanted = shards.places(ids[shards.of_shard(ids, shard)])
        parts.append(np.load(shards.keys_path(paths[shard], name), mmap_mode="r")[wanted])
    return np.concatenate(parts) if parts else np.empty(0)


def to_drop(one: shards.Ids, other: shards.Ids, paths: dict[int, str]) -> shards.Ids:
    """Of the clusters that the pairs make, all rows but that of the smallest hash; sorted."""
    ids, which = np.unique(np.concatenate([one, other]), return_inverse=True)
    if not len(ids):
        return ids
    root = clusters(which[: len(one)].tolist(), which[len(one) :].tolist(), len(ids))
    rank = look_up(ids, paths, "rank")
    order = np.lexsort((ids, rank, root))
    is_first = np.concatenate([[True], root[order][1:] != root[order][:-1]])
    return np.sort(ids[order[~is_first]])


def clusters(one: list[int], other: list[int], count: int) -> Any:
    """The number of each element's cluster: union-find with path halving (Tarjan & van Leeuwen 1984)."""
    parent = list(range(count))

    def find(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for a, b in zip(one, other, strict=True):
        first, second = find(a), find(b)
        if first != second:
            parent[max(first, second)] = min(first, second)
    return np.array([find(x) for x in range(count)], np.int64)
