"""Draws a run for the terminal, as wide as it is: what matters most stands first, as a low window cuts the rest."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayrlhf.evaluation.charts import number_text
from rayrlhf.evaluation.report import evaluation_table, win_rates
from rayrlhf.metrics import short
from rayrlhf.role_logs import Doing
from rayrlhf.watching.history import History
from rayrlhf.watching.run import StageView, View
from rayrlhf.watching.tail import Row
from rayrlhf.watching.times import Share, phases, roles

# metric -> its label; a stage shows those that it has, in this order
NUMBERS = {
    "objective/scores": "score",
    "objective/rlhf_reward": "reward - KL",
    "objective/kl": "KL",
    "eval/score": "eval score",
    "eval/gold": "eval gold",
    "eval/kl": "eval KL",
    "rollout/length": "length",
    "objective/entropy": "entropy",
    "eval/distinct_2": "distinct-2",
    "loss/train": "loss",
    "eval/loss": "eval loss",
    "rewards/accuracies": "accuracy",
    "eval/accuracy": "eval acc.",
    "rewards/margins": "margin",
    "loss/policy_avg": "policy loss",
    "loss/value_avg": "value loss",
    "policy/clipfrac_avg": "clipped",
    "critic/explained_variance": "expl. var.",
    "sync/logprob_gap": "gap",
    "pairs/score_train": "score",
    "pairs/margin_train": "margin",
    "pairs/kept_share_train": "kept",
    "optim/grad_norm": "grad norm",
    "optim/lr": "lr",
    "perf/tokens_per_s": "tokens/s",
    "perf/rollout_tokens_per_s": "tokens/s",
}
STYLES = {"running": "bold green", "finished": "cyan", "cut off": "bold yellow"}
MAX_GAP = 0.01  # of log-probs: above it the sampling engine does not hold the policy's weights
MAX_ROLES = 16  # that are shown
CELL = 38  # columns that one number takes at least
_BLOCKS = "▁▂▃▄▅▆▇█"


class Sparkline:
    """A course in one line of block characters, from its least to its largest value."""

    def __init__(self, points: Sequence[float]) -> None:
        self.points = points

    def text(self, width: int) -> str:
        """At most `width` characters; neighbours are averaged."""
        n = min(width, len(self.points))
        bounds = [round(i * len(self.points) / n) for i in range(n + 1)] if n else []
        means = [sum(self.points[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
        low, high = min(means, default=0.0), max(means, default=0.0)
        scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BLOCKS[round((value - low) * scale)] for value in means)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.text(options.max_width), "cyan")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(4, options.max_width)


def draw(
    view: View, stage: StageView | None, samples: tuple[int, list[Row]], now: float, roles_now: Sequence[Doing] = ()
) -> RenderableType:
    """The run, with `stage` in detail; `samples`: its step and rows; `roles_now`: what its actors do."""
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    title = Table.grid(expand=True)
    title.add_row(Text(plain(view.directory), "bold"), Text(clock, "dim", justify="right"))
    if stage is None:
        return Group(title, Text("nothing here yet: waiting for the first stage", "yellow"))
    parts: list[RenderableType] = [title, _stages(view, stage), Text(""), _head(stage)]
    parts += [Text(f"! {warning}", "yellow") for warning in warnings(view, stage)]
    if stage.history is not None:
        parts += [Text(""), _evaluation(stage.history) if _is_evaluation(stage) else _Numbers(stage.history)]
        times = [found for found in (phases(stage.history), roles(stage.history)) if found]
        parts += [Text(""), _times(times)] if times else []
    if roles_now and stage.state != "finished":
        parts += [Text(""), _roles_now(roles_now, now)]
    if samples[1]:
        parts += [Text(""), _samples(*samples)]
    return Group(*parts)


def warnings(view: View, stage: StageView) -> list[str]:
    """What is worth a line of its own."""
    found, history = [], stage.history
    if stage.state == "cut off":
        pace = f", where a step takes {duration(history.step_s)}" if history and history.step_s else ""
        back = "its start" if stage.checkpoint is None else f"step {stage.checkpoint}"
        silent = duration(stage.silent_s)
        found.append(f"no sign of life for {silent}{pace}: cut off, or stuck. Started again it goes on from {back}")
    if history is not None:
        gap, step = history.largest_gap
        if gap > MAX_GAP:
            found.append(
                f"sync/logprob_gap was {short(gap)} at step {step}, above {MAX_GAP}: the rollout engine had other "
                "weights or another precision than the policy"
            )
        for name, what in (("skipped_steps", "optimizer steps skipped"), ("rollbacks", "rollbacks")):
            for metric, count in sorted(history.newest.items()):
                if count and metric.startswith("optim/") and metric.endswith(name):
                    role = metric.removeprefix("optim/").removesuffix(name).strip("_")
                    found.append(f"{role + ': ' if role else ''}{count:.0f} {what}")
        flags = {n.removeprefix("health/"): flag for n, flag in history.newest.items() if n.startswith("health/")}
        fired = ", ".join(sorted(name for name, flag in flags.items() if flag and name != "fired"))
        found += [f"watches that have fired: {plain(fired)} (loop.health; the job's output says why)"] if fired else []
        bad = sorted(name for name, value in history.newest.items() if value is None)
        found += [f"not finite: {plain(', '.join(bad[:4]))}"] if bad else []
    if view.num_unreadable:
        found.append(f"{view.num_unreadable} lines of the metrics files cannot be read")
    return found


def duration(seconds: float) -> str:
    """Seconds for people: 0.18 s, 42 s, 3:05, 1:02:03, 2 d 03:00."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plain(text: str) -> str:
    """Text of a model or a file on one line, without what a terminal would take for a command."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def _stages(view: View, shown_stage: StageView) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("stage")
    for name in ("step", "took"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for stage in view.stages:
        step = "" if not stage.step else f"{stage.step}/{stage.total_steps}" if stage.total_steps else f"{stage.step}"
        state = Text(stage.state, STYLES[stage.state])
        if stage.state == "finished" and stage.checkpoint is not None and stage.step != stage.checkpoint:
            state.append(f", with step {stage.checkpoint}", "dim")  # early stopping
        elif stage.state != "finished":
            state.append(f", last sign of life {duration(stage.silent_s)} ago", "dim")
        label = Text(plain(stage.name), "bold" if stage is shown_stage else "")
        table.add_row(label, step, "" if stage.seconds is None else duration(stage.seconds), state)
    return table


def _head(stage: StageView) -> RenderableType:
    """Step, bar, pace, throughput and time of arrival."""
    history, words = stage.history, list[str]()
    if history is not None and history.step_s is not None:
        words.append(f"{duration(history.step_s)} a step")
    if history is not None and (tokens := _tokens_per_s(history)) is not None:
        words.append(f"{tokens:,.0f} tokens/s")
    if stage.state == "running" and history is not None and history.eta_s is not None:
        words.append(f"ETA {duration(history.eta_s)}")
    name, told = Text(plain(stage.name), "bold"), Text("  ".join(words))
    if history is None or not stage.total_steps:
        step = f"step {history.step}" if history is not None and history.step > 0 else ""
        return Text("  ").join(part for part in (name, Text(step), told) if part)
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for ratio in (None, None, 1, None):
        table.add_column(ratio=ratio, no_wrap=True)
    bar = ProgressBar(stage.total_steps, min(history.step, stage.total_steps))
    table.add_row(name, f"{history.step}/{stage.total_steps}", bar, told)
    return table


class _Numbers:
    """Label, newest value and course of each metric, in as many columns as there is room for."""

    def __init__(self, history: History) -> None:
        self.history = history

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        newest, courses = self.history.newest, self.history.courses
        names = [name for name in NUMBERS if name in newest] or sorted(newest)[:10]
        width = max(1, options.max_width // CELL)
        table = Table.grid(padding=(0, 1), expand=True)
        for _ in range(width):
            table.add_column(no_wrap=True, style="dim")
            table.add_column(no_wrap=True, justify="right", min_width=8)
            table.add_column(no_wrap=True, ratio=1)
        cells: list[RenderableType] = []
        for name in names:
            value, course = newest[name], courses.get(name)
            told = "not finite" if value is None else short(value)
            cells += [Text(NUMBERS.get(name, plain(name))), Text(told, "bold")]
            cells.append(Sparkline(course.points if course else []))
        for start in range(0, len(cells), 3 * width):
            table.add_row(*cells[start : start + 3 * width])
        yield table


def _times(groups: list[list[Share]]) -> Table:
    """Seconds as bars, side by side: of each phase, of each role."""
    tables = []
    for group in groups:
        table = Table.grid(padding=(0, 1), expand=True)
        for justify in ("left", "right"):
            table.add_column(no_wrap=True, justify=justify)  # type: ignore[arg-type]
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        for part in group:
            bar = Bar(1.0, 0.0, min(1.0, part.share), color="magenta")
            table.add_row(Text(plain(part.name), "dim"), duration(part.seconds), bar, f"{part.share:.0%}")
        tables.append(table)
    side_by_side = Table.grid(padding=(0, 2), expand=True)
    for _ in tables:
        side_by_side.add_column(ratio=1)
    side_by_side.add_row(*tables)
    return side_by_side


def _roles_now(roles_now: Sequence[Doing], now: float) -> Table:
    """Who computes what, for how long; who waits, since what."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for name in ("role", "does now", "for"):
        table.add_column(name, justify="right" if name == "for" else "left")
    words = {"begin": ("{}", "bold"), "end": ("waits, after {}", "dim"), "failed": ("failed in {}", "bold red")}
    for one in roles_now[:MAX_ROLES]:
        told, style = words[one.state]
        table.add_row(plain(one.actor), Text(told.format(one.call), style), duration(max(0.0, now - one.since)))
    if len(roles_now) > MAX_ROLES:
        table.add_row(f"and {len(roles_now) - MAX_ROLES} more", "", "")
    return table


