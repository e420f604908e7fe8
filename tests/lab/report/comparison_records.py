"""Records of real toy runs: logistic regression by plain SGD in numpy, five schedules, three seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, EVERY, CLASSES, FEATURES = 400, 8, 10, 24


def learned(step: int, loss: float) -> float:
    """Follow the shape that learned schedules show: a quick rise, then a fall with the loss, never quite smooth."""
    return 0.9 * (1 - math.exp(-step / 15)) * min(1.0, (loss / 2.0) ** 1.5) * (1 + 0.06 * math.sin(step / 9))


SCHEDULES: dict[str, Callable[[int, float], float]] = {
    "constant": lambda step, loss: 0.3,
    "multistep": lambda step, loss: 0.5 * 0.1 ** (step // 160),
    "exponential": lambda step, loss: 0.5 * 0.99**step,
    "cosine": lambda step, loss: 0.25 * (1 + math.cos(math.pi * step / STEPS)),
    "mlr-snet": learned,
}


def make_records(*, language: bool = False, diverged: tuple[str, int] | None = ("constant", 2)) -> list[dict[str, Any]]:
    """Return records of every schedule with seeds 0, 1, 2; the named run diverges halfway."""
    return [
        make_record(name, seed, language=language, diverges=(name, seed) == diverged)
        for name in SCHEDULES
        for seed in range(3)
    ]


def make_record(schedule: str, seed: int, *, language: bool = False, diverges: bool = False) -> dict[str, Any]:
    """Train once and return the record of it."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).normal(size=(FEATURES, CLASSES))
    x = rng.normal(size=(3000, FEATURES))
    y = np.argmax(x @ truth + rng.gumbel(size=(3000, CLASSES)) * 1.5, axis=1)
    valid, test = slice(1600, 2300), slice(2300, 3000)  # what lies before is for training
    weights = np.zeros((FEATURES, CLASSES))
    metric = "perplexity" if language else "accuracy"
    curves: dict[str, dict[str, list[Any]]] = {
        "train": {"step": [], "seconds": [], "loss": [], "lr": []},
        "valid": {"step": [], "seconds": [], "loss": [], metric: []},
    }
    clock, window, peak, status = 0.0, [], 0.0, "finished"
    pace = rng.uniform(0.009, 0.012)  # seconds per step
    for step in range(1, STEPS + 1):
        rows = rng.integers(0, 1600, size=32)
        probability, loss = _forward(x[rows], y[rows], weights)
        rate = SCHEDULES[schedule](step, loss)
        if diverges and step > 150:
            loss = loss * 1.6 ** (step - 150)
        if not math.isfinite(loss) or loss > 1e30:
            curves["train"]["step"].append(step)
            curves["train"]["seconds"].append(clock)
            curves["train"]["loss"].append(None)
            curves["train"]["lr"].append(rate)
            status = "diverged"
            break
        probability[np.arange(32), y[rows]] -= 1
        weights -= rate * x[rows].T @ probability / 32
        clock += pace * rng.uniform(0.7, 1.3)
        peak = max(peak, rate)
        window.append(loss)
        if step == 1 or step % EVERY == 0:
            curves["train"]["step"].append(step)
            curves["train"]["seconds"].append(round(clock, 4))
            curves["train"]["loss"].append(float(np.mean(window)))
            curves["train"]["lr"].append(rate)
            window = []
        if step % (5 * EVERY) == 0:
            loss, accuracy = _score(x[valid], y[valid], weights)
            curves["valid"]["step"].append(step)
            curves["valid"]["seconds"].append(round(clock, 4))
            curves["valid"]["loss"].append(loss)
            curves["valid"][metric].append(math.exp(loss) if language else accuracy)
    loss, accuracy = _score(x[test], y[test], weights)
    final = {"loss": loss, metric: math.exp(loss) if language else accuracy}
    if status == "diverged":
        final = dict.fromkeys(final)
    return {
        "schema": 1,
        "task": "ptb/lstm" if language else "digits/logistic",
        "schedule": schedule,
        "label": schedule,
        "seed": seed,
        "optimizer": "sgd",
        "lr": 0.5,
        "batch_size": 32,
        "total_steps": STEPS,
        "status": status,
        **curves,
        "final": final,
        "train_seconds": clock,
        "eval_seconds": 0.4,
        "peak_rate": peak,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "metastep": "0.1.0"},
        "machine": {"processor": "x86_64", "cores": 2, "threads": 1, "device": "cpu"},
        "command": "metastep compare digits/logistic --schedules constant,multistep,cosine,mlr-snet --seeds 3",
        "git_revision": "0f53d7d",
        "created": f"2026-11-21T2{seed}:30:00Z",
        "settings": {"tuning": {"trials": 12, "split": "outer_valid"}, "gamma": 1.0, "chosen": schedule},
    }


def with_layers(record: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the record with rates per layer that drift apart."""
    steps = record["train"]["step"]
    rates = [[0.1 * math.exp((at - len(names) / 2) * step / 1500) for step in steps] for at in range(len(names))]
    return record | {"layers": {"step": steps, "names": names, "rates": rates}}


def _forward(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    scores = x @ weights
    scores -= scores.max(axis=1, keepdims=True)
    probability = np.exp(scores)
    probability /= probability.sum(axis=1, keepdims=True)
    return probability, float(-np.log(probability[np.arange(len(y)), y] + 1e-30).mean())


def _score(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    probability, loss = _forward(x, y, weights)
    return loss, float((probability.argmax(axis=1) == y).mean())
