"""From records to what a report shows: runs in groups of seeds, and what the groups score.

A *group* is the seeds of one method on one task, with settings chosen within one budget of trials. A comparison of
schedules is the case of one task and one budget.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from metastep.files import read_json
from metastep.lab.records import read_records
from metastep.lab.report.scores import (
    Interval,
    Ranking,
    bootstrap,
    performance_profile,
    profile_areas,
    rank,
    seed_range,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from metastep.lab.records import Record

Key = tuple[str, str, int]  # task, method, budget

#: The record of a single run, in its folder.
SINGLE = "record.json"
#: The method that the time of a step is compared with.
PLAIN = "sgd/constant"
#: Factors of the best method's loss, over which profiles are drawn; their area ends at the last.
RATIOS = tuple(np.geomspace(1, 4, 61).tolist())
#: A loss of less is 0 in single precision, and no loss can be within a factor of that.
_LEAST = 1e-7


@dataclass(frozen=True, kw_only=True)
class Run:
    """A record, and where it is: file and line, relative to the folder."""

    record: Record
    source: str

    @property
    def key(self) -> Key:
        """The group that it belongs to."""
        return (self.record.task, self.method, self.record.budget)

    @property
    def method(self) -> str:
        """The method's name; in a comparison, the label of the schedule."""
        return self.record.method or self.record.label

    @property
    def finished(self) -> bool:
        """Whether it ended with finite numbers."""
        return self.record.status == "finished"

    @property
    def loss(self) -> float | None:
        """On the test split."""
        return self.record.final.get("loss")

    @property
    def cost(self) -> float:
        """The test loss; infinite if the run did not finish."""
        return max(self.loss, _LEAST) if self.finished and self.loss is not None else math.inf


@dataclass(frozen=True, kw_only=True)
class Group:
    """The seeds of a method on a task, within a budget of trials.

    Every interval reaches from the lowest to the highest seed that finished, and is None where no such seed has the
    number.
    """

    task: str
    method: str
    budget: int
    runs: Sequence[Run]

    @cached_property
    def finished(self) -> list[Run]:
        """The runs that ended with finite numbers."""
        return [run for run in self.runs if run.finished]

    @property
    def lost(self) -> int:
        """How many runs diverged or failed."""
        return len(self.runs) - len(self.finished)

    @property
    def learned(self) -> bool:
        """Whether the schedule was learned: by the record's mark, or by its name."""
        record = self.runs[0].record
        return record.learned or record.schedule.replace("-", "").lower().startswith("mlrsnet")

    @property
    def metric(self) -> str:
        """What is measured beside the loss: accuracy, perplexity or r2."""
        return self.runs[0].record.metric

    @cached_property
    def test_loss(self) -> Interval | None:
        """On the test split, read once."""
        return seed_range(run.loss for run in self.finished)

    @cached_property
    def test_metric(self) -> Interval | None:
        """On the test split; an accuracy is in [0, 1]."""
        return seed_range(self._test_metrics)

    @cached_property
    def confidence(self) -> Interval | None:
        """The test metric with its 95 % bootstrap interval instead of the range."""
        values = [value for value in self._test_metrics if value is not None and math.isfinite(value)]
        return bootstrap(values, draws=2000) if values else None

    @property
    def best_valid_loss(self) -> Interval | None:
        """The lowest validation loss of each run."""
        return seed_range(_lowest(run.record.valid.get("loss", ())) for run in self.finished)

    @property
    def peak_rate(self) -> Interval | None:
        """The highest rate of each run."""
        return seed_range(run.record.peak_rate for run in self.finished)

    @property
    def final_rate(self) -> Interval | None:
        """The last rate of each run."""
        return seed_range((run.record.train.get("lr") or [None])[-1] for run in self.finished)

    @property
    def train_seconds(self) -> Interval | None:
        """Of training alone, without evaluation."""
        return seed_range(run.record.train_seconds for run in self.finished)

    @property
    def test_losses(self) -> dict[int, float]:
        """The test loss of each seed."""
        return {run.record.seed: run.loss for run in self.finished if run.loss is not None}

    @property
    def cost(self) -> float:
        """The mean test loss; infinite if one run did not finish."""
        return math.fsum(run.cost for run in self.runs) / len(self.runs)

    @cached_property
    def step_seconds(self) -> float | None:
        """The mean time of a step of training."""
        steps = [(run.record.train_seconds, (run.record.train.get("step") or [0])[-1]) for run in self.finished]
        times = [seconds / step for seconds, step in steps if step]
        return math.fsum(times) / len(times) if times else None

    @property
    def _test_metrics(self) -> list[float | None]:
        return [run.record.final.get(self.metric) for run in self.finished]

    def summary(self) -> dict[str, Any]:
        """Return the numbers of this group as plain values."""
        intervals = ("test_loss", "test_metric", "best_valid_loss", "peak_rate", "final_rate", "train_seconds")
        numbers: dict[str, Interval | None] = {name: getattr(self, name) for name in intervals}
        return {
            "label": self.method,
            "task": self.task,
            "budget": self.budget,
            "learned": self.learned,
            "finished": len(self.finished),
            "diverged": self.lost,
            "metric": self.metric,
            **{name: None if value is None else asdict(value) for name, value in numbers.items()},
            "test_losses": self.test_losses,
        }


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What is lost when the initial rate is off.

    Args:
        method: whose.
        factors: the initial rate over the chosen one.
        losses: test loss over that at the chosen rate, averaged over tasks; infinite where it diverged.
    """

    method: str
    factors: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """A number from a paper, which is not ours and is marked so."""

    task: str
    method: str
    metric: str
    value: str
    citation: str


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the methods that were run on every task compare within one budget.

    Args:
        areas: under the performance profile, in [0, 1], by method; best first.
        shares: the performance profile (Dolan and More 2002) by method: on which share of the tasks its loss is
            within each of :data:`RATIOS` of the best method's.
        ranking: mean ranks and their tests; None for fewer than three methods or two tasks.
        left_out: methods that were not run on every task.
    """

    areas: Mapping[str, float]
    shares: Mapping[str, Sequence[float]]
    ranking: Ranking | None
    left_out: Sequence[str]


