"""How long the page of 2,016 records takes to build, and how large it is; at most 20 s and 3 MB are wanted.

The records are made up: 24 methods on 14 tasks with 3 seeds and 2 budgets, 100 points a curve.
"""

import json
import math
import tempfile
import time
from pathlib import Path

from metastep.lab.report import read_results, write_page

METHODS, TASKS, SEEDS, BUDGETS, POINTS = 24, 14, 3, (1, 8), 100


def record(method: int, task: int, seed: int, budget: int) -> dict[str, object]:
    """Make up a run."""
    steps = [10 * k for k in range(1, POINTS + 1)]
    loss = [0.1 + 0.01 * method + 2 * math.exp(-step * (0.002 + 0.001 * (task % 5))) for step in steps]
    rate = [0.1 / (1 + method) * math.cos(step / (6.4 * POINTS)) ** 2 for step in steps]
    final = loss[-1] + 0.01 * seed
    return {
        "schema": 1,
        "task": f"data-{task}/network",
        "method": "sgd/constant" if method == 0 else f"optimizer-{method}/schedule",
        "seed": seed,
        "budget": budget,
        "label": "",
        "schedule": "constant",
        "optimizer": "sgd",
        "lr": 0.1,
        "batch_size": 32,
        "total_steps": 10 * POINTS,
        "status": "diverged" if method == 5 and seed == 0 else "finished",
        "train": {"step": steps, "seconds": [0.001 * step for step in steps], "loss": loss, "lr": rate},
        "valid": {"step": steps, "seconds": [0.001 * step for step in steps], "loss": loss},
        "final": {"loss": final, "accuracy": math.exp(-final)},
        "train_seconds": 1.0 + 0.01 * method,
        "eval_seconds": 0.1,
        "settings": {},
        "created": "2026-11-26T11:47:05+00:00",
        "tuned": {"lr": "1e-4 .. 1, log", "momentum": "0, 0.9, 0.99"},
        "found": {"lr": 0.03, "momentum": 0.9},
        "versions": {"torch": "2.13.0"},
        "machine": {"cores": 2},
        "command": f"metastep experiment field/small --seed {seed}",
        "git_revision": "0f53d7d",
    }


def main() -> None:
    cells = [(m, t, s, b) for b in BUDGETS for t in range(TASKS) for m in range(METHODS) for s in range(SEEDS)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "records.jsonl").write_text("".join(json.dumps(record(*cell)) + "\n" for cell in cells))
        start = time.perf_counter()
        page = write_page(read_results(place), place / "report.html")
        seconds = time.perf_counter() - start
        print(f"{len(cells)} records: {seconds:.1f} s, {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
