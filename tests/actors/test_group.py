"""Groups of real actors: order, fewer rows than replicas, late starters, dead ranks."""

import asyncio
import os
import signal
import time

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors import calls
from actors import group as group_file
from actors.group import RankGroup, ReferenceGroup, ReplicaGroup, RewardGroup
from actors.ranks import EngineRank
from actors.reference import ReferenceReplica
from actors.reward import RewardReplica
from rayrlhf.errors import ConfigError, DeadlineError, GaveUp, ModelError, StateLost
from rayrlhf.models.causal_lm import load_tokenizer
from rayrlhf.models.causal_lm import save as save_model
from rayrlhf.models.scalar import load_scalar
from rayrlhf.restarts import RecoveryConfig, Restarts
from tests.training.experience import random_rollouts


class Anywhere:
    """A placement for tests: a name, and no resources."""

    def options(self, role, rank):
        return {"name": f"{role}-{rank}", "num_cpus": 0}


class Echo:
    """A replica that answers which of its rows it saw."""

    def start(self, late):
        if late and ray.get_runtime_context().get_actor_name() in late:
            time.sleep(120)

    def rows(self, rollouts):
        return ray.get_runtime_context().get_actor_name(), rollouts.prompt_index.tolist()

    def fail(self, marks, how):
        """Fails in each process until there are as many files in the folder `marks` as it asks for."""
        if how["actor"] == ray.get_runtime_context().get_actor_name() and len(os.listdir(marks)) < how["times"]:
            with open(f"{marks}/{os.getpid()}", "w"):
                pass
            match how["kind"]:
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "exit":
                    os._exit(1)
                case "hang":
                    time.sleep(120)
                case "raise":
                    raise RuntimeError("device-side assert")
                case "refuse":
                    raise ConfigError("the user's")
        return os.getpid()

    def columns(self, rollouts, columns):
        return rollouts.prompt_index.tolist(), columns

    def pid(self):
        return os.getpid()


class Collective(EngineRank):
    """A rank that sums a number over all ranks."""

    def start(self, rank, world_size, address, port, timeout_s, threads):
        self.join(rank, world_size, address, port, timeout_s, threads)
        self.calls = 0

    def count(self, _):
        self.calls += 1
        return self.answer(self.calls)

    def total(self, batch):
        number = torch.tensor(float(self.rank + len(batch)))
        torch.distributed.all_reduce(number)
        return self.answer(number.item())

    def fail_on_the_last(self):
        if self.rank == torch.distributed.get_world_size() - 1:
            raise ValueError("no such row")
        torch.distributed.barrier()

    def die_on_the_last(self):
        if self.rank == torch.distributed.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.barrier()


@pytest.fixture
def groups(ray_local):
    """Makes groups and stops them at the end, however the test ends."""
    made = []

    def make(kind, role, actor_class, count, deadline_s=60.0, **kwargs):
        made.append(kind(role, actor_class, kwargs, Anywhere(), count, deadline_s))
        return made[-1]

    yield make
    for group in made:
        group.stop()


def gone(name):
    try:
        ray.get_actor(name)
    except ValueError:
        return True
    return False


async def test_replicas_get_contiguous_rows_and_may_be_more_than_the_rows(groups):
    group = groups(ReplicaGroup, "echo", Echo, 3, late=())
    await group.start(60)
    assert await group.shared_out("rows", random_rollouts(7)) == [
        ("echo-0", [0, 1, 2]),
        ("echo-1", [3, 4]),
        ("echo-2", [5, 6]),
    ]
    assert await group.shared_out("rows", random_rollouts(2)) == [("echo-0", [0]), ("echo-1", [1])]
    assert await group.shared_out("columns", random_rollouts(4), {"a": [*"wxyz"], "b": [0, None, 2, 3]}) == [
        ([0, 1], {"a": ["w", "x"], "b": [0, None]}),
        ([2], {"a": ["y"], "b": [2]}),
        ([3], {"a": ["z"], "b": [3]}),
    ]
    pid = await group.call(1, "pid")
    group.stop()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (gone("echo-1") and not os.path.exists(f"/proc/{pid}")):
        await asyncio.sleep(0.1)
    assert gone("echo-1") and not os.path.exists(f"/proc/{pid}")


