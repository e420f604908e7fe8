"""What each chart shows, as plain rows: curves with their bands, profiles, ranks, sensitivity, rates of layers.

A row is one line of a chart, with its points as lists: ``method``, ``x``, ``y``, and where there is a band, ``low`` and
``high``. How rows are drawn is said in ``charts.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from metastep.lab.report.results import RATIOS
from metastep.lab.report.verdict import trials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from metastep.lab.report.results import Group, Results, Run

    Vector = NDArray[np.float64]  # (points,)

Row = dict[str, Any]
Clock = Literal["step", "seconds"]
Scale = Literal["linear", "log"]
Kind = Literal["loss", "rate", "share", "number", "profile", "sensitivity", "ranks", "seeds", "layers"]

#: Points of a line, at most, where a page has few panels and where it has many.
FINE, COARSE = 400, 40


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart.

    Args:
        kind: which one.
        title: what it shows.
        rows: by what the axis along counts; those that do not count time have "step" alone.
        scale: of the axis up, to begin with.
        domain: of the axis up; what lies outside runs along the edge.
        choices: both scales make sense, and a reader may choose.
    """

    kind: Kind
    title: str
    rows: dict[Clock, list[Row]]
    scale: Scale = "linear"
    domain: dict[Scale, tuple[float, float]]
    choices: bool = False

    @property
    def specifications(self) -> list[tuple[Kind, Clock, Scale]]:
        """Every way in which it may be drawn."""
        return [
            (self.kind, clock, scale)
            for clock in self.rows
            for scale in (("linear", "log") if self.choices else (self.scale,))
        ]


def curves(results: Results, task: str) -> list[Panel]:
    """Show what the runs of a task did, with the largest budget: means over seeds, and the range around them.

    Where a task is alone there are four panels, over steps and over seconds, and every run that diverged has its line;
    else the validation loss and the rate, over steps.
    """
    groups = [group for (of, _, budget), group in results.groups.items() if (of, budget) == (task, results.budgets[-1])]
    groups.sort(key=lambda group: results.methods.index(group.method))
    if not results.one_task:
        return [
            _curves(task, "loss", groups, _reader("valid", "loss"), fine=False),
            _curves(task, "rate", groups, _reader("train", "lr"), fine=False),
        ]
    metric = results.metric(task)
    kind: Kind = "share" if metric == "accuracy" else "number"
    return [
        _curves("Training loss", "loss", groups, _reader("train", "loss"), fine=True),
        _curves("Validation loss", "loss", groups, _reader("valid", "loss"), fine=True),
        _curves(f"Validation {metric}", kind, groups, _reader("valid", metric), fine=True),
        _curves("Learning rate", "rate", groups, _reader("train", "lr"), fine=True),
    ]


def seeds(results: Results) -> Panel:
    """Show the test loss of every seed, the best method at the top."""
    groups = results.ordered(results.budgets[-1])
    rows: list[Row] = [
        {"method": group.method, "x": list(group.test_losses.values()), "seed": list(group.test_losses)}
        for group in groups
    ]
    losses = [x for row in rows for x in row["x"]]
    apart = bool(losses) and min(losses) > 0 and max(losses) > 5 * min(losses)
    return _panel("seeds", "Test loss of each seed", {"step": rows}, losses, "log" if apart else "linear")


def profiles(results: Results) -> list[Panel]:
    """Show on which share of the tasks each method is within a factor of the best; a panel per budget."""
    return [
        Panel(
            kind="profile",
            title=trials(budget).capitalize(),
            rows={
                "step": [
                    {"method": method, "x": _numbers(RATIOS), "y": _numbers(shares), "area": round(areas[method], 3)}
                    for method, shares in results.standings[budget].shares.items()
                ]
            },
            domain={"linear": (0.0, 1.0)},
        )
        for budget in reversed(results.budgets)
        if (areas := results.standings[budget].areas)
    ]


def ranks(results: Results) -> list[Panel]:
    """Show mean ranks, with half of the critical difference to either side; a panel per budget."""
    panels = []
    for budget in reversed(results.budgets):
        if not (ranking := results.standings[budget].ranking):
            continue
        half = ranking.critical_difference / 2
        rows: list[Row] = [
            {"method": method, "x": [mean], "low": [mean - half], "high": [mean + half]}
            for method, mean in sorted(ranking.mean_rank.items(), key=lambda item: item[1])
        ]
        panels.append(_panel("ranks", trials(budget).capitalize(), {"step": rows}, []))
    return panels


def sensitivity(results: Results) -> list[Panel]:
    """Show the loss over that at the chosen rate, by how far the initial rate is off; none without such runs."""
    rows: list[Row] = [
        {"method": one.method, "x": list(one.factors), "y": _numbers(one.losses)} for one in results.sensitivities
    ]
    rows.sort(key=lambda row: results.methods.index(row["method"]))
    title = "Sensitivity to the initial rate"
    return [_panel("sensitivity", title, {"step": rows}, [y for row in rows for y in row["y"]], "log")] if rows else []


def layers(results: Results) -> list[Panel]:
    """Show the rates per layer of one run per method that has them: means over seeds would hide how a rate moves."""
    panels = []
    for group in results.groups.values():
        run = next((run for run in (*group.finished, *group.runs) if run.record.layers), None)
        if run is None or not (found := run.record.layers):
            continue
        rows: list[Row] = [
            {"method": name, "depth": depth, "x": list(found.step), "y": _numbers(rates)}
            for depth, (name, rates) in enumerate(zip(found.names, found.rates, strict=True))
        ]
        title = f"{group.method}: rate of each layer, seed {run.record.seed}"
        panels.append(_panel("layers", title, {"step": rows}, [y for row in rows for y in row["y"]], "log"))
    return panels


