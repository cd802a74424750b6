"""Two models side by side, and what changes while they serve; the clients are OpenAI's own, without retries."""

import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from jobs import serve
from jobs.serve_config import ServeConfig
from jobs.serve_follow import Follower
from jobs.serve_snapshots import Snapshots
from rayrlhf.checkpoint import StageWriter
from tests.jobs.test_serve import free_port, greedy

pytestmark = pytest.mark.slow
PROMPT = "The movie"


@pytest.fixture(scope="module")
def stages(tiny_model, tmp_path_factory) -> "Stages":
    return Stages(tiny_model("llama"), tmp_path_factory.mktemp("runs"))


class Stages:
    """Stages `sft` and `ppo` of models with random weights."""

    def __init__(self, base: str, root: Path) -> None:
        self.base, self.root, self.steps = base, root, Counter[str]()
        self.write("sft", 1)
        self.write("ppo", 2)

    def path(self, stage: str) -> str:
        return str(self.root / stage)

    def write(self, stage: str, seed: int, keep: int = 99, **wrong: Any) -> str:
        """A checkpoint more; returns its model folder.  `wrong`: what its config.json says wrongly."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self.steps[stage] += 10
        writer = StageWriter(self.path(stage), self.steps[stage])
        shutil.copytree(self.base, writer.model_dir, dirs_exist_ok=True)
        config = AutoConfig.from_pretrained(self.base)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config).save_pretrained(writer.model_dir)
        if wrong:
            for key, value in wrong.items():
                setattr(config, key, value)
            config.save_pretrained(writer.model_dir)
        writer.finish(stage, {}, {}, {}, keep=keep)
        return writer.model_dir


@pytest.fixture(scope="module")
def snapshots():
    with Snapshots(print) as snapshots:
        yield snapshots


@pytest.fixture(scope="module")
def config(stages, snapshots, ray_local) -> ServeConfig:
    import ray.serve

    ray.serve.shutdown()  # a module before this one may have left it on another port
    config = ServeConfig(
        models={"sft": stages.path("sft"), "ppo": stages.path("ppo")},
        ab={"mix": {"sft": 1, "ppo": 1}},
        port=free_port(),
        kv_cache_gib=0.05,
        max_model_len=100,
        follow_s=1,
    )
    serve.check(config)
    serve.start(Follower(config, serve.update, print, snapshots).pinned)
    yield config
    serve.stop()
    ray.serve.shutdown()


def url_of(config: ServeConfig) -> str:
    return f"http://127.0.0.1:{config.port}/v1"


def expected(folder: str, num_tokens: int) -> str:
    from transformers import AutoTokenizer

    return greedy(folder, AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"], num_tokens).rstrip("\ufffd")


def folder_of(stages: Stages, stage: str) -> str:
    return f"{stages.path(stage)}/step_{stages.steps[stage]:06d}/model"


def replicas(model: str) -> set[str]:
    """Names of the actors that answer for a model."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    deployments = client.get_serve_details()["applications"][serve.APP_NAME]["deployments"]
    return {replica["actor_name"] for replica in deployments[f"StoppingServer:{model}"]["replicas"]}


def test_two_models_answer_by_name_and_share_an_ab_name(config, stages) -> None:
    client = openai.OpenAI(base_url=url_of(config), api_key="none", max_retries=0)

    def answer(model: str, **more: Any) -> Any:
        return client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0, **more)

    texts = {name: answer(name).choices[0].text.rstrip("\ufffd") for name in ("sft", "ppo")}
    assert texts == {name: expected(folder_of(stages, name), 12) for name in ("sft", "ppo")}
    assert texts["sft"] != texts["ppo"]
    by_user = [answer("mix", user=f"user {n}") for n in range(24)]
    assert {found.model for found in by_user} == {"sft", "ppo"}
    assert all(found.choices[0].text.rstrip("\ufffd") == texts[found.model] for found in by_user)
    assert [answer("mix", user=f"user {n}").model for n in range(24)] == [found.model for found in by_user]
    assert [model.id for model in client.models.list()] == ["sft", "ppo", "mix"]