async def test_start_names_every_actor_that_is_late(groups):
    group = groups(ReplicaGroup, "echo", Echo, 3, late=("echo-0", "echo-2"))
    await calls.gather([group.call(i, "pid") for i in range(3)])  # their processes are up
    with pytest.raises(DeadlineError) as caught:
        await group.start(deadline_s=2)
    message = str(caught.value)
    assert "echo-0 did not answer `start` within 2 s" in message
    assert "echo-2" in message and "echo-1" not in message


@pytest.mark.parametrize(
    "kind", ["die", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("hang", "exit", "raise"))]
)
async def test_a_replica_that_fails_is_begun_anew_and_its_call_alone_asked_again(groups, tmp_path, kind):
    said: list[str] = []
    group = groups(ReplicaGroup, "echo", Echo, 2, deadline_s=3.0 if kind == "hang" else 60.0, late=())
    group._restarts = Restarts(RecoveryConfig(max_restarts=2, backoff_s=0.0), said.append)
    await group.start(60)
    pids = [place.pid for place in (group.places["echo-0"], group.places["echo-1"])]
    how = {"actor": "echo-1", "kind": kind, "times": 2}
    answers = await calls.gather([group.ask(i, "fail", str(tmp_path), how) for i in range(2)])
    assert answers[0] == pids[0] and answers[1] not in pids, "the other one goes on"
    assert group.places["echo-1"].pid == answers[1] and len(os.listdir(tmp_path)) == 2
    assert group._restarts.count == 2 and len(said) == 2 and "beginning echo-1 anew" in said[0]
    assert not os.path.exists(f"/proc/{pids[1]}"), "also one that hangs is gone"


async def test_what_fails_each_time_ends_it_and_a_users_error_at_once(groups, tmp_path):
    group = groups(ReplicaGroup, "echo", Echo, 1, late=())
    group._restarts = Restarts(RecoveryConfig(max_restarts=1, backoff_s=0.0), lambda _: None)
    await group.start(60)
    how = {"actor": "echo-0", "kind": "raise", "times": 9}
    with pytest.raises(GaveUp, match=r"(?s)echo-0 failed in `fail`.*device-side assert.*echo-0 failed 2 time\(s\)"):
        await group.ask(0, "fail", str(tmp_path), how)
    group._restarts.succeeded("echo-0")
    before = len(os.listdir(tmp_path))
    with pytest.raises(ConfigError, match="the user's"):
        await group.ask(0, "fail", str(tmp_path), how | {"kind": "refuse"})
    assert len(os.listdir(tmp_path)) == before + 1


@pytest.mark.parametrize(("kind", "raised"), [(RankGroup, StateLost), (ReplicaGroup, GaveUp)])
async def test_a_name_that_ray_does_not_let_go_of_is_a_failure_as_others_are(monkeypatch, kind, raised):
    class Held(kind):
        def _create(self, rank):
            if hasattr(self, "handles"):
                raise ValueError("The name one-0 is already taken")

    monkeypatch.setattr(group_file, "_NAME_S", 0.0)
    monkeypatch.setattr(ray, "kill", lambda handle: None)
    group = Held("one", Echo, {}, Anywhere(), 1, 1.0, Restarts(RecoveryConfig(max_restarts=0)))
    with pytest.raises(raised, match="one-0 cannot be begun anew: .*already taken"):
        await (group.restart() if kind is RankGroup else group.ask(0, "pid"))


