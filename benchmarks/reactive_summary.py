"""What the experiments ``reactive/transfer`` and ``reactive/tuned`` say: test losses over that of the tuned cosine.

    python benchmarks/reactive_summary.py results/reactive/tuned results/reactive/transfer [--json FILE]

A signal schedule is compared with the cosine with warm-up over the same base optimizer, tuned with 8 trials: the mean
test loss of three seeds over that of the cosine. From other initial rates (factors) there is one seed, 0, compared with
the cosine's seed 0.
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

RIVAL = {"sgd": "sgd-momentum/warmup-cosine", "adamw": "adamw/warmup-cosine"}
#: Methods by the rival that they are compared with.
METHODS = {
    "signal-sgd": "sgd",
    "signal-sgd-layers": "sgd",
    "sgd-momentum/landed-sgd": "sgd",
    "sgd-momentum/warmup-cosine": "sgd",
    "sgd-momentum/staircase": "sgd",
    "hyper-sgd-momentum/global+layer+unit": "sgd",
    "sgd/mlr-snet-published": "sgd",
    "sgd/mlr-snet-transferred": "sgd",
    "signal-adamw": "adamw",
    "signal-adamw-layers": "adamw",
    "adamw/landed-adamw": "adamw",
    "adamw/warmup-cosine": "adamw",
    "hyper-adamw/global+layer": "adamw",
    "schedule-free-adamw": "adamw",
    "prodigy": "adamw",
}

Key = tuple[str, str, int, float]  # task, method, budget, factor


def read(folders: list[Path]) -> dict[Key, dict[int, float]]:
    """Test losses by seed; infinite where a run did not finish."""
    losses: dict[Key, dict[int, float]] = defaultdict(dict)
    for folder in folders:
        for line in (folder / "records.jsonl").read_text().splitlines():
            record = json.loads(line)
            loss = record["final"]["loss"] if record["status"] == "finished" else None
            key = (record["task"], record["method"], record["budget"], record["rate_factor"])
            losses[key][record["seed"]] = math.inf if loss is None else loss
    return losses


def ratios(losses: dict[Key, dict[int, float]], method: str, factor: float = 1.0) -> dict[str, float]:
    """By task, the loss over the tuned cosine's, of the seeds that both have."""
    found = {}
    for (task, name, budget, at), mine in losses.items():
        rival = losses.get((task, RIVAL[METHODS[method]], 8, 1.0))
        if name == method and budget == 1 and at == factor and rival:
            seeds = mine.keys() & rival.keys()
            found[task] = statistics.fmean(mine[s] for s in seeds) / statistics.fmean(rival[s] for s in seeds)
    return found


def summary(values: list[float]) -> dict[str, Any]:
    """Shares, geometric mean and worst of some ratios; a run that diverged counts as 100."""
    finite = [min(value, 100.0) for value in values]
    return {
        "tasks": len(values),
        "within 5 %": sum(value <= 1.05 for value in values),
        "within 10 %": sum(value <= 1.10 for value in values),
        "better": sum(value < 1.0 for value in values),
        "diverged": sum(not math.isfinite(value) for value in values),
        "geometric mean": round(math.exp(statistics.fmean(math.log(value) for value in finite)), 3),
        "worst": round(max(finite), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    losses = read(arguments.folders)
    factors = sorted({key[3] for key in losses})
    report: dict[str, Any] = {}
    print("| method | rate x | tasks | within 5 % | within 10 % | better | diverged | geometric mean | worst |")
    print("|---|---|---|---|---|---|---|---|---|")
    for method in METHODS:
        for factor in factors:
            by_task = ratios(losses, method, factor)
            if by_task:
                one = summary(list(by_task.values()))
                report[f"{method} at {factor:g}"] = {**one, "by task": {t: round(v, 3) for t, v in by_task.items()}}
                print(f"| {method} | {factor:g} | " + " | ".join(str(value) for value in one.values()) + " |")
    tasks = list(dict.fromkeys(key[0] for key in losses))
    for base, rival in RIVAL.items():
        names = [name for name, of in METHODS.items() if of == base]
        print(f"\n| task | tuned {rival} | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names))
        for task in tasks:
            tuned = losses.get((task, rival, 8, 1.0))
            cells = [ratios(losses, name).get(task) for name in names]
            shown = " | ".join("" if value is None else f"{value:.2f}" for value in cells)
            print(
                f"| {task} | {statistics.fmean(tuned.values()):.4f} | {shown} |" if tuned else f"| {task} | | {shown} |"
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
