"""Which charts a stage has: metrics over steps, the reward-KL frontier, gold against the reward that was trained on."""

from __future__ import annotations

import fnmatch

from rayrlhf.evaluation.charts import Chart, Event, Series
from rayrlhf.evaluation.run_files import Row, metric_names

# title of a chart -> the metrics it shows, as patterns; a stage gets the charts it has metrics for
CHARTS = {
    "Loss": ("loss", "loss/*", "*/loss"),
    "Accuracy": ("*accurac*",),
    "Rewards of chosen and rejected": ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    "Reward": ("objective/scores", "objective/rlhf_reward", "objective/non_score_reward", "eval/score"),
    "KL to the reference, nats a sequence": ("objective/kl", "eval/kl"),
    "Gold score (never trained on)": ("eval/gold", "eval/gold_positive_share"),
    "Response length, tokens": ("rollout/length", "eval/length"),
    "Entropy, nats a token": ("objective/entropy",),
    "Policy update": ("policy/approxkl_avg", "policy/clipfrac_avg"),
    "Diversity": ("eval/distinct_2",),
    "Learning rate": ("optim/lr", "optim/*_lr"),
    "Gradient norm, before clipping": ("optim/grad_norm", "optim/*_grad_norm"),
    "Sampler against trainer: gap of log-probs": ("sync/logprob_gap", "sync/logprob_gap_max"),
    "Explained variance of the critic": ("critic/explained_variance",),
}
FRONTIER = ("Reward against KL, one point an evaluation", "eval/kl", "eval/score", "eval/kl, nats a sequence")
PROXY = ("Gold against the reward it was trained on", "eval/score", "eval/gold", "eval/score, trained on")


def charts(rows: list[Row]) -> list[Chart]:
    """One chart for each title of CHARTS that has metrics, after the two of evaluations where there are any."""
    found = [chart for chart in (frontier({"": rows}), proxy({"": rows})) if chart is not None]
    names, happened = metric_names(rows), events(rows)
    for title, patterns in CHARTS.items():
        wanted = matching(names, patterns)
        if wanted:
            found.append(Chart(title, [Series(name, points(rows, name)) for name in wanted], events=happened))
    return found


def other_charts(rows: list[Row]) -> list[Chart]:
    """A chart of its own for each metric that none of CHARTS shows and that was logged more than once."""
    names, happened = metric_names(rows), events(rows)
    shown = set(matching(names, [pattern for patterns in CHARTS.values() for pattern in patterns]))
    return [
        Chart(name, [Series(name, found)], events=happened)
        for name in names
        if name not in shown and len(found := points(rows, name)) > 1
    ]


def frontier(runs: dict[str, list[Row]]) -> Chart | None:
    """eval/score against eval/kl, a line a run; None where there is no evaluation."""
    return _against(FRONTIER, runs)


def proxy(runs: dict[str, list[Row]]) -> Chart | None:
    """eval/gold against eval/score, a line a run; None where there is no gold."""
    return _against(PROXY, runs)


def overlay(runs: dict[str, list[Row]], name: str) -> Chart:
    """One metric of several runs, a colour a run."""
    series = [
        Series(run, found, colour=number)
        for number, (run, rows) in enumerate(runs.items())
        if (found := points(rows, name))
    ]
    return Chart(name, series)


def matching(names: list[str], patterns: tuple[str, ...] | list[str]) -> list[str]:
    """The `names` that fit one of `patterns`."""
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def points(rows: list[Row], name: str) -> list[tuple[float, float]]:
    """(step, value) of a metric, without values that were not finite."""
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def events(rows: list[Row]) -> list[Event]:
    """Steps that were skipped, and rollbacks, from the counts of both that a stage logs, and watches that fired."""
    found, before = [], {"skipped": 0.0, "rollbacks": 0.0}
    watches: set[str] = set()
    for row in rows:
        fired = {name.removeprefix("health/") for name, flag in row.items() if name.startswith("health/") and flag}
        found += [Event(row["step"], "watch fired", name) for name in sorted(fired - watches - {"fired"})]
        watches = fired
        skipped = [v for name, v in row.items() if name.startswith("optim/") and name.endswith("skipped_steps") and v]
        if sum(skipped) > before["skipped"]:
            found.append(Event(row["step"], "skipped", f"{sum(skipped) - before['skipped']:g} optimizer step(s)"))
        before["skipped"] = max(before["skipped"], sum(skipped))
        rollbacks = row.get("optim/rollbacks") or 0.0
        if rollbacks > before["rollbacks"]:
            to = row.get("optim/rolled_back_to")
            found.append(Event(row["step"], "rolled back", "" if to is None else f"to step {to:g}"))
        before["rollbacks"] = max(before["rollbacks"], rollbacks)
    return found


def _against(kind: tuple[str, str, str, str], runs: dict[str, list[Row]]) -> Chart | None:
    title, across, up, x = kind
    series = []
    for number, (run, rows) in enumerate(runs.items()):
        both = [row for row in rows if row.get(across) is not None and row.get(up) is not None]
        if both:
            labels = [f"{row['step']}" for row in both]
            series.append(Series(run or up, [(row[across], row[up]) for row in both], labels, number))
    return Chart(title, series, x, up) if series else None
