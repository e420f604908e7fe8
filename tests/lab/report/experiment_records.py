"""Records of an experiment that was never run: gradient descent on quadratics by several made-up methods."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

METRICS = {"classification": "accuracy", "language": "perplexity", "regression": "r2"}


def make_records(
    methods: int = 6, tasks: int = 4, seeds: int = 3, budgets: tuple[int, ...] = (1, 8), points: int = 20
) -> list[dict[str, Any]]:
    """Return a record per task, method, budget and seed; method 1 diverges on task 0, method 2 fails on task 1."""
    return [
        make_record(method, task, seed, budget, points)
        for budget in budgets
        for task in range(tasks)
        for method in range(methods)
        for seed in range(seeds)
    ]


def make_record(
    method: int, task: int, seed: int, budget: int, points: int = 20, factor: float = 1.0
) -> dict[str, Any]:
    """Return the record of one run; `factor` multiplies the initial rate."""
    rng = np.random.default_rng([method, task, seed, budget])
    kind = list(METRICS)[task % len(METRICS)]
    metric = METRICS[kind]
    diverges = method == 1 and task == 0 and seed == 0
    fails = method == 2 and task == 1 and seed == 1
    status = "diverged" if diverges else "failed" if fails else "finished"
    steps = np.arange(1, points + 1) * 10
    rate = factor * (0.02 + 0.3 / (1 + method)) * 0.5 * (1 + np.cos(math.pi * steps / (11 * points)))
    level = 0.1 + 0.03 * method + 0.02 * abs(math.log(factor)) - 0.01 * math.log2(budget)
    loss = level + 2 * np.exp(-steps * (0.01 + 0.004 * ((method + task) % 5))) + rng.normal(0, 0.01, points)
    final = float(loss[-1] + rng.normal(0, 0.01))
    quality = {"accuracy": math.exp(-final), "perplexity": math.exp(final), "r2": 1 - final}[metric]
    name = "sgd/constant" if method == 0 else f"method-{method}"
    return {
        "schema": 1,
        "task": f"{kind}-{task}/network",
        "method": name,
        "label": name,
        "schedule": "constant",
        "seed": seed,
        "budget": budget,
        "optimizer": "sgd",
        "lr": 0.1,
        "batch_size": 32,
        "total_steps": 10 * points,
        "status": status,
        "train": {
            "step": steps.tolist(),
            "seconds": (steps * 0.001).tolist(),
            "loss": [*map(float, loss)],
            "lr": [*map(float, rate)],
        },
        "valid": {"step": steps.tolist(), "seconds": (steps * 0.001).tolist(), "loss": [*map(float, loss)]},
        "final": {"loss": None, metric: None} if status != "finished" else {"loss": final, metric: quality},
        "train_seconds": float(steps[-1]) * 0.001 * (1 + 0.1 * method),
        "eval_seconds": 0.1,
        "settings": {},
        "created": "2026-11-26T11:47:05+00:00",
        "tuned": {} if method == 0 else {"lr": "1e-4 .. 1, log", "momentum": "0, 0.9"},
        "found": {"lr": float(rng.choice([0.03, 0.1, 0.3])), "momentum": 0.9},
        "error": 'RuntimeError: <no> "luck"' if fails else None,
        "rate_factor": factor,
        "versions": {"python": "3.11", "torch": "2.13.0", "metastep": "0.1.0"},
        "machine": {"processor": "x86_64", "cores": 2, "device": "cpu"},
        "command": "metastep experiment field/small --scale small",
        "git_revision": "0f53d7d",
    }


def with_sensitivity(records: list[dict[str, Any]], methods: int = 6, tasks: int = 4) -> list[dict[str, Any]]:
    """Add runs at 0.1 and 10 times the rate."""
    budget = records[-1]["budget"]
    return records + [
        make_record(method, task, seed, budget, factor=factor)
        for method in range(methods)
        for task in range(tasks)
        for seed in range(3)
        for factor in (0.1, 10.0)
    ]


def write_lines(records: list[dict[str, Any]], path: Path) -> Path:
    """Write the records as the bench does, one JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
