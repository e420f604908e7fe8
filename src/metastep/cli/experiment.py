"""From a folder of records to what the report of an experiment shows: cells, and the scores of the benchmark."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from metastep.cli.published import published_figures
from metastep.lab.bench.records_file import records_of
from metastep.lab.report import Cell, Experiment, Interval, Profile, Scores, Sensitivity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from metastep.lab.report.experiment import Key

#: The method that the time of a step is compared with.
PLAIN = "sgd/constant"
_RATIOS = tuple(np.geomspace(1, 4, 61).tolist())
#: A loss of less is 0 in single precision, and no loss can be within a factor of that.
_LEAST = 1e-7
_CURVES = ("step", "loss", "lr")
_ORIGIN = ("command", "git_revision", "versions", "machine")


def records_in(place: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read every ``*.jsonl`` of a folder but the curves of runs at work, or one file; give file:line and record.

    A last line that a killed run left unfinished is skipped with a warning.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if a line is no record, or of a newer schema.
    """
    files = _files(place)
    if not files:
        raise FileNotFoundError(f"no records (*.jsonl) in {place}; give the folder of an experiment or a .jsonl file.")
    for file in files:
        yield from records_of(file, file.relative_to(place).as_posix() if file != place else None)


def is_experiment(place: Path) -> bool:
    """Tell whether the first record that can be read names its method, as those of an experiment do."""
    for file in _files(place):
        with file.open("rb") as lines:
            for line in lines:
                try:
                    return "method" in json.loads(line)
                except (ValueError, TypeError):
                    break  # whoever reads the file as a whole says what is wrong with it
    return False


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [file for file in sorted(place.rglob("*.jsonl")) if file.name != "metrics.jsonl"]


def load_experiment(place: Path, title: str | None = None) -> Experiment:
    """Read a folder of records and score them.

    Raises:
        ValueError: if a record lacks something; it is named.
    """
    cells: list[Cell] = []
    # Losses by seed, of a cell and a factor of its rate.
    off: dict[tuple[Key, float], dict[int, float]] = defaultdict(dict)
    for where, record in records_in(place):
        try:
            cell = _cell(record, where)
        except KeyError as error:
            raise ValueError(
                f"{where}: {error.args[0]} must be there, got only {', '.join(sorted(record))}."
            ) from error
        factor = float(record.get("rate_factor", 1.0))
        if factor == 1.0:
            cells.append(cell)
        off[cell.key, factor][cell.seed] = _loss(cell)
    notes = place / "notes.txt"
    return Experiment(
        title=title or (place.stem if place.is_file() else place.resolve().name),
        cells=cells,
        scores=_scores(cells, off),
        published=published_figures({cell.task for cell in cells}),
        notes=notes.read_text("utf-8").splitlines() if notes.is_file() else (),
    )


def _cell(record: Mapping[str, Any], where: str) -> Cell:
    final = record["final"]
    metric = next((name for name in final if name != "loss"), "accuracy")
    return Cell(
        task=record["task"],
        method=record.get("method") or record["label"],
        seed=record["seed"],
        budget=record.get("budget", 1),
        status=record["status"],
        metric=metric,
        loss=final.get("loss"),
        quality=final.get(metric),
        seconds=record["train_seconds"],
        train={name: record["train"][name] for name in _CURVES if name in record["train"]},
        valid={name: record["valid"][name] for name in _CURVES if name in record["valid"]},
        tuned={name: str(values) for name, values in record.get("tuned", {}).items()},
        found=record.get("found", {"lr": record["lr"]}),
        error=record.get("error"),
        source=where,
        origin={name: record[name] for name in _ORIGIN if record.get(name) is not None},
    )


def _loss(cell: Cell) -> float:
    return max(cell.loss, _LEAST) if cell.status == "finished" and cell.loss is not None else math.inf


def _scores(cells: Sequence[Cell], off: Mapping[tuple[Key, float], Mapping[int, float]]) -> Scores:
    groups: dict[Key, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.key].append(cell)
    remarks: list[str] = []
    profiles: list[Profile] = []
    ranks: dict[tuple[str, int], Interval] = {}
    for budget in sorted({cell.budget for cell in cells}):
        costs = _costs(groups, budget, remarks)
        if costs:
            profiles += _profiles(costs, budget)
            ranks |= _ranks(costs, budget, remarks)
    return Scores(
        losses={key: one for key, runs in groups.items() if (one := _interval(run.loss for run in runs))},
        qualities={key: one for key, runs in groups.items() if (one := _interval(run.quality for run in runs))},
        ranks=ranks,
        profiles=profiles,
        sensitivities=_sensitivities(off),
        overheads=_overheads(groups),
        remarks=remarks,
    )