class Results:
    """All runs of a comparison or an experiment, with their scores.

    Args:
        runs: at least one; those at another initial rate than the chosen one count for sensitivity alone.
        title: of the page.
        notes: sentences to show.
        figures: of papers, to show beside ours.

    Raises:
        ValueError: if there is no run at the chosen rate, or one run is there twice.
    """

    def __init__(
        self, runs: Iterable[Run], *, title: str, notes: Sequence[str] = (), figures: Sequence[PaperFigure] = ()
    ) -> None:
        self.title, self.notes, self.figures = title, list(notes), list(figures)
        #: Those at other rates, too.
        self.all_runs = list(runs)
        groups: dict[Key, list[Run]] = defaultdict(list)
        seen: dict[tuple[object, ...], Run] = {}
        for run in self.all_runs:
            name = (*run.key, run.record.seed, run.record.rate_factor)
            if name in seen:
                raise ValueError(
                    f"{run.source} must hold a new run, got seed {run.record.seed} of {run.method} on"
                    f" {run.record.task} again, as in {seen[name].source}; keep one of the two."
                )
            seen[name] = run
            if run.record.rate_factor == 1.0:
                groups[run.key].append(run)
        if not groups:
            raise ValueError("the records must hold at least one run, got none; run the experiment first.")
        #: By task, method and budget; seeds in order.
        self.groups = {
            key: Group(task=key[0], method=key[1], budget=key[2], runs=sorted(those, key=lambda run: run.record.seed))
            for key, those in groups.items()
        }
        #: In the order of the records.
        self.tasks = list(dict.fromkeys(task for task, _, _ in self.groups))
        #: Numbers of trials, from the smallest; 1: defaults.
        self.budgets = sorted({budget for _, _, budget in self.groups})
        #: By budget.
        self.standings = {budget: _standing(self.groups, budget) for budget in self.budgets}
        self.sensitivities = _sensitivities(self.all_runs)

    @property
    def runs(self) -> list[Run]:
        """Those at the chosen rate."""
        return [run for group in self.groups.values() for run in group.runs]

    @property
    def one_task(self) -> bool:
        """Whether this is a comparison on one task, which is shown in more detail."""
        return len(self.tasks) == 1

    @cached_property
    def methods(self) -> list[str]:
        """Best first: on one task by the test loss, else by the area under the profile of the largest budget."""
        names = dict.fromkeys(method for _, method, _ in self.groups)
        budget = self.budgets[-1]
        if self.one_task:
            return [*dict.fromkeys(group.method for of in reversed(self.budgets) for group in self.ordered(of))]
        areas = self.standings[budget].areas
        return sorted(names, key=lambda name: -areas.get(name, -1.0))

    def ordered(self, budget: int) -> list[Group]:
        """Return the groups of the first task, lowest mean test loss first, those with a lost run last."""
        groups = [group for (task, _, of), group in self.groups.items() if task == self.tasks[0] and of == budget]
        return sorted(groups, key=lambda one: (one.lost > 0, one.test_loss.mean if one.test_loss else math.inf))

    def metric(self, task: str) -> str:
        """Name what is measured beside the loss."""
        return next(group.metric for group in self.groups.values() if group.task == task)

    def best(self, task: str, budget: int) -> str | None:
        """Name the method with the best mean test metric, among those all of whose runs finished."""
        means = {
            group.method: group.test_metric.mean
            for group in self.groups.values()
            if (group.task, group.budget) == (task, budget) and not group.lost and group.test_metric
        }
        choose = min if self.metric(task) == "perplexity" else max
        return choose(means, key=lambda method: means[method]) if means else None

    @cached_property
    def overheads(self) -> dict[str, float]:
        """The time of a step over that of plain SGD on the same task; the median over tasks and budgets."""
        times: dict[str, list[float]] = defaultdict(list)
        for (task, method, budget), group in self.groups.items():
            plain = self.groups.get((task, PLAIN, budget))
            if plain and method != PLAIN and group.step_seconds and plain.step_seconds:
                times[method].append(group.step_seconds / plain.step_seconds)
        return {method: float(np.median(values)) for method, values in sorted(times.items(), key=_median)}


