"""The tables and the picture of `docs/transfer.md`, from records of untuned/held-out, -/tuned, -/one-configuration.

    python benchmarks/untuned_table.py results/untuned/held-out results/untuned/tuned ... [--picture FILE.png]

Each method's test loss on a task is the mean over seeds, over that of the cosine with warm-up over the same optimizer,
tuned with 8 trials. A run that diverged counts as infinite.
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metastep.lab.bench.experiments import EXPERIMENTS
from metastep.lab.records import read_records
from metastep.lab.report.results import OneConfiguration, Run, one_configuration

BASELINE = {"adamw": "adamw/warmup-cosine", "sgd-momentum": "sgd-momentum/warmup-cosine"}
#: By the base whose cosine they are compared with.
ROWS = {
    "adamw": {
        "adamw/calibrated": "**calibrated**, no tuning",
        "adamw/warmup-linear@8": "linear decay with warm-up, 8 trials",
        "one": "one configuration for all tasks, the best on the others",
        "adamw/warmup-cosine@1": "the cosine at its field default, 0.001",
        "schedule-free-adamw@1": "Schedule-Free AdamW, defaults",
        "prodigy@1": "Prodigy, defaults",
        "hyper-adamw/global+layer@1": "`HyperAdamW`, defaults",
        "hyper-adamw/global+layer/hdm@1": '`HyperAdamW`, rule "hdm"',
        "hyper-adamw/global+layer/warmup-linear@1": "`HyperAdamW` under linear decay",
    },
    "sgd-momentum": {
        "sgd-momentum/calibrated": "**calibrated**, no tuning",
        "sgd-momentum/warmup-linear@8": "linear decay with warm-up, 8 trials",
        "sgd-momentum/warmup-cosine@1": "the cosine at its field default, 0.1",
        "hyper-sgd-momentum/global+layer/warmup-linear@1": "`HyperSGD` under linear decay",
        "hyper-sgd-momentum/global+layer@1": "`HyperSGD`, defaults",
        "hyper-sgd-momentum/global+layer+unit@1": "`HyperSGD`, with rates of units",
        "hyper-sgd-momentum/global+layer/hdm@1": '`HyperSGD`, rule "hdm"',
    },
}

#: What the picture shows of them: more would hide each other.
PICTURED = (
    *("adamw/calibrated", "sgd-momentum/calibrated", "schedule-free-adamw@1", "prodigy@1"),
    *("hyper-adamw/global+layer@1", "hyper-sgd-momentum/global+layer/warmup-linear@1"),
)


def records(folders: list[Path]) -> Iterator[dict[str, Any]]:
    """The records of whole experiments."""
    for folder in folders:
        for line in (folder / "records.jsonl").read_text().splitlines():
            yield json.loads(line)


def losses(folders: list[Path]) -> dict[str, dict[str, dict[int, float]]]:
    """Test losses by method (with its budget), task and seed."""
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records(folders):
        if record.get("rate_factor", 1.0) != 1.0:
            continue
        loss = (record.get("final") or {}).get("loss")
        value = math.inf if loss is None or not math.isfinite(loss) else loss
        name = record["method"]
        for key in (name, f"{name}@{record.get('budget', 1)}"):
            found[key][record["task"]][record["seed"]] = value
    for choice in one_for_all(folders):
        found["one"][choice.task] = {run.record.seed: run.cost for run in choice.runs}
    return found


def one_for_all(folders: list[Path]) -> list[OneConfiguration]:
    """What the candidates of untuned/one-configuration give; nothing where they were not run."""
    candidates = EXPERIMENTS["untuned/one-configuration"].methods
    files = [folder / "records.jsonl" for folder in folders if folder.name == "one-configuration"]
    runs = [Run(record=record, source=where) for file in files for where, record in read_records(file)]
    return one_configuration(run for run in runs if run.method in candidates) if runs else []


def ratios(mine: dict[str, dict[int, float]], baseline: dict[str, dict[int, float]]) -> dict[str, float]:
    """The mean over common seeds over that of the baseline, by task."""
    result = {}
    for task, seeds in mine.items():
        common = sorted(seeds.keys() & baseline.get(task, {}).keys())
        if common:
            result[task] = sum(seeds[s] for s in common) / sum(baseline[task][s] for s in common)
    return result


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a method compares with the tuned cosine.

    Args:
        ratios: its test loss over the cosine's, by task; infinite where a run diverged.
    """

    ratios: dict[str, float]

    @property
    def tasks(self) -> int:
        """On how many tasks both were run."""
        return len(self.ratios)

    @property
    def finite(self) -> list[float]:
        """The ratios where no run diverged."""
        return [ratio for ratio in self.ratios.values() if math.isfinite(ratio)]

    def within(self, percent: float) -> int:
        """Count the tasks on which it is at most so much worse."""
        return sum(ratio <= 1 + percent / 100 for ratio in self.ratios.values())

    @property
    def better(self) -> int:
        """On how many tasks it is ahead."""
        return sum(ratio < 1 for ratio in self.ratios.values())

    @property
    def mean(self) -> float:
        """The geometric mean, of the tasks on which no run diverged."""
        return statistics.geometric_mean(self.finite) if self.finite else math.inf

    @property
    def worst(self) -> float:
        """The largest ratio, of the tasks on which no run diverged."""
        return max(self.finite, default=math.inf)

    @property
    def diverged(self) -> int:
        """On how many tasks a run diverged."""
        return self.tasks - len(self.finite)

    def row(self, label: str) -> str:
        """One line of the table in Markdown."""
        counts = [self.within(percent) for percent in (2, 5, 10)]
        cells = [label, *counts, self.better, f"{self.mean:.2f}", f"{self.worst:.2f}", self.diverged]
        return "| " + " | ".join(map(str, cells)) + " |"