def rates(found: Mapping[str, Sequence[float]], title: str) -> Panel:
    """Show what a schedule answers, query by query, to sequences of losses."""
    rows: list[Row] = [
        {"method": name, "x": list(range(1, len(values) + 1)), "y": _numbers(values)} for name, values in found.items()
    ]
    values = [rate for row in rows for rate in row["y"]]
    return _panel("rate", title, {"step": rows}, values, _fitting("rate", values))


def _reader(curve: Literal["train", "valid"], quantity: str) -> Callable[[Run, Clock], tuple[Vector, Vector]]:
    """Return what gives x and y of a run, null as NaN."""

    def read(run: Run, clock: Clock) -> tuple[Vector, Vector]:
        lists = getattr(run.record, curve)
        x, y = (np.asarray(lists.get(name, ()), dtype=np.float64) for name in (clock, quantity))
        return (x, y) if len(x) == len(y) else (x[:0], y[:0])

    return read


def _curves(
    title: str,
    kind: Kind,
    groups: Sequence[Group],
    read: Callable[[Run, Clock], tuple[Vector, Vector]],
    *,
    fine: bool,
) -> Panel:
    clocks: tuple[Clock, ...] = ("step", "seconds") if fine else ("step",)
    rows: dict[Clock, list[Row]] = {clock: [] for clock in clocks}
    for group in groups:
        for clock in clocks:
            whole = band([read(run, clock) for run in group.finished], FINE if fine else COARSE)
            rows[clock] += [{"method": group.method, **whole}] if whole else []
            lost = [run for run in group.runs if not run.finished]
            shown = lost if fine else lost[:1] if not group.finished else []
            rows[clock] += [line for run in shown if (line := _lost(run, *read(run, clock)))]
    values = [value for row in rows["step"] if "seed" not in row for name in ("low", "high") for value in row[name]]
    values = values or [value for row in rows["step"] for value in row["y"]]
    if kind in ("loss", "rate"):
        return _panel(kind, title, rows, values, _fitting(kind, values), choices=True)
    return _panel(kind, title, rows, values)


def _fitting(kind: Kind, values: Iterable[float | None]) -> Scale:
    """Choose a scale: a loss is read on a log scale where it can be, a rate where methods are far apart."""
    known = [value for value in values if value is not None]
    positive = [value for value in known if value > 0]
    if kind == "loss":
        return "log" if positive and len(positive) >= 0.9 * len(known) else "linear"
    return "log" if positive and max(positive) > 30 * float(np.quantile(positive, 0.25)) else "linear"


def _panel(
    kind: Kind,
    title: str,
    rows: dict[Clock, list[Row]],
    values: Iterable[float | None],
    scale: Scale = "linear",
    *,
    choices: bool = False,
) -> Panel:
    known = [value for value in values if value is not None]
    domain: dict[Scale, tuple[float, float]] = {"linear": _linear_domain(known), "log": _log_domain(known)}
    return Panel(kind=kind, title=title, rows=rows, scale=scale, domain=domain, choices=choices)


def band(curves: Iterable[tuple[Vector, Vector]], points: int) -> Row | None:
    """Give mean, lowest and highest of several seeds over one grid; None where there is nothing to draw.

    The grid is every x that any seed has, thinned to about so many points. Each seed is interpolated linearly between
    its own points. A band starts where the last seed has started; a seed that has ended keeps its last value, which is
    what its owner has from then on. Where a seed is NaN so is all: a mean over the others would flatter.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[grid >= max(x[0] for x, _ in curves)]
    if len(grid) > points:
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, points).round().astype(int))]
    values = np.stack([np.interp(grid, x, y) for x, y in curves])  # (seeds, points)
    return {
        "x": _numbers(grid, 7),
        "y": _numbers(values.mean(axis=0)),
        "low": _numbers(values.min(axis=0)),
        "high": _numbers(values.max(axis=0)),
    }


def _lost(run: Run, x: Vector, y: Vector) -> Row | None:
    """Give the line of a run that did not finish, with a mark at its last finite value."""
    known = np.flatnonzero(np.isfinite(y))
    if not len(known):
        return None
    x, y = x[: known[-1] + 1], y[: known[-1] + 1]
    end = [0] * (len(x) - 1) + [1]
    return {"method": run.method, "seed": run.record.seed, "x": _numbers(x, 7), "y": _numbers(y), "end": end}


def _linear_domain(values: Sequence[float]) -> tuple[float, float]:
    """Give the domain of a linear axis."""
    low, high = _reach(values, 10.0)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 0.5
    return (0.0 if low >= 0 > low - margin else low - margin, high + margin)


def _log_domain(values: Sequence[float]) -> tuple[float, float]:
    """Give the domain of a logarithmic axis, of at most six decades."""
    low, high = _reach([math.log(value) for value in values if value > 0], 2.0)
    low = max(low, high - math.log(1e6))
    margin = 0.05 * (high - low) or 0.1
    return (math.exp(low - margin), math.exp(min(high + margin, 700.0)))


def _reach(values: Sequence[float], outlying: float) -> tuple[float, float]:
    """Give the range without what lies far above nine tenths, so that a run that blew up flattens no other.

    Args:
        values: any number of them.
        outlying: how far is far, in widths of the range of the nine tenths.
    """
    if not values:
        return (0.0, 1.0)
    low, most = min(values), float(np.quantile(values, 0.9))
    return (low, max(value for value in values if value <= most + outlying * (most - low)))


def _numbers(values: Iterable[float | None], digits: int = 4) -> list[float | None]:
    return [None if v is None or not math.isfinite(v) else float(f"{v:.{digits}g}") for v in map(_plain, values)]


def _plain(value: float | None) -> float | None:
    return None if value is None else float(value)
