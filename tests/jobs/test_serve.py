"""`rayrlhf serve`: a model behind OpenAI's protocol, on real Ray Serve and real vLLM."""

import socket
from urllib.parse import urlsplit

import openai
import pytest

from jobs import serve
from rayrlhf.errors import ConfigError, RoleError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tiny_model, ray_local):
    """(base URL, model folder) of a running server."""
    folder = tiny_model("llama")
    config = serve.ServeConfig(model=folder, name="tiny", port=free_port(), kv_cache_gib=0.05, max_model_len=100)
    serve.check(config)
    yield serve.start(config), folder
    serve.stop()


def greedy(folder: str, tokens: list[int], max_new_tokens: int) -> str:
    """What plain transformers continues `tokens` with."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    given = torch.tensor([tokens])
    found = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=max_new_tokens, do_sample=False)
    return AutoTokenizer.from_pretrained(folder).decode(found[0, len(tokens) :], skip_special_tokens=True)


def test_every_key_reaches_the_application(tiny_model) -> None:
    folder = tiny_model("llama")
    config = serve.ServeConfig(
        model=folder, name="n", dtype="bfloat16", max_model_len=64, kv_cache_gib=0.25, replicas=3, cpus=0.5
    )
    settings = serve.llm_settings(config)
    assert settings["model_loading_config"] == {"model_id": "n", "model_source": folder}
    assert settings["engine_kwargs"] == {
        "dtype": "bfloat16",
        "kv_cache_memory_bytes": 2**28,
        "max_model_len": 64,
        "enforce_eager": True,
    }
    assert settings["deployment_config"] == {
        "num_replicas": 3,
        "ray_actor_options": {"num_cpus": 0.5},
        "max_constructor_retry_count": 1,
    }
    assert settings["accelerator_config"] == {"kind": "cpu"}
    assert serve.llm_settings(config.model_copy(update={"device": "gpu"}))["accelerator_config"] == {"kind": "gpu"}
    (role,) = serve.plan(config)
    assert (role.ranks, role.cpus, role.gpus) == (3, 0.5, 0.0)


def test_mistakes_are_named_before_anything_starts(tiny_model) -> None:
    folder = tiny_model("llama")
    with pytest.raises(ConfigError, match="max_model_len=129 exceeds the 128 positions"):
        serve.check(serve.ServeConfig(model=folder, port=free_port(), max_model_len=129))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="another server may have it"):
            serve.check(serve.ServeConfig(model=folder, port=taken.getsockname()[1]))


def test_completions_equal_transformers(server) -> None:
    from transformers import AutoTokenizer

    url, folder = server
    tokens = AutoTokenizer.from_pretrained(folder)("The movie")["input_ids"]
    assert serve.ask(url, "tiny", "The movie", max_tokens=16).rstrip("\ufffd") == greedy(folder, tokens, 16).rstrip(
        "\ufffd"
    )


def test_chat_goes_through_the_template(server) -> None:
    from transformers import AutoTokenizer

    from rayrlhf.data.templates import encode_prompt

    url, folder = server
    tokens = encode_prompt(AutoTokenizer.from_pretrained(folder), "The movie")
    messages = [{"role": "user", "content": "The movie"}]
    # the server holds a last character back whose bytes are not all there
    expected = greedy(folder, tokens, 16).rstrip("\ufffd")
    assert serve.ask(url, "tiny", messages, max_tokens=16).rstrip("\ufffd") == expected


def test_streaming_and_sampling_and_models(server) -> None:
    url, _ = server
    client = openai.OpenAI(base_url=url, api_key="none")
    assert [model.id for model in client.models.list()] == ["tiny"]

    whole = serve.ask(url, "tiny", "The movie", max_tokens=16)
    parts = client.completions.create(model="tiny", prompt="The movie", max_tokens=16, temperature=0, stream=True)
    pieces = [part.choices[0].text for part in parts if part.choices]
    assert "".join(pieces) == whole and len(pieces) > 1

    messages = [{"role": "user", "content": "The movie"}]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=16, temperature=0, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in chat if part.choices)
    assert text == serve.ask(url, "tiny", messages, max_tokens=16)

    sampled = [serve.ask(url, "tiny", "The", temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_the_context_is_the_configured_one(server) -> None:
    with pytest.raises(openai.BadRequestError, match="100"):
        serve.ask(server[0], "tiny", "x" * 101, max_tokens=1)


def test_another_port_than_the_running_server_has_is_refused(server, tiny_model) -> None:
    port = urlsplit(server[0]).port
    with pytest.raises(ConfigError, match=f"listens on 127.0.0.1:{port}, not on .*: set host=127.0.0.1 port={port}"):
        serve.start(serve.ServeConfig(model=tiny_model("llama"), port=free_port()))


def test_the_server_books_one_cpu(server) -> None:
    import ray

    assert ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0) <= 1.0


@pytest.mark.slow
def test_a_replica_that_cannot_start_is_reported(tiny_model, ray_local, tmp_path, server) -> None:
    """Stands last, as it takes the module's server down.  One sequence does not fit this KV cache."""
    serve.stop()
    config = serve.ServeConfig(model=tiny_model("llama"), port=urlsplit(server[0]).port, kv_cache_gib=1e-6)
    with pytest.raises(RoleError, match="could not be served"):
        serve.start(config)


@pytest.mark.slow
def test_the_server_stops_where_the_stage_ends_an_answer(tiny_model, tmp_path, server) -> None:
    """A stage saves the end of its template, and its stop strings, in generation_config.json; here they are letters
    of an answer each.

    On the port of the module's server, which it takes down: Ray Serve keeps the port that it was started with."""
    from transformers import AutoTokenizer

    from rayrlhf.models.causal_lm import load_causal_lm, load_tokenizer, save, set_end

    plain = tiny_model("llama")
    tokens = AutoTokenizer.from_pretrained(plain)("The movie")["input_ids"]
    answer = greedy(plain, tokens, 24)
    mark = next(
        letter for letter in answer[4:] if letter.isascii() and letter.isprintable() and letter not in "{}% '\"\\"
    )
    tokenizer, model = load_tokenizer(plain), load_causal_lm(plain)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", mark)
    other = greedy(plain, AutoTokenizer.from_pretrained(plain)("It was")["input_ids"], 24).partition(mark)[0]
    pairs = [other[n : n + 2] for n in range(len(other) - 1)]
    stop = next(pair for pair in pairs[2:] if pair.isascii() and pair.isprintable() and pair not in answer)
    set_end(model, tokenizer, [stop])
    save(model, tokenizer, str(tmp_path))
    serve.stop()
    config = serve.ServeConfig(
        model=str(tmp_path), name="ends", port=urlsplit(server[0]).port, kv_cache_gib=0.05, max_model_len=100
    )
    try:
        url = serve.start(config)
        found = serve.ask(url, "ends", "The movie", max_tokens=24)
        stopped = serve.ask(url, "ends", "It was", max_tokens=24)
    finally:
        serve.stop()
    assert found.rstrip(mark) == answer[: answer.index(mark)]
    assert stopped == other[: other.index(stop)]