def comparison(base: str, folders: list[Path]) -> dict[str, Score]:
    """How every method compares with the tuned cosine over a base, by its name (with @ and the budget, too)."""
    found = losses(folders)
    baseline = found[BASELINE[base] + "@8"]
    return {name: Score(ratios=here) for name, mine in found.items() if (here := ratios(mine, baseline))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    found = losses(arguments.folders)
    points = []
    for base, rows in ROWS.items():
        baseline = found[BASELINE[base] + "@8"]
        print(f"\n{base}\n\n| over the tuned cosine, {len(baseline)} tasks", end=" ")
        print("| 2 % | 5 % | 10 % | better | mean | worst | diverged |")
        print("|---|---|---|---|---|---|---|---|")
        columns = {}
        for name, label in rows.items():
            if here := ratios(found.get(name, {}), baseline):
                print(Score(ratios=here).row(label if len(here) == len(baseline) else f"{label} ({len(here)} tasks)"))
                columns[name] = here
                if name in PICTURED:
                    method = name.partition("@")[0]
                    points += [{"base": base, "task": t, "method": method, "ratio": v} for t, v in here.items()]
        names = list(columns)
        print("\n| task | loss of the cosine | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 2))
        for task, seeds in baseline.items():
            cells = [f"{columns[name][task]:.2f}" if task in columns[name] else "" for name in names]
            print(f"| {task} | {sum(seeds.values()) / len(seeds):.4f} | " + " | ".join(cells) + " |")
    if arguments.picture is not None:
        draw(points, arguments.picture)


def draw(points: list[dict[str, Any]], file: Path) -> None:
    """A dot for each method on each task, the tuned cosine over its optimizer at 1; what is above 3 stands at 3."""
    import altair as alt

    dots = (
        alt.Chart(alt.Data(values=[point | {"ratio": min(point["ratio"], 3.0)} for point in points]))
        .mark_point(filled=True, size=60, opacity=0.85)
        .encode(
            x=alt.X(
                "ratio:Q",
                scale=alt.Scale(type="log", domain=[0.4, 3.0], nice=False),
                title="test loss over that of the cosine, tuned over the same optimizer",
            ),
            y=alt.Y("task:N", title=None, axis=alt.Axis(labelLimit=260)),
            color=alt.Color("method:N", title=None, legend=alt.Legend(orient="top", columns=2, labelLimit=300)),
        )
        .properties(width=560, height=alt.Step(17))
    )
    line = alt.Chart(alt.Data(values=[{"x": 1.0}])).mark_rule(strokeDash=[4, 3])
    alt.layer(dots, line.encode(x=alt.X("x:Q", scale=alt.Scale(nice=False)))).save(str(file), scale_factor=2)


if __name__ == "__main__":
    main()
