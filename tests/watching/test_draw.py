"""What stands on the screen, narrow and wide."""

import io
import json
import time
from datetime import UTC, datetime

import pytest
from rich.console import Console
from rich.text import Text

from rayrlhf.watching.draw import Sparkline, draw, duration
from rayrlhf.watching.run import WatchedRun
from tests.watching.run_files import add_stage, lines, row

NASTY = "[bold red]bad[/bold red] \x1b[2J\u202e\nnext"


def screen(directory, stage: str | None = None, width: int = 80, now: float | None = None) -> str:
    run, now = WatchedRun(str(directory)), time.time() if now is None else now
    view = run.view(now)
    chosen = view.stage(stage) if stage else view.newest
    console = Console(file=io.StringIO(), width=width, color_system=None)
    samples, roles = (run.samples(chosen.name), run.roles(chosen.name)) if chosen else ((0, []), [])
    console.print(draw(view, chosen, samples, now, roles))
    text = console.file.getvalue()
    assert all(Text(line).cell_len <= width for line in text.splitlines())
    return text


@pytest.fixture
def live(tmp_path):
    """SFT is finished, PPO at step 3 of 10."""
    now, run = time.time(), tmp_path / "try"
    run.mkdir()
    add_stage(run, "sft", 2, seconds=65.0)
    sft = [row("sft", n, now - 300 + n, 2, loss__train=3.0 - n) for n in (1, 2)]
    numbers = {"objective__scores": 0.5, "objective__kl": 1.25, "sync__logprob_gap": 1e-7, "rollout__length": 17.0}
    times = {"time__step_s": 2.0, "time__rollout_generate_s": 0.5, "time__policy_update_s": 1.0}
    rate = {"perf__rollout_tokens_per_s": 1234.5}
    ppo = [row("ppo", n, now - 9 + 3 * n, 10, **numbers, **times, **rate) for n in (0, 1, 2, 3)]
    ppo[0]["eval/gold"] = 0.125
    (run / "metrics.jsonl").write_text(lines(*sft, *ppo))
    (run / "ppo" / "samples").mkdir(parents=True)
    sample = {"prompt": NASTY, "response": "and [/bold]", "score": 1.5, "gold": 0.75}
    (run / "ppo" / "samples" / "step_000000.jsonl").write_text(json.dumps(sample) + "\n")
    return run


def test_what_each_role_does_now_while_the_stage_runs(live):
    folder, now = live / "logs" / "ppo", time.time()
    folder.mkdir(parents=True)

    def stamp(ago: float) -> str:
        return datetime.fromtimestamp(now - ago, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    (folder / "policy-0.log").write_text(f"{stamp(12)} INFO begin update(3)\n")
    (folder / "reward-0.log").write_text(f"{stamp(75)} INFO end scores after 0.1 s\n")
    for rank in range(20):
        (folder / f"rollout-{rank:02}.log").write_text(f"{stamp(3)} ERROR failed generate after 1 s\n")
    words = " ".join(screen(live, "ppo", now=now).split())
    assert "role does now for policy-0 update 12 s reward-0 waits, after scores 1:15" in words
    assert "rollout-13 failed in generate 3.00 s and 6 more" in words and "rollout-14" not in words
    add_stage(live, "ppo", 10)
    assert "does now" not in screen(live)


@pytest.mark.parametrize("width", [80, 160])
def test_a_live_run(live, width):
    text = screen(live, width=width)
    words = " ".join(text.split())
    assert "sft 2/2 1:05 finished" in words and "ppo 3/10" in words and "running, last sign of life" in words
    assert "3.00 s a step 1,234 tokens/s ETA 21 s" in words
    assert "eval gold 0.125" in words and "KL 1.25" in words and "length 17" in words
    generate = next(line for line in text.splitlines() if "generate" in line)
    assert generate.split()[:3] == ["generate", "0.50", "s"] and "25%" in generate and "50%" in generate  # of policy
    assert "rest" in text and "samples at step 0" in text
    assert "! " not in text, "nothing to warn of"


def test_text_of_a_model_is_shown_and_not_obeyed(live):
    text = screen(live)
    assert "[bold red]bad[/bold red] \ufffd[2J\ufffd next and [/bold]" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_what_went_wrong_has_a_line(live):
    bad = {"sync__logprob_gap": 0.02, "loss__policy_avg": None, "optim__rollbacks": 1.0, "optim__skipped_steps": 0.0}
    with (live / "metrics.jsonl").open("a") as file:
        file.write(lines(row("ppo", 4, time.time(), 10, **bad, optim__policy_skipped_steps=3.0)) + "no row\n")
        flags = {"health__fired": 1.0, "health__kl": 1.0, "health__entropy": 0.0}
        file.write(lines(row("ppo", 5, time.time(), 10, sync__logprob_gap=1e-7, **flags)))
    words = " ".join(screen(live, now=time.time() + 700).split())
    assert (
        "! no sign of life for 11:40, where a step takes 3.00 s: cut off, or stuck. Started again it goes on" in words
    )
    assert "it goes on from its start" in words
    assert "! sync/logprob_gap was 0.02 at step 4, above 0.01" in words
    assert "! policy: 3 optimizer steps skipped" in words and "! 1 rollbacks" in words
    assert words.count("optimizer steps skipped") == 1
    assert "! watches that have fired: kl (loop.health" in words
    assert "! not finite: loss/policy_avg" in words
    assert "! 1 lines of the metrics files cannot be read" in words
    assert "ETA" not in words


def test_an_evaluation_shows_both_sides(tmp_path):
    metrics = {"eval/policy/gold": 0.58, "eval/baseline/gold": 0.23, "eval/win_rate_gold": 0.75}
    metrics |= {"eval/win_rate_gold_low": 0.7, "eval/win_rate_gold_high": 0.8}
    (tmp_path / "metrics.jsonl").write_text(lines(row("evaluate", 0, time.time(), 0) | metrics))
    words = " ".join(screen(tmp_path).split())
    assert "held-out prompts baseline policy gold 0.23 0.58 win rate by gold 0.750 0.700 to 0.800" in words


def test_early_stopping_an_unknown_stage_and_an_empty_run(tmp_path):
    assert "nothing here yet: waiting for the first stage" in screen(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(lines(row("mine", 8, time.time(), 20, my__metric=0.25)))
    assert "my/metric" in screen(tmp_path) and "8/20" in screen(tmp_path)
    add_stage(tmp_path, "mine", 6)
    assert "finished, with step 6" in screen(tmp_path)


def test_a_sparkline():
    assert Sparkline([0.0, 7.0, 3.0]).text(10) == "▁█▄"
    assert Sparkline([0.0, 2.0, 6.0, 8.0]).text(2) == "▁█", "means 1 and 7"
    assert Sparkline([5.0, 5.0]).text(10) == "▁▁" and Sparkline([]).text(10) == ""


def test_durations():
    given = (0.184, 9.99, 42.4, 185.0, 3599.6, 3723.0, 183_600.0)
    assert [duration(s) for s in given] == ["0.18 s", "9.99 s", "42 s", "3:05", "1:00:00", "1:02:03", "2 d 03:00"]
