"""`rayrlhf serve`: models behind OpenAI's protocol, on real Ray Serve and real vLLM."""

import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import psutil
import pytest

from jobs import serve, serve_config
from rayrlhf.errors import ConfigError, RoleError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


KEY = "the-key-of-the-test-server"


@pytest.fixture(scope="module")
def server(tiny_model, foreign_reward_folder, ray_local):
    """(base URL, model folder) of a running server: `tiny`, the A/B name `mix`, and the reward model `judge`."""
    folder = tiny_model("llama")
    config = serve.ServeConfig(
        models={"tiny": folder, "judge": serve_config.ServedModel(model=foreign_reward_folder, cpus=0.5)},
        ab={"mix": {"tiny": 1}},
        port=free_port(),
        kv_cache_gib=0.05,
        max_model_len=100,
        limits={"max_tokens": 64, "max_answers": 4, "body_mib": 0.01},
        api_key_env="RAYRLHF_TEST_KEY",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYRLHF_TEST_KEY", KEY)
        serve.check(config)
        yield serve.start(config), folder
    serve.stop()


def ask(url: str, *given: Any, **options: Any) -> str:
    return serve.ask(url, *given, api_key=KEY, **options)


def greedy(folder: str, tokens: list[int], max_new_tokens: int) -> str:
    """What plain transformers continues `tokens` with."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    given = torch.tensor([tokens])
    found = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=max_new_tokens, do_sample=False)
    return AutoTokenizer.from_pretrained(folder).decode(found[0, len(tokens) :], skip_special_tokens=True)


def test_an_update_replaces_what_has_changed_alone(tiny_model, foreign_reward_folder, ray_local) -> None:
    """Ray Serve replaces the replicas of a deployment whose version is another."""

    def versions(**more: Any) -> dict[str, str]:
        given = {"models": {"lm": tiny_model("llama"), "judge": foreign_reward_folder}, "without_key": True} | more
        front = serve.application(given)._bound_deployment
        writers, scorers, *_ = front.init_args
        parts = [front, *(one._bound_deployment for one in (writers | scorers).values())]
        return {part.name: part._version for part in parts}

    def changed(**more: Any) -> set[str]:
        after = versions(**more)
        return {name for name, version in before.items() if after[name] != version}

    before = versions()
    assert set(before) == {"Ingress", "StoppingServer:lm", "RewardServer:judge"} and all(before.values())
    assert changed() == changed(replicas=2) == changed(drain_s=5) == set()  # Ray Serve changes these as it runs
    assert changed(ab={"mix": {"lm": 1}}) == changed(limits={"max_answers": 5}) == {"Ingress"}
    assert changed(limits={"max_tokens": 5}) == {"Ingress", "StoppingServer:lm"}, "the engine bounds answers as well"
    assert changed(score_batch=3) == {"RewardServer:judge"}
    assert changed(max_model_len=50) == {"StoppingServer:lm"}
    assert changed(models={"lm": tiny_model("qwen3"), "judge": foreign_reward_folder}) == {"StoppingServer:lm"}


def test_every_key_reaches_the_application(tiny_model) -> None:
    folder = tiny_model("llama")
    config = serve.ServeConfig(
        model=folder, name="n", dtype="bfloat16", max_model_len=64, kv_cache_gib=0.25, replicas=3, cpus=0.5
    )
    (one,) = config.served
    settings = serve.llm_settings(one, folder, config)
    assert settings["model_loading_config"] == {"model_id": "n", "model_source": folder}
    assert settings["engine_kwargs"] == {
        "dtype": "bfloat16",
        "load_format": "safetensors",
        "kv_cache_memory_bytes": 2**28,
        "max_model_len": 64,
        "enforce_eager": True,
    }
    assert settings["deployment_config"] == serve.deployment_settings(one, config)
    assert settings["accelerator_config"] == {"kind": "cpu"}
    on_gpu = config.model_copy(update={"device": "gpu"})
    assert serve.llm_settings(on_gpu.served[0], folder, on_gpu)["accelerator_config"] == {"kind": "gpu"}
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
    assert ask(url, "tiny", "The movie", max_tokens=16).rstrip("\ufffd") == greedy(folder, tokens, 16).rstrip("\ufffd")


def test_chat_goes_through_the_template(server) -> None:
    from transformers import AutoTokenizer

    from rayrlhf.data.templates import encode_prompt

    url, folder = server
    tokens = encode_prompt(AutoTokenizer.from_pretrained(folder), "The movie")
    messages = [{"role": "user", "content": "The movie"}]
    # the server holds a last character back whose bytes are not all there
    expected = greedy(folder, tokens, 16).rstrip("\ufffd")
    assert ask(url, "tiny", messages, max_tokens=16).rstrip("\ufffd") == expected


def test_streaming_and_sampling_and_models(server) -> None:
    url, _ = server
    client = openai.OpenAI(base_url=url, api_key=KEY)
    assert [model.id for model in client.models.list()] == ["tiny", "mix", "judge"]

    whole = ask(url, "tiny", "The movie", max_tokens=16)
    parts = client.completions.create(model="tiny", prompt="The movie", max_tokens=16, temperature=0, stream=True)
    pieces = [part.choices[0].text for part in parts if part.choices]
    assert "".join(pieces) == whole and len(pieces) > 1

    messages = [{"role": "user", "content": "The movie"}]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=16, temperature=0, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in chat if part.choices)
    assert text == ask(url, "tiny", messages, max_tokens=16)

    sampled = [ask(url, "tiny", "The", temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_the_context_is_the_configured_one(server) -> None:
    with pytest.raises(openai.BadRequestError, match="100"):
        ask(server[0], "tiny", "x" * 101, max_tokens=1)


def test_another_port_than_the_running_server_has_is_refused(server, tiny_model) -> None:
    port = urlsplit(server[0]).port
    with pytest.raises(ConfigError, match=f"listens on 127.0.0.1:{port}, not on .*: set host=127.0.0.1 port={port}"):
        serve.run(serve.ServeConfig(model=tiny_model("llama"), port=free_port()))
    with pytest.raises(ConfigError, match="this cluster serves rayrlhf already"):
        serve.run(serve.ServeConfig(model=tiny_model("llama"), port=port))
    assert httpx.get(f"{server[0].removesuffix('/v1')}/health").status_code == 200, "and the one that runs goes on"


def test_the_server_books_the_cpus_of_its_replicas(server) -> None:
    import ray

    assert ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0) <= 1.5


def test_an_ab_name_is_answered_by_its_models_and_says_which(server) -> None:
    url, _ = server
    client = openai.OpenAI(base_url=url, api_key=KEY)
    found = client.completions.create(model="mix", prompt="The movie", max_tokens=8, temperature=0, user="ann")
    assert found.model == "tiny" and found.choices[0].text == ask(url, "tiny", "The movie", max_tokens=8)
    parts = list(client.completions.create(model="mix", prompt="The movie", max_tokens=8, stream=True))
    assert {part.model for part in parts} == {"tiny"}
    messages = [{"role": "user", "content": "The movie"}]
    assert client.chat.completions.create(model="mix", messages=messages, max_tokens=2).model == "tiny"
    assert client.models.retrieve("mix").model_dump()["split"] == {"tiny": 1.0}


def refusal(call: Any, **given: Any) -> Any:
    with pytest.raises(openai.APIStatusError) as caught:
        call(**({"model": "tiny", "prompt": "x", "max_tokens": 1} | given))
    assert set(caught.value.body) == {"message", "type", "param", "code"}  # the client takes "error" off
    return caught.value


def test_requests_that_cannot_be_answered_get_errors_that_clients_read(server) -> None:
    url, _ = server
    create = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0).completions.create
    unknown = refusal(create, model="other")
    assert isinstance(unknown, openai.NotFoundError) and unknown.code == "model_not_found"
    assert "there are tiny, mix, judge" in unknown.message
    assert "reward model" in refusal(create, model="judge").message
    assert "exceeds the 64 tokens" in refusal(create, max_tokens=65).message
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)  # without a bound of its own: the server's
    messages: Any = [{"role": "user", "content": "It was"}]
    free = client.chat.completions.create(model="tiny", messages=messages, extra_body={"ignore_eos": True})
    assert free.usage.completion_tokens == 64 and free.choices[0].finish_reason == "length"
    long: Any = [{"role": "user", "content": "x" * 60}]  # of which the context of 100 leaves less
    assert (
        client.chat.completions.create(model="tiny", messages=long, extra_body={"ignore_eos": True}).usage.total_tokens
        == 100
    )
    assert refusal(create, n=5).status_code == 400
    assert refusal(create, prompt="x" * 200).status_code == 400  # of the engine: beyond the context
    assert refusal(create, temperature=-1).status_code == 400
    assert refusal(create, prompt="x" * 20_000).status_code == 413
    wrong = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).completions.create
    assert isinstance(refusal(wrong), openai.AuthenticationError)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    broken = httpx.post(f"{url}/completions", content="{", headers=headers)
    assert broken.status_code == 400 and broken.json()["error"]["code"] == "invalid_json"


def test_it_listens_on_loopback_alone(server) -> None:
    port = urlsplit(server[0]).port
    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("completions", {"prompt": "x" * 200}),
        ("completions", {"prompt": []}),
        ("completions", {"prompt": [100_000]}),
        ("completions", {"logprobs": 1000}),
        ("completions", {"stream_options": {"include_usage": True}}),
        ("completions", {"stream": True, "prompt": "x" * 200}),
        ("chat/completions", {"logprobs": True, "top_logprobs": 1000}),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 200}]}),
        ("chat/completions", {"response_format": {"type": "json_schema"}}),
        ("chat/completions", {"min_p": 7}),
        ("chat/completions", {"repetition_penalty": -1}),
    ],
)
def test_what_the_engine_refuses_is_no_fault_of_the_server(server, path: str, changes: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "tiny", "max_tokens": 1, "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    del body["messages" if path == "completions" else "prompt"]
    response = httpx.post(f"{server[0]}/{path}", json=body | changes, headers=headers)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"] and error["type"] != "server_error" and "Traceback" not in error["message"]


def test_health_needs_no_key(server) -> None:
    root = server[0].removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"status": "ok"}
    assert httpx.get(f"{root}/v1/models").status_code == 401


def direct_scores(folder: str, texts: list[tuple[Any, str]]) -> list[float]:
    """One row at a time, by plain transformers, of the tokens that the reward model's own stage would train on."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from rayrlhf.data.tokenize import encode_row
    from rayrlhf.models.causal_lm import load_tokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(folder)
    rows = [encode_row({"prompt": p, "ranked": [r, r]}, "ranking", tokenizer) for p, r in texts]
    tokens = [row["ranked_ids"][0] for row in rows]
    with torch.no_grad():
        return [float(model(torch.tensor([ids])).logits[0, 0]) for ids in tokens]


def test_scores_are_the_reward_models_own(server, foreign_reward_folder) -> None:
    url, _ = server
    headers = {"Authorization": f"Bearer {KEY}"}

    def post(status: int = 200, **given: Any) -> Any:
        response = httpx.post(f"{url}/score", json={"model": "judge"} | given, headers=headers)
        assert response.status_code == status, response.text
        return response.json()

    answers = ["good", "the movie was bad and number 5", "and and"]
    found = post(text_1="the movie was", text_2=answers)
    expected = direct_scores(foreign_reward_folder, [("the movie was", answer) for answer in answers])
    assert [entry["score"] for entry in found["data"]] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3 and [entry["index"] for entry in found["data"]] == [0, 1, 2]
    turns = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "and"}]
    asked = [turns, [*turns, {"role": "user", "content": "bad"}, {"role": "assistant", "content": "the movie"}]]
    by_messages = [entry["score"] for entry in post(messages=asked)["data"]]
    assert by_messages == pytest.approx(
        direct_scores(foreign_reward_folder, [(one[:-1], one[-1]["content"]) for one in asked]), abs=1e-5
    )
    assert "more than the 4" in post(400, text_1="a", text_2=["b"] * 5)["error"]["message"]
    assert "reads up to 100" in post(400, text_1="movie " * 200, text_2="b")["error"]["message"]
    assert post(400, model="tiny", text_1="a", text_2="b")["error"]["param"] == "model"
    assert post(404, model="none", text_1="a", text_2="b")["error"]["code"] == "model_not_found"
    assert post(400, text_1="a", texts="b")["error"]["param"] == "texts"


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
