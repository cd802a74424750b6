"""What is masked, and what only looks like a secret."""

import pytest

from rayrlhf.redaction import redacted, redacted_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/runs", "s3://***@bucket/runs"),
        ("s3://key:se/cr+et@bucket/runs", "s3://***@bucket/runs"),
        ("see https://user@host/x and gs://bucket/y", "see https://***@host/x and gs://bucket/y"),
        ("https://host/x?X-Amz-Signature=abc&part=1&sig=q", "https://host/x?X-Amz-Signature=***&part=1&sig=***"),
        ("run.name=a hf_token=abc {api_key: xy, b: 1}", "run.name=a hf_token=*** {api_key: ***, b: 1}"),
        ("key hf_abcdefghijklmnop1234 in a text", "key *** in a text"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("token: abc, token:abc1 hf_token: q1w2 e", "token: ***, token:*** hf_token: *** e"),
        ("cannot start any token: indent with spaces; submit --env TOKEN: write NAME=VALUE", None),
        ("ghp_0123456789abcdefghijABCDEF", "***"),
        ("data.max_tokens=96 tokenizer=runs/a pad_token=<pad> level=token", None),
        ("hf://imdb:train memory://a/b C:/x the token is here sk-short", None),
    ],
)  # fmt: skip
def test_text(text, shown) -> None:
    assert redacted_text(text) == (text if shown is None else shown)


def test_trees() -> None:
    tree = {
        "run": {"name": "a", "seed": 0},
        "storage": {"secret_key": "abc", "password": 1234, "access_token": None, "token": ""},
        "credentials": {"user": "me"},
        "train": {"microbatch_tokens": 512, "signature": False},
        "metrics": {"objective/kl_per_token": 0.5, "objective/seconds_a_token": 0.25},
        "sources": [{"path": "s3://k:s@b/x"}, "plain"],
    }
    assert redacted(tree) == {
        "run": {"name": "a", "seed": 0},
        "storage": {"secret_key": "***", "password": "***", "access_token": None, "token": ""},
        "credentials": "***",
        "train": {"microbatch_tokens": 512, "signature": False},
        "metrics": {"objective/kl_per_token": 0.5, "objective/seconds_a_token": 0.25},
        "sources": [{"path": "s3://***@b/x"}, "plain"],
    }