def read_results(
    place: Path, title: str | None = None, *, figures: Callable[[Collection[str]], Sequence[PaperFigure]] | None = None
) -> Results:
    """Read the records of a folder, every ``*.jsonl`` below it but the curves of runs at work, or one file.

    Without any, those of single runs (``metastep train``) are read: every ``record.json``. Runs of the same task,
    schedule and seed are then told apart by their folders.

    A last line that a killed run left unfinished is skipped with a warning. ``notes.txt`` beside them is shown.

    Args:
        place: the folder, or the file.
        title: of the page; None: that of the experiment, else the task's name, else the folder's.
        figures: gives the figures of papers for the tasks that are there.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if a line is no record; it is named.
    """
    files = [place] if place.is_file() else sorted(place.rglob("*.jsonl"))
    files = [file for file in files if file.name != "metrics.jsonl" or file == place] or sorted(place.rglob(SINGLE))
    if not place.exists():
        raise FileNotFoundError(f"there is no {place}; give the folder of a comparison, or a .jsonl file.")
    if not files:
        raise FileNotFoundError(f"no records in {place}; give the folder of a finished run or comparison.")
    runs = [
        Run(record=record, source=source)
        for file in files
        for source, record in read_records(file, file.name if file == place else file.relative_to(place).as_posix())
    ]
    if files[0].name == SINGLE and place.is_dir():
        runs = _told_apart(runs)
    if not runs:
        raise ValueError(f"{place} must hold at least one record, got none; run a comparison first.")
    folder = place if place.is_dir() else place.parent
    notes = folder / "notes.txt"
    tasks = {run.record.task for run in runs}
    return Results(
        runs,
        title=title or _title(folder) or (next(iter(tasks)) if len(tasks) == 1 else folder.resolve().name),
        notes=notes.read_text("utf-8", "replace").splitlines() if notes.is_file() else (),
        figures=figures(tasks) if figures else (),
    )


def _told_apart(runs: list[Run]) -> list[Run]:
    """Name the folder of each run beside its schedule, if another has the same schedule, task and seed."""
    alike = Counter((run.key, run.record.seed) for run in runs)
    return [
        replace(run, record=msgspec.structs.replace(run.record, label=f"{run.method}, {Path(run.source).parent}"))
        if alike[run.key, run.record.seed] > 1
        else run
        for run in runs
    ]


class _Plan(msgspec.Struct):
    title: str = ""


def _title(folder: Path) -> str:
    """Return the title in the plan of an experiment; a page of its records needs no more of it."""
    try:
        return read_json(folder / "experiment.json", _Plan).title
    except (OSError, ValueError):
        return ""


