"""Draw the rates that a signal schedule sets on each task, from several initial rates, beside the tuned cosine.

python benchmarks/reactive_plot.py signal-adamw results/reactive/tuned results/reactive/transfer -o FILE.png

Seed 0 of each; the folders are those of the experiments ``reactive/tuned`` and ``reactive/transfer``.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

#: Method -> the rival that is tuned.
RIVALS = {"signal-sgd": "sgd-momentum/warmup-cosine", "signal-adamw": "adamw/warmup-cosine"}
#: Initial rate over the usual one -> colour.
COLOURS = {0.01: "#9ecae1", 0.1: "#6baed6", 1.0: "#2171b5", 10.0: "#08306b"}


def records(folders: list[Path]) -> list[dict[str, Any]]:
    """All records of some folders."""
    return [json.loads(line) for folder in folders for line in (folder / "records.jsonl").read_text().splitlines()]


def draw(found: list[dict[str, Any]], method: str) -> plt.Figure:
    """One panel a task: the rate over steps, log scale, seed 0."""
    tasks = list(dict.fromkeys(one["task"] for one in found if one["method"] == method))
    columns = 4
    rows = math.ceil(len(tasks) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 2.2 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        mine = [one for one in found if one["task"] == task and one["seed"] == 0]
        for one in sorted(mine, key=lambda one: one["rate_factor"]):
            if one["method"] == method and one["rate_factor"] in COLOURS:
                label = f"from {one['rate_factor']:g} x the usual rate"
                axis.plot(one["train"]["step"], one["train"]["lr"], color=COLOURS[one["rate_factor"]], label=label)
            if one["method"] == RIVALS[method] and one["budget"] == 8 and one["rate_factor"] == 1.0:
                axis.plot(one["train"]["step"], one["train"]["lr"], color="#d94801", ls="--", label="cosine, 8 trials")
        axis.set_yscale("log")
        axis.set_title(task, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    lines = dict(sorted(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True), reverse=True))
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=5, fontsize=9, frameon=False)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("learning rate", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=sorted(RIVALS))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    draw(records(arguments.folders), arguments.method).savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
