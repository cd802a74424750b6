"""Which charts a stage has, and what happened while it trained."""

from rayrlhf.evaluation import curves
from rayrlhf.evaluation.charts import Event

OTHERS = {"stage": "ppo", "time_s": 1.0, "total_steps": 2}
ROWS = [
    {**OTHERS, "step": 0, "eval/score": 0.5, "eval/kl": 0.0, "eval/gold": 0.1},
    {**OTHERS, "step": 1, "objective/kl": 2.0, "odd/one": 7.0, "data/once": 5.0, "optim/policy_lr": 1e-3},
    {**OTHERS, "step": 2, "objective/kl": None, "eval/score": 1.5, "eval/kl": 4.0, "odd/one": 8.0},
]


def drawn(charts) -> dict:
    return {chart.title: {line.name: list(line.points) for line in chart.series} for chart in charts}


def test_a_stage_has_the_charts_it_has_metrics_for() -> None:
    found = drawn(curves.charts(ROWS))
    assert found == {
        "Reward against KL, one point an evaluation": {"eval/score": [(0.0, 0.5), (4.0, 1.5)]},
        "Gold against the reward it was trained on": {"eval/gold": [(0.5, 0.1)]},  # step 2 has no gold
        "Reward": {"eval/score": [(0, 0.5), (2, 1.5)]},
        "KL to the reference, nats a sequence": {"eval/kl": [(0, 0.0), (2, 4.0)], "objective/kl": [(1, 2.0)]},
        "Gold score (never trained on)": {"eval/gold": [(0, 0.1)]},
        "Learning rate": {"optim/policy_lr": [(1, 1e-3)]},
    }
    assert drawn(curves.other_charts(ROWS)) == {"odd/one": {"odd/one": [(1, 7.0), (2, 8.0)]}}, "no steps, no times"
    assert curves.charts([]) == []


def test_the_frontier_is_labelled_by_step() -> None:
    chart = curves.frontier({"one": ROWS, "two": ROWS[:1]})
    assert [(line.name, list(line.labels), line.colour) for line in chart.series] == [
        ("one", ["0", "2"], 0),
        ("two", ["0"], 1),
    ]
    assert (chart.x, chart.y) == ("eval/kl, nats a sequence", "eval/score")
    assert curves.proxy({"one": ROWS[1:2]}) is None


def test_skipped_steps_and_rollbacks_are_events() -> None:
    rows = [
        {"step": 1, "optim/skipped_steps": 0.0, "optim/rollbacks": 0.0},
        {"step": 2, "optim/skipped_steps": 2.0, "optim/rollbacks": 0.0},
        {"step": 3, "optim/skipped_steps": 3.0, "optim/rollbacks": 1.0, "optim/rolled_back_to": 0.0},
        {"step": 4, "optim/skipped_steps": 3.0, "optim/rollbacks": 1.0},
    ]
    assert curves.events(rows) == [
        Event(2, "skipped", "2 optimizer step(s)"),
        Event(3, "skipped", "1 optimizer step(s)"),
        Event(3, "rolled back", "to step 0"),
    ]
    # PPO counts both roles' steps, and takes steps again: the row after the rollback has the new count
    ppo = [
        {"step": 4, "optim/policy_skipped_steps": 0.0, "optim/critic_skipped_steps": 1.0, "optim/rollbacks": 0.0},
        {"step": 5, "optim/policy_skipped_steps": 1.0, "optim/critic_skipped_steps": 1.0, "optim/rollbacks": 1.0},
    ]
    assert curves.events(ppo) == [
        Event(4, "skipped", "1 optimizer step(s)"),
        Event(5, "skipped", "1 optimizer step(s)"),
        Event(5, "rolled back"),
    ]


def test_watches_that_fire_are_events() -> None:
    flags = [(0, 0), (1, 0), (1, 1), (0, 1), (1, 0)]
    rows = [
        {"step": step, "health/fired": float(kl + entropy), "health/kl": float(kl), "health/entropy": float(entropy)}
        for step, (kl, entropy) in enumerate(flags)
    ]
    fired = [Event(1, "watch fired", "kl"), Event(2, "watch fired", "entropy"), Event(4, "watch fired", "kl")]
    assert curves.events(rows) == fired


def test_overlays_keep_a_run_s_colour() -> None:
    chart = curves.overlay({"one": [], "two": ROWS}, "objective/kl")
    assert [(line.name, line.colour, list(line.points)) for line in chart.series] == [("two", 1, [(1, 2.0)])]