class Load:
    """Requests one after the other in some threads, every second thread's streams, until told to stop; and a probe."""

    def __init__(self, url: str, threads: int = 4) -> None:
        self.url, self.failures = url, list[Any]()
        self.answers: list[tuple[float, float, str]] = []  # when it was asked, after how many seconds, the text
        self._is_done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]
        self._threads.append(threading.Thread(target=self._probe))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_done.set()
        for thread in self._threads:
            thread.join(60)

    def _probe(self) -> None:
        """The server is healthy all the time: no model is without a replica."""
        while not self._is_done.wait(0.5):
            found = httpx.get(self.url.replace("/v1", "/health"), timeout=60)
            if found.status_code != 200:
                self.failures.append(found.text)

    def _run(self, number: int) -> None:
        client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=60)
        given = {"model": "ppo", "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
        while not self._is_done.is_set():
            started = time.monotonic()
            try:
                if number % 2:
                    parts = list(client.completions.create(**given, stream=True))
                    text = "".join(part.choices[0].text for part in parts if part.choices)
                    assert parts[-1].choices[0].finish_reason == "length"
                else:
                    text = client.completions.create(**given).choices[0].text
                self.answers.append((started, time.monotonic() - started, text.rstrip("\ufffd")))
            except Exception as error:  # whatever a client would see
                self.failures.append(error)


def test_an_update_under_load_fails_no_request(config, stages, snapshots) -> None:
    """A newer checkpoint of one stage: all requests are answered, by the old model or the new one and nothing in
    between, in the end by the new; the other model's replica stays."""
    import ray

    old, others = expected(folder_of(stages, "ppo"), 40), replicas("sft")
    said: list[str] = []
    follower, before = Follower(config, serve.update, said.append, snapshots), replicas("ppo")
    new = expected(stages.write("ppo", 3), 40)
    with Load(url_of(config)) as load:
        time.sleep(3)
        follower.look()
        assert said[-1] == "rolled out: ppo"
        time.sleep(3)
    print(f"{len(load.answers)} answers, the slowest after {max(seconds for _, seconds, _ in load.answers):.2f} s")
    assert load.failures == []
    texts = [text for _, _, text in sorted(load.answers)]
    assert set(texts) == {old, new} and old != new
    assert texts[0] == old and texts[-1] == new and texts.count(old) > 20 and texts.count(new) > 5
    assert replicas("sft") == others and not replicas("ppo") & before
    served = folder_of(stages, "ppo")
    stages.write("ppo", 7, keep=1)
    assert not Path(served).exists()
    (alone,) = replicas("ppo")
    ray.kill(ray.get_actor(alone, namespace="serve"))
    deadline = time.monotonic() + 120
    while not replicas("ppo") - {alone} or httpx.get(url_of(config).replace("/v1", "/health")).status_code != 200:
        assert time.monotonic() < deadline, "no replica started anew"
        time.sleep(0.5)
    assert serve.ask(url_of(config), "ppo", PROMPT, max_tokens=40).rstrip("\ufffd") == new
    follower.look()  # the checkpoint that pushed it out
    assert said[-1] == "rolled out: ppo"


def test_a_checkpoint_that_cannot_be_served_leaves_the_former_one(config, stages, snapshots) -> None:
    served = expected(folder_of(stages, "ppo"), 8)
    said: list[str] = []
    follower, before = Follower(config, serve.update, said.append, snapshots), replicas("ppo")
    for wrong in ({"max_position_embeddings": 50}, {"num_hidden_layers": 7}):  # seen up front; by the engine
        stages.write("ppo", 4, **wrong)
        follower.look()
        assert said[-1].startswith("ppo is not rolled out")
        assert serve.ask(url_of(config), "ppo", PROMPT, max_tokens=8).rstrip("\ufffd") == served
        number = len(said)
        follower.look()
        assert len(said) == number, "not tried again"
    assert replicas("ppo") == before and httpx.get(url_of(config).replace("/v1", "/health")).status_code == 200
    stages.write("sft", 6)
    follower.look()  # what failed before is not in the way of another model's
    assert said[-1] == "rolled out: sft"
    stages.write("ppo", 5)
    follower.look()
    assert said[-1] == "rolled out: ppo"
    assert serve.ask(url_of(config), "ppo", PROMPT, max_tokens=8).rstrip("\ufffd") == expected(
        folder_of(stages, "ppo"), 8
    )


def test_too_many_requests_are_told_so(config, snapshots) -> None:
    """One at a time and two that wait: of six at once some are answered and the others get a 429."""
    before = replicas("sft")
    limits = config.limits.model_copy(update={"max_ongoing": 1, "max_queued": 2})
    serve.update(Follower(config, serve.update, print, snapshots).pinned.model_copy(update={"limits": limits}))
    assert replicas("sft") == before  # no engine starts anew for that
    found: list[Any] = []

    def ask() -> None:
        client = openai.OpenAI(base_url=url_of(config), api_key="none", max_retries=0)
        try:
            found.append(
                client.completions.create(model="sft", prompt="x", max_tokens=90, extra_body={"min_tokens": 90})
            )
        except openai.RateLimitError as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    errors = [one for one in found if isinstance(one, openai.RateLimitError)]
    assert len(found) == 6 and 1 <= len(errors) <= 5
    assert errors[0].code == "rate_limit_exceeded" and errors[0].response.headers["Retry-After"] == "1"


def test_a_file_names_the_application(config, foreign_reward_folder, monkeypatch) -> None:
    """As `serve deploy` and KubeRay's RayService hand it to Ray Serve's controller; then an update by another file,
    and more replicas under load.  Stands last: it takes the place of what the module serves."""
    from ray import serve as ray_serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    serve.stop()
    url, headers = url_of(config), {"Authorization": "Bearer key-of-the-file"}
    scaling = {"max_replicas": 2, "target_ongoing": 1, "upscale_delay_s": 0}

    def deploy(**args: Any) -> None:
        application = {
            "name": "of-a-file",
            "import_path": "jobs.serve:application",
            "route_prefix": "/",
            "args": {"models": {"judge": foreign_reward_folder}, "api_key_env": "FILE_KEY", "cpus": 0.5} | args,
            "runtime_env": {"env_vars": {"FILE_KEY": "key-of-the-file"}},
        }
        client: Any = _get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
        deadline = time.monotonic() + 90
        while ray_serve.status().applications["of-a-file"].status != "RUNNING":
            assert time.monotonic() < deadline, ray_serve.status()
            time.sleep(0.5)

    def score(texts: int = 1) -> Any:
        body = {"model": "judge", "text_1": "good", "text_2": ["bad " * 40] * texts}
        return httpx.post(f"{url}/score", json=body, headers=headers, timeout=60)

    deploy()
    assert httpx.get(f"{url}/models").status_code == 401
    assert httpx.get(url.replace("/v1", "/health")).json() == {"status": "ok"}
    assert len(score(2).json()["data"]) == 2
    deploy(limits={"max_answers": 1}, autoscaling=scaling)
    assert score(2).status_code == 400 and score().status_code == 200

    is_done = threading.Event()

    def press() -> None:
        while not is_done.is_set():
            assert score().status_code == 200

    threads = [threading.Thread(target=press) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        deadline, running = time.monotonic() + 90, 0
        while running < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
            deployments = ray_serve.status().applications["of-a-file"].deployments
            running = deployments["RewardServer:judge"].replica_states.get("RUNNING", 0)
    finally:
        is_done.set()
        for thread in threads:
            thread.join(60)
    assert running == 2
    ray_serve.delete("of-a-file")