def _standing(groups: Mapping[Key, Group], budget: int) -> Standing:
    """Score mean losses; a method that was not run on every task is left out."""
    tasks = list(dict.fromkeys(task for task, _, of in groups if of == budget))
    methods = list(dict.fromkeys(method for _, method, of in groups if of == budget))
    whole = [method for method in methods if all((task, method, budget) in groups for task in tasks)]
    costs = {method: {task: groups[task, method, budget].cost for task in tasks} for method in whole}
    areas = profile_areas(costs, RATIOS[-1]) if costs else {}
    return Standing(
        areas=dict(sorted(areas.items(), key=lambda item: -item[1])),
        shares=performance_profile(costs, RATIOS) if costs else {},
        ranking=rank(costs) if len(whole) >= 3 and len(tasks) >= 2 else None,
        left_out=[method for method in methods if method not in whole],
    )


def _sensitivities(runs: Iterable[Run]) -> list[Sensitivity]:
    """Average the loss over that at the chosen rate geometrically over tasks; both of the seeds run at every rate.

    A task counts for a method where it was run at every rate and ended well at the chosen one, which is not so if
    another rate ended at a tenth of its loss; a rate at which the method diverges on a task has an infinite loss.
    """
    costs: dict[Key, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        costs[run.key][run.record.rate_factor][run.record.seed] = run.cost
    factors = sorted({factor for by_factor in costs.values() for factor in by_factor})
    if len(factors) < 2 or 1.0 not in factors:
        return []
    chosen = factors.index(1.0)
    ratios: dict[str, list[list[float]]] = defaultdict(list)
    for (_, method, _), by_factor in costs.items():
        seeds = set.intersection(*(set(by_factor.get(factor, ())) for factor in factors))
        if not seeds:
            continue
        means = [math.fsum(by_factor[factor][seed] for seed in seeds) / len(seeds) for factor in factors]
        if math.isfinite(means[chosen]) and means[chosen] <= 10 * min(means):
            ratios[method].append([mean / means[chosen] for mean in means])
    return [
        Sensitivity(method=method, factors=factors, losses=np.exp(np.log(rows).mean(0)).tolist())
        for method, rows in ratios.items()
    ]


@dataclass(frozen=True, kw_only=True)
class OneConfiguration:
    """A method at a rate, as the rate factor says, chosen for a task without looking at it, and its runs there."""

    task: str
    method: str
    rate_factor: float
    runs: Sequence[Run]


def one_configuration(runs: Iterable[Run]) -> list[OneConfiguration]:
    """Choose one configuration for each task: the one that is best on all the other tasks together.

    A configuration is a method at its defaults and a factor of its rate. Best has the largest area under the
    performance profile of the outer_valid losses at the end, the means over seeds. This is the baseline of whoever
    tunes once, for everything: the test loss on the task left out was not looked at.

    Args:
        runs: of the candidates; those with a budget of 1 count, and those candidates that were run on every task.

    Raises:
        ValueError: if there is no candidate, or there are fewer than two tasks.

    Source: arXiv 2505.24005, which calibrates over all tasks at once; here the task itself is left out.
    """
    by_candidate: dict[tuple[str, float], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.record.budget == 1:
            by_candidate[run.method, run.record.rate_factor][run.record.task].append(run)
    tasks = sorted({task for by_task in by_candidate.values() for task in by_task})
    whole = {candidate: by_task for candidate, by_task in by_candidate.items() if len(by_task) == len(tasks)}
    if len(tasks) < 2 or not whole:
        raise ValueError(
            f"runs must be of a candidate that was run on two tasks at least, got {len(whole)} on {len(tasks)}."
        )
    losses = {str(key): {task: _mean_selection(by_task[task]) for task in tasks} for key, by_task in whole.items()}
    chosen = []
    for task in tasks:
        areas = profile_areas({name: {t: row[t] for t in tasks if t != task} for name, row in losses.items()})
        method, factor = max(whole, key=lambda key: areas[str(key)])
        chosen.append(OneConfiguration(task=task, method=method, rate_factor=factor, runs=whole[method, factor][task]))
    return chosen


def _mean_selection(runs: Sequence[Run]) -> float:
    """The mean outer_valid loss at the end; infinite if a run did not finish."""
    ends = [(run.record.valid.get("loss") or [None])[-1] if run.finished else None for run in runs]
    return math.fsum(max(end, _LEAST) if end is not None else math.inf for end in ends) / len(ends)


def _median(item: tuple[str, Sequence[float]]) -> float:
    return float(np.median(item[1]))


def _lowest(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None and math.isfinite(value)), default=None)