async def test_a_call_that_is_given_up_while_its_replica_begins_anew_leaves_a_group_that_works(groups, tmp_path):
    group = groups(ReplicaGroup, "echo", Echo, 1, late=())
    group._restarts = Restarts(RecoveryConfig(backoff_s=0.0), lambda _: None)
    await group.start(60)
    ask = asyncio.ensure_future(group.ask(0, "fail", str(tmp_path), {"actor": "echo-0", "kind": "die", "times": 1}))
    while not group._restarts.count:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # in the middle of the new process's start
    ask.cancel()
    assert await group.ask(0, "pid") == group.places["echo-0"].pid


async def test_ranks_meet_and_fail_together(groups):
    """One process group, one failure after another: the last one ends it."""
    group = groups(RankGroup, "policy", Collective, 2, threads=1)
    await group.start(120)
    assert await group.together("total", ray.put(random_rollouts(5))) == 11  # (0 + 5) + (1 + 5)

    began = time.monotonic()
    with pytest.raises(StateLost, match="policy-1 failed in `fail_on_the_last`(.|\n)*no such row"):
        await group.together("fail_on_the_last")  # policy-0 stays in the barrier
    assert time.monotonic() - began < calls.EXPLANATION_S + 5


async def test_the_rank_that_died_is_named_within_seconds_and_the_group_has_new_processes(groups):
    group = groups(RankGroup, "policy", Collective, 2, threads=1)
    await group.start(120)
    assert [await group.together("count", None) for _ in range(2)] == [1, 2]
    before = dict(group.places)
    began = time.monotonic()
    with pytest.raises(StateLost, match="^policy-1 died in `die_on_the_last`"):
        await group.together("die_on_the_last")
    assert time.monotonic() - began < 20
    await group.restart()  # policy-0 was in the barrier still
    assert await group.together("total", ray.put(random_rollouts(5))) == 11
    assert await group.together("count", None) == 1, "as it began"
    assert {place.pid for place in before.values()}.isdisjoint(place.pid for place in group.places.values())
    assert not any(os.path.exists(f"/proc/{place.pid}") for place in before.values())


async def test_reference_and_reward_replicas_agree_with_one_model(groups, tiny_model, tmp_path):
    folder, scorer = tiny_model("llama"), str(tmp_path)
    save_model(load_scalar(folder), load_tokenizer(folder), scorer)
    rollouts = random_rollouts(5)
    reference = groups(
        ReferenceGroup,
        "reference",
        ReferenceReplica,
        2,
        folder=folder,
        temperature=0.7,
        forward_tokens=40,
        threads=1,
    )
    reward = groups(RewardGroup, "reward", RewardReplica, 2, folder=scorer, forward_tokens=40, threads=1)
    await asyncio.gather(reference.start(120), reward.start(120))
    logprobs, scores = await asyncio.gather(reference.logprobs(rollouts), reward.scores(rollouts))

    assert scores.names == ("reward_model",)
    assert torch.equal(scores.components[:, 0], scores.total)
    language_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    judge = AutoModelForSequenceClassification.from_pretrained(scorer).eval()
    for row, length in enumerate(rollouts.lengths.tolist()):
        tokens, mask = rollouts.tokens[row : row + 1, :length], rollouts.response_mask[row]
        with torch.no_grad():
            table = (language_model(input_ids=tokens).logits[0] / 0.7).log_softmax(-1)
            score = judge(input_ids=tokens).logits.item()
        expected = table[:-1].gather(1, tokens[0, 1:, None])[:, 0]
        assert torch.allclose(logprobs[row, 1:length][mask[1:length]], expected[mask[1:length]], atol=1e-5)
        assert not logprobs[row][~mask].any()
        assert float(scores.total[row]) == pytest.approx(score, abs=1e-5)


async def test_a_user_error_at_start_comes_out_as_itself(groups, tmp_path):
    group = groups(RewardGroup, "reward", RewardReplica, 1, folder=str(tmp_path), forward_tokens=40, threads=1)
    with pytest.raises(ModelError, match="no tokenizer"):
        await group.start(120)
