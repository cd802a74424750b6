"""Near duplicates over the whole data set: MinHash signatures, bands, pairs, clusters (Broder 1997; Leskovec et al.
2020, chapter 3).

A text's set is that of its n-grams (words, or Chinese characters).  Texts that agree in all rows of one band become a
candidate pair, and a pair counts when the share of equal signature entries, which estimates the Jaccard similarity,
reaches the threshold.  One text of each cluster of pairs stays: the one with the smallest hash.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def pairs(group: pa.Table) -> pa.Table:
    """Candidates {one, other} among rows {key, id}: of a key's rows each with the first and with the one before."""
    import pyarrow as pa

    ordered = group.sort_by([("key", "ascending"), ("id", "ascending")])
    key, ids = ordered["key"].to_numpy(), ordered["id"].to_numpy()
    starts = np.concatenate([[True], key[1:] != key[:-1]]) if len(key) else np.empty(0, bool)
    first = ids[np.maximum.accumulate(np.where(starts, np.arange(len(ids)), 0))] if len(ids) else ids
    later = np.flatnonzero(~starts)
    found = np.concatenate([np.stack([first[later], ids[later]], 1), np.stack([ids[later - 1], ids[later]], 1)])
    found = np.unique(found[found[:, 0] != found[:, 1]], axis=0)
    return pa.table({"one": found[:, 0], "other": found[:, 1]})


def similar(batch: pa.Table, paths: dict[int, str], threshold: float) -> pa.Table:
    """The pairs {one, other} whose signatures agree in a share of at least `threshold`."""
    import pyarrow.compute as pc

    one, other = batch["one"].to_numpy(), batch["other"].to_numpy()
    ids, which = np.unique(np.concatenate([one, other]), return_inverse=True)
    found = look_up(ids, paths, "signature")
    mine, theirs = found[which[: len(one)]], found[which[len(one) :]]
    return batch.filter(pc.greater_equal((mine == theirs).mean(1), threshold))


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
