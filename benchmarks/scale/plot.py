"""Draws docs/images/scale.svg: `python benchmarks/scale/plot.py BEFORE.json AFTER.json`, of benchmarks/results.

Needs matplotlib alone, which the project does not install.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "scale.svg"
PARTS = ("metrics", "send", "receive", "estimate", "calls and the rest", "split and join", "check")
COLOURS = ("#4477aa", "#ee6677", "#ccbb44", "#228833", "#66ccee", "#aa3377", "#bbbbbb")


def draw_coordinator(axes: Axes, results: dict[str, Any]) -> None:
    """Bars of the coordinator's seconds by part, before beside after."""
    sizes = [run["gpus"] for run in results["before"]["runs"]]
    for offset, label in ((-0.2, "before"), (0.2, "after")):
        runs = {run["gpus"]: run["coordinator"]["parts_s"] for run in results[label]["runs"]}
        places = [place + offset for place in range(len(sizes))]
        bottom = [0.0] * len(sizes)
        for part, colour in zip(PARTS, COLOURS, strict=True):
            heights = [runs[gpus].get(part, 0.0) for gpus in sizes]
            axes.bar(places, heights, 0.36, bottom, color=colour, label=part if label == "before" else None)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        for place, total in zip(places, bottom, strict=True):
            axes.text(place, total + 0.1, f"{label}\n{total:.1f}", ha="center", va="bottom", fontsize=7)
    step_s = sum(results["after"]["assumed"]["latencies_s"].values())
    axes.axhline(step_s / 100, color="black", linewidth=0.8, linestyle=":", label=f"1 % of a step of {step_s:g} s")
    axes.set_xticks(range(len(sizes)), [f"{gpus:,}" for gpus in sizes])
    tokens = results["after"]["runs"][0]["tokens_a_row"]
    axes.set_xlabel(f"simulated GPUs, 8 rows of {tokens:,} tokens each")
    axes.set_ylabel("CPU seconds a step (measured)")
    axes.set_title("The coordinator's own work", fontsize=10)
    axes.margins(y=0.15)
    axes.legend(fontsize=7, loc="upper left")


def draw_publish(axes: Axes, results: dict[str, Any]) -> None:
    """Lines of the network's seconds of a publish by way, one model."""
    rows = [row for row in results["after"]["publish_model"] if row["model"] == "7B"]
    sizes = [row["gpus"] for row in rows]
    for key, name, colour in (
        ("same_order_s", "before: all from the policy's node", "#ee6677"),
        ("rotated_s", "now: each begins with another bucket", "#ccbb44"),
        ("binary_tree_s", "binary tree", "#66ccee"),
        ("chain_s", "chain", "#228833"),
    ):
        axes.plot(sizes, [row[key] for row in rows], marker="o", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{gpus:,}" for gpus in sizes])
    axes.set_xlabel("simulated GPUs, 3 of 8 sample")
    axes.set_ylabel("seconds of the network (model)")
    axes.set_title(f"7B weights ({rows[0]['gigabytes']} GB) over 100 Gbit/s links", fontsize=10)
    axes.legend(fontsize=7)


def main(before: Path, after: Path) -> None:
    results = {label: json.loads(path.read_text())[label] for label, path in (("before", before), ("after", after))}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    draw_coordinator(left, results)
    draw_publish(right, results)
    figure.tight_layout()
    figure.savefig(IMAGE, metadata={"Date": None})
    print(f"wrote {IMAGE}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
