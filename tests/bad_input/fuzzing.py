"""What is drawn at random, and how often: `FUZZ_TIMES=100 python -m pytest tests/bad_input -k fuzz` draws anew, 100
times as much; without it the same few are drawn in every run."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rayrlhf.errors import UserError

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))

texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "no", "1e-5", "nan", ".inf", "-.inf", "null", "[1", "{a: b}", "a.b", "/", "..", "0x", "\x00", "\ufeff"]
    ),
    st.sampled_from(
        ["own", "auto", "cpu", "hf://", "s3://b/c", "foo://x", "file:///", "a:b", "*", "~", "llama", "sft.jsonl"]
    ),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.sampled_from([2**31, 2**63, -(2**70), 10**30]),
    st.floats(),
    texts,
)
anything: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def examples(number: int) -> settings:
    """So many, or FUZZ_TIMES as many and other ones."""
    return settings(
        max_examples=number * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def refused(call: Any, *given: Any, **named: Any) -> Any:
    """What `call` gives, or the UserError it raised, whose message is not empty; anything else goes on."""
    try:
        return call(*given, **named)
    except UserError as error:
        assert str(error).strip()
        return error


def paths(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in nested dicts and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(path for key, value in inner for path in paths(value, (*at, key)))]


@st.composite
def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """`tree` with one to three of its values replaced, removed, wrapped or joined by others."""
    for _ in range(draw(st.integers(1, 3))):
        places = [path for path in paths(tree) if path]
        if not places:
            return draw(anything)
        tree = _changed(draw, tree, draw(st.sampled_from(places)))
    return tree


def _changed(draw: st.DrawFn, tree: Any, path: tuple[Any, ...]) -> Any:
    key, *rest = path
    copied = dict(tree) if isinstance(tree, dict) else list(tree)
    if rest:
        copied[key] = _changed(draw, copied[key], tuple(rest))
        return copied
    how = draw(st.sampled_from(["replace", "remove", "wrap", "add"]))
    if how == "replace":
        copied[key] = draw(anything)
    elif how == "wrap":
        copied[key] = draw(st.sampled_from([[copied[key]], {"a": copied[key]}, str(copied[key])]))
    elif how == "remove":
        del copied[key]
    elif isinstance(copied, dict):
        copied[draw(texts)] = draw(anything)
    else:
        copied.append(draw(anything))
    return copied


@st.composite
def torn(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with bytes changed, cut out, put in, or cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(found))), draw(st.integers(0, 12))
        new = draw(
            st.one_of(
                st.binary(max_size=4), st.sampled_from([b"", b"\n", b'"', b"{", b"[", b"\xff", b"\\u", b"\t", b","])
            )
        )
        found[place : len(found) if draw(st.integers(0, 9)) == 0 else place + length] = new
    return bytes(found)