def _evaluation(history: History) -> Table:
    """Baseline and policy of `evaluate`, and its win rates."""
    metrics = {name: value for name, value in history.newest.items() if value is not None}
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("held-out prompts")
    for side in ("baseline", "policy"):
        table.add_column(side, justify="right")
    for name, baseline, policy in evaluation_table(metrics):
        table.add_row(plain(name), number_text(baseline), Text(number_text(policy), "bold"))
    for judge, rate, low, high in win_rates(metrics):
        table.add_row(f"win rate by {plain(judge)}", "", Text(f"{rate:.3f}", "bold"), f"{low:.3f} to {high:.3f}")
    return table


def _samples(step: int, rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0), expand=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("gold", justify="right", no_wrap=True)
    table.add_column(f"samples at step {step}", ratio=1)
    for row in rows[:4]:
        text = Text.assemble((plain(row["prompt"]), "dim"), " ", plain(row["response"]))
        text.truncate(300, overflow="ellipsis")
        gold = "" if row.get("gold") is None else f"{row['gold']:.2f}"
        table.add_row(f"{row['score']:.2f}", gold, text)
    return table


def _is_evaluation(stage: StageView) -> bool:
    return stage.history is not None and any(name.startswith("eval/policy/") for name in stage.history.newest)


def _tokens_per_s(history: History) -> float | None:
    rates = (history.mean(name) for name in ("perf/tokens_per_s", "perf/rollout_tokens_per_s"))
    return next((rate for rate in rates if rate is not None), None)