def _interval(values: Iterable[float | None]) -> Interval | None:
    from metastep.lab.report.scores import bootstrap

    usable = [value for value in values if value is not None and math.isfinite(value)]
    if not usable:
        return None
    one = bootstrap(usable, draws=2000)
    return Interval(mean=one.mean, low=one.low, high=one.high)


def _costs(groups: Mapping[Key, Sequence[Cell]], budget: int, remarks: list[str]) -> dict[str, dict[str, float]]:
    """Give mean losses by method and task; methods that were not run on every task are left out, and named."""
    tasks = list(dict.fromkeys(task for task, _, of in groups if of == budget))
    methods = list(dict.fromkeys(method for _, method, of in groups if of == budget))
    whole = [method for method in methods if all((task, method, budget) in groups for task in tasks)]
    missing = [method for method in methods if method not in whole]
    if missing:
        remarks.append(f"Without profile and rank at {budget} trials, as not run on every task: {', '.join(missing)}.")
    return {
        method: {task: float(np.mean([_loss(run) for run in groups[task, method, budget]])) for task in tasks}
        for method in whole
    }


def _profiles(costs: Mapping[str, Mapping[str, float]], budget: int) -> list[Profile]:
    from metastep.lab.report.scores import performance_profile, profile_areas

    shares, areas = performance_profile(costs, _RATIOS), profile_areas(costs, _RATIOS[-1])
    return [
        Profile(method=method, budget=budget, area=areas[method], factors=_RATIOS, shares=shares[method])
        for method in costs
    ]


def _ranks(
    costs: Mapping[str, Mapping[str, float]], budget: int, remarks: list[str]
) -> dict[tuple[str, int], Interval]:
    from metastep.lab.report.scores import rank

    if len(costs) < 3 or len(next(iter(costs.values()))) < 2:
        return {}
    ranking = rank(costs)
    half = ranking.critical_difference / 2
    told = sum(p < 0.05 for p in ranking.pairwise_p.values())
    trials = "At defaults" if budget == 1 else f"With {budget} trials"
    remarks.append(
        f"{trials}, that all methods are alike has p = {ranking.friedman_p:.2g} (Friedman); {told} of "
        f"{len(ranking.pairwise_p)} pairs of methods differ (Wilcoxon, 5 % after Holm)."
    )
    return {
        (method, budget): Interval(mean=mean, low=mean - half, high=mean + half)
        for method, mean in ranking.mean_rank.items()
    }


def _sensitivities(off: Mapping[tuple[Key, float], Mapping[int, float]]) -> list[Sensitivity]:
    """Average the loss over that at the chosen rate geometrically over tasks; both of the seeds run at every rate.

    A task counts for a method where it was run at every rate and ended well at the chosen one, which is not so if
    another rate ended at a tenth of its loss; a rate at which the method diverges on a task has an infinite loss.
    """
    factors = sorted({factor for _, factor in off})
    if len(factors) < 2:
        return []
    found = []
    for method in dict.fromkeys(method for (_, method, _), _ in off):
        keys = [key for key, factor in off if key[1] == method and factor == 1.0]
        means = [[_mean_of_common(off, key, factor, factors) for factor in factors] for key in keys]
        chosen = factors.index(1.0) if 1.0 in factors else 0
        ran = [row for row in means if not any(map(math.isnan, row))]
        usable = [row for row in ran if math.isfinite(row[chosen]) and row[chosen] <= 10 * min(row)]
        if usable:
            ratios = np.array([[value / row[chosen] for value in row] for row in usable])
            found.append(Sensitivity(method=method, factors=factors, losses=np.exp(np.log(ratios).mean(0)).tolist()))
    return found


def _mean_of_common(
    off: Mapping[tuple[Key, float], Mapping[int, float]], key: Key, factor: float, factors: Sequence[float]
) -> float:
    """The mean loss of the seeds that were run at every rate; NaN where there is none."""
    seeds = set.intersection(*(set(off.get((key, other), ())) for other in factors))
    return float(np.mean([off[key, factor][seed] for seed in seeds])) if seeds else math.nan


def _overheads(groups: Mapping[Key, Sequence[Cell]]) -> dict[str, float]:
    """Give the median over tasks and budgets of the time of a step over that of plain SGD's on the same task."""
    times: dict[str, list[float]] = defaultdict(list)
    for (task, method, budget), runs in groups.items():
        plain = groups.get((task, PLAIN, budget))
        if plain and method != PLAIN and (mine := _seconds(runs)) and (theirs := _seconds(plain)):
            times[method].append(mine / theirs)
    return {method: float(np.median(values)) for method, values in times.items()}


def _seconds(runs: Sequence[Cell]) -> float:
    """Give the mean time of a step of the runs that finished; 0 where there is none."""
    steps = [(run.seconds, run.train["step"][-1]) for run in runs if run.status == "finished" and run.train.get("step")]
    return float(np.mean([seconds / step for seconds, step in steps if step])) if steps else 0.0
