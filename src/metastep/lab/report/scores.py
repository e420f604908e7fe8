"""Scores of an experiment: intervals over seeds, performance profiles, and ranks with their tests.

Tables are nested mappings, method -> task -> number; smaller is better, and infinity stands for a run that did not
finish.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import combinations
from typing import Any

import numpy as np

Table = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds, and the two ends around it: of the seeds themselves, or of a confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_range(self) -> float:
        """Half of high - low; 0 for a single seed."""
        return (self.high - self.low) / 2

    def overlaps(self, other: Interval) -> bool:
        """Say whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


def seed_range(values: Iterable[float | None]) -> Interval | None:
    """Give the mean of the finite values, with the lowest and the highest; None where there is none.

    Example:
        >>> spread = seed_range([1.0, 2.0, None, 6.0])
        >>> spread.mean, spread.half_range, spread.n
        (3.0, 2.5, 3)
    """
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers:
        return None
    return Interval(mean=math.fsum(numbers) / len(numbers), low=min(numbers), high=max(numbers), n=len(numbers))


def bootstrap(values: Sequence[float], *, draws: int = 10_000) -> Interval:
    """Give the mean and its 95 % percentile interval over resampled seeds.

    Args:
        values: one a seed; a value that is not finite makes all three infinite.
        draws: resamplings, >= 1.

    Raises:
        ValueError: for no values.

    Example:
        >>> bootstrap([2.0, 2.0])
        Interval(mean=2.0, low=2.0, high=2.0, n=2)
    """
    if not values:
        raise ValueError("values must hold at least one number, got none.")
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        return Interval(mean=math.inf, low=math.inf, high=math.inf, n=len(values))
    picks = np.random.default_rng(0).integers(len(array), size=(draws, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [0.025, 0.975])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high), n=len(values))


def performance_profile(costs: Table, ratios: Sequence[float]) -> dict[str, list[float]]:
    """Give, per method, the share of tasks solved within each ratio of the best method's cost.

    rho_m(tau) = |{t: cost_m,t <= tau min_m' cost_m',t}| / |{t}|; a task that nobody solved counts against all.

    Source: Dolan and More 2002.

    Raises:
        ValueError: if methods have other tasks, or a cost is not positive.
    """
    methods, tasks = _axes(costs)
    if any(not costs[m][t] > 0 for m in methods for t in tasks):
        raise ValueError("costs must be > 0 (infinity: it did not finish).")
    best = {task: min(costs[method][task] for method in methods) for task in tasks}

    def share(method: str, ratio: float) -> float:
        within = [math.isfinite(best[t]) and costs[method][t] <= ratio * best[t] for t in tasks]
        return sum(within) / len(tasks)

    return {method: [share(method, ratio) for ratio in ratios] for method in methods}


def profile_areas(costs: Table, highest: float = 4.0) -> dict[str, float]:
    """Give the normalised area under each profile, 1/(r - 1) times its integral from 1 to r, exactly.

    A profile is a staircase: a task solved at the ratio q <= r is worth (r - q) / (r - 1).

    Source: AlgoPerf, arXiv 2306.07179, with r = 4.

    Raises:
        ValueError: as for :func:`performance_profile`, or if highest is not above 1.
    """
    if not highest > 1:
        raise ValueError(f"highest must be > 1, got {highest}.")
    methods, tasks = _axes(costs)
    performance_profile(costs, ())  # checks the costs
    best = {task: min(costs[method][task] for method in methods) for task in tasks}

    def worth(method: str, task: str) -> float:
        if not math.isfinite(costs[method][task]):
            return 0.0
        return max(0.0, highest - costs[method][task] / best[task]) / (highest - 1)

    return {method: sum(worth(method, task) for task in tasks) / len(tasks) for method in methods}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Mean ranks over tasks (1 is best, ties share), and what is significant about them.

    Args:
        mean_rank: by method.
        friedman_p: that all methods are alike.
        critical_difference: of two mean ranks, by Nemenyi's test at 5 %.
        pairwise_p: Wilcoxon's signed-rank test of the ranks of two methods over tasks, corrected after Holm.
    """

    mean_rank: dict[str, float]
    friedman_p: float
    critical_difference: float
    pairwise_p: dict[tuple[str, str], float]


def rank(losses: Table) -> Ranking:
    """Rank methods on every task and test the ranks.

    Args:
        losses: at least three methods on at least two tasks.

    Raises:
        ValueError: for fewer methods or tasks, or methods with other tasks.
        ImportError: if SciPy is not installed.
    """
    stats = _stats()
    methods, tasks = _axes(losses)
    if len(methods) < 3 or len(tasks) < 2:
        raise ValueError(f"losses must have 3 methods and 2 tasks at least, got {len(methods)} and {len(tasks)}.")
    ranks = np.array([stats.rankdata([losses[method][task] for method in methods]) for task in tasks])
    alike = bool((ranks == ranks[0, 0]).all())  # nothing but ties, of which the statistic is 0 / 0
    k = len(methods)
    raw = {}
    for i, j in combinations(range(k), 2):
        same = bool((ranks[:, i] == ranks[:, j]).all())
        # With ties SciPy would try all 2^tasks signs: half a second a pair, of which 24 methods have 276.
        test = None if same else stats.wilcoxon(ranks[:, i], ranks[:, j], method="approx")
        raw[methods[i], methods[j]] = 1.0 if test is None else float(test.pvalue)
    spread = float(stats.studentized_range.ppf(0.95, k, np.inf)) / math.sqrt(2)
    return Ranking(
        mean_rank=dict(zip(methods, map(float, ranks.mean(axis=0)), strict=True)),
        friedman_p=1.0 if alike else float(stats.friedmanchisquare(*ranks.T).pvalue),
        critical_difference=spread * math.sqrt(k * (k + 1) / (6 * len(tasks))),
        pairwise_p=_holm(raw),
    )


def _holm(raw: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Holm's correction: the i-th smallest of n is multiplied by n - i + 1, and never falls."""
    corrected, highest = {}, 0.0
    for place, (pair, p) in enumerate(sorted(raw.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(raw) - place)))
        corrected[pair] = highest
    return corrected


def _axes(table: Table) -> tuple[list[str], list[str]]:
    methods = list(table)
    tasks = list(table[methods[0]]) if methods else []
    if not tasks:
        raise ValueError("the table must have at least one method and one task, got none.")
    for method in methods:
        if table[method].keys() != set(tasks):
            raise ValueError(f"every method must have the same tasks, got others for {method}.")
    return methods, tasks


def _stats() -> Any:
    try:
        return import_module("scipy.stats")
    except ImportError as error:
        raise ImportError('SciPy is needed to rank methods; pip install "metastep[bench]"') from error
