"""What is masked, and what only looks like a secret."""

import pytest

from rayrlhf.environment import masked
from rayrlhf.redaction import is_secret, redacted, redacted_text


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
        ("""password="x y" password='x' done""", """password="***" password='***' done"""),
        (r"""password="a\"b" c 'token': 'it\'s' d""", r"""password="***" c 'token': '***' d"""),
        ("{'password': 'x', 'n': 1, \"api_key\": \"x, y\"}", "{'password': '***', 'n': 1, \"api_key\": \"***\"}"),
        (r'{"log": "{\"token\": \"x\", \"n\": 1}"}', r'{"log": "{\"token\": \"***\", \"n\": 1}"}'),
        ('password="not closed\nnext', 'password="***\nnext'),
        ("-H Authorization: Bearer x -v", "-H Authorization: Bearer *** -v"),
        ("'Authorization': 'Basic eA=='", "'Authorization': '***'"),
        ("got Bearer abcdefghij0123456789== back", "got Bearer *** back"),
        ("apiKey=x accessToken=y HFToken=t", "apiKey=*** accessToken=*** HFToken=***"),
        ("secretAccessKey: z, a: b", "secretAccessKey: ***, a: b"),
        ("2 problems:\n  max_new_token: unknown key; did you mean a?\n  password: required, but not set", None),
        ("X-Api-Key: x, account_key=y", "X-Api-Key: ***, account_key=***"),
        ("AccountName=me;AccountKey=a+/b==;EndpointSuffix=x", "AccountName=me;AccountKey=***;EndpointSuffix=x"),
        ("password=a;b,c&d user=me", "password=*** user=me"),
        ("a: 1\npassword: words and more\n- hf_token: two words\nb: c", "a: 1\npassword: ***\n- hf_token: ***\nb: c"),
        ("{b: 1, access_token: two words, c: d}", "{b: 1, access_token: ***, c: d}"),
        ("see hf_token: two words", "see hf_token: *** words"),
        ("token: the next one\nthis token: words and more", None),
        ("http://localhost:8265/path?mail=me@x.org http://localhost:8265/a@b http://h?to=me@x.org", None),
        ("http://me:pw@localhost:8265/p?m=me@x.org s3://key:1/2@b", "http://***@localhost:8265/p?m=me@x.org s3://***@b"),
        ("http://me:p/w@host", "http://***@host"),
        ("max_new_token=128 token: 12 hf_token=null password=None signature: False token=1e-3", None),
        ("password=1234 token=12ab", "password=*** token=***"),
        ("objective/kl_per_token=0.5 max_new_tokens=8 eos_token=</s> pad_token_id=0 eosToken: x_y bos-token=b", None),
        ("'eos_token': '<|im_end|>', 'image_token': '<image>', \"pad_token\": \"[PAD]\", next_token=abc", None),
        ("design=x assign: y Signal: z secretary=anna tokenizer: a b credentials: {user: me}", None),
        ("credentials: {user: me, password: x} password={x", "credentials: {user: me, password: ***} password=***"),
    ],
)  # fmt: skip
def test_text(text, shown) -> None:
    assert redacted_text(text) == (text if shown is None else shown)
    assert redacted_text(redacted_text(text)) == redacted_text(text)


@pytest.mark.parametrize("piece", ["a", "://a:", 'password="', 'token:\\"', "a,", "{ ", "eyJaaaaaaaa-", ";a", " \t"])
def test_a_long_text_takes_no_time(piece) -> None:
    """Milliseconds where an expression takes time linear in the text, minutes where it goes with its square."""
    redacted_text(piece * 50_000)


def test_keys() -> None:
    secrets = ["apiKey", "accessToken", "storage.secretAccessKey", "AccountKey", "x-api-key", "HF_TOKEN", "token"]
    others = ["objective/kl_per_token", "max_new_tokens", "eos_token", "pad_token_id", "padToken", "tokenizer"]
    assert [key for key in secrets + others if is_secret(key)] == secrets


@pytest.mark.parametrize("value", [128, "128", 0.5, True, "true", None, "null", "~", "", "1e3"])
def test_no_secret_is_a_number_of_tokens_or_nothing(value) -> None:
    assert redacted({"max_new_token": value}) == {"max_new_token": value}
    assert masked(f"max_new_token={value}") == f"max_new_token={value}"


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
