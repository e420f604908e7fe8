"""How the plots are drawn, by matplotlib; `metastep.lab.report.plots` imports this when a plot is asked for."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from metastep.lab.report import palette
from metastep.lab.report.curves import band, curve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from metastep.lab.report.curves import Band, Series, Vector

_WIDTH, _HEIGHT, _DPI = 8.3, 3.9, 200  # inches; 1660 pixels, twice the width of a README
_INK, _MUTED, _RULE = "#191d23", "#5a636e", "#e2e5ea"
_STYLE: dict[Any, Any] = {  # matplotlib types its keys as one long Literal
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": palette.LIGHT_BACKGROUND,
}
_LINESTYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def comparison(series: Sequence[Series], panels: Sequence[tuple[str, str, str]]) -> bytes:
    """Draw one panel per (quantity, title, scale) side by side, with one legend, and return the PNG."""
    with mpl.rc_context(_STYLE):
        figure = _figure()
        grid = figure.subplots(1, len(panels), squeeze=False)
        for axes, (quantity, title, scale) in zip(grid[0], panels, strict=True):
            _panel(axes, series, quantity, scale)
            axes.set_title(title, pad=8)
        _legend(figure, grid[0][0], [one.label for one in series])
        return _png(figure)


def rates(curves: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]], title: str) -> bytes:
    """Draw rates over queries, those of the reference dashed and underneath, and return the PNG."""
    slots = {name: slot for slot, name in enumerate(dict.fromkeys((*curves, *reference)))}
    with mpl.rc_context(_STYLE):
        figure = _figure()
        axes = figure.add_subplot()
        for name, values in reference.items():
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=palette.colour(slots[name]),
                linestyle=(0, (4, 3)),
                linewidth=1.4,
                label=f"{name} (reference)",
            )
        for name, values in curves.items():
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=palette.colour(slots[name]),
                linewidth=2.4,
                label=name,
            )
        positive = [rate for values in (*curves.values(), *reference.values()) for rate in values if rate > 0]
        if positive and max(positive) > 30 * min(positive):
            _scale(axes, "log")
        axes.set_title(title, pad=10)
        axes.set_xlabel("query")
        axes.set_ylabel("rate")
        axes.margins(x=0.01)
        _legend(figure, axes, [*curves, *(f"{name} (reference)" for name in reference)])
        return _png(figure)


def _panel(axes: Axes, series: Sequence[Series], quantity: str, scale: str) -> None:
    bands = [band([curve(run, quantity, "step") for run in one.finished]) for one in series]
    bottom, top = _ends(bands, log=scale == "log")
    drawn = sorted(zip(series, bands, strict=True), key=lambda pair: pair[0].learned)  # the learned one on top
    for one, whole in drawn:
        _draw(axes, one, whole)
        for run in one.diverged:
            _draw_diverged(axes, one, *curve(run, quantity, "step"), bottom, top)
    _scale(axes, scale)
    axes.set_ylim(bottom, top)
    axes.set_xlabel("steps")
    axes.margins(x=0.01)


def _draw(axes: Axes, series: Series, whole: Band | None) -> None:
    colour = palette.colour(series.slot)
    line = axes.plot(
        [] if whole is None else whole.x,
        [] if whole is None else whole.mean,  # every run diverged: the label keeps its place in the legend
        color=colour,
        linestyle=_LINESTYLES[palette.dash(series.slot)],
        linewidth=2.6 if series.learned else 1.5,
        label=series.label,
    )
    if whole is not None:
        axes.fill_between(whole.x, whole.low, whole.high, color=colour, alpha=0.15, linewidth=0)
        if len(whole.x) == 1:
            line[0].set_marker("o")


def _draw_diverged(axes: Axes, series: Series, x: Vector, y: Vector, bottom: float | None, top: float | None) -> None:
    colour = palette.colour(series.slot)
    axes.plot(x, y, color=colour, linestyle=":", linewidth=1.2)
    known = np.flatnonzero(np.isfinite(y))
    if len(known):
        end = np.clip(y[known[-1]], bottom, top)
        axes.plot(x[known[-1]], end, "x", color=colour, markersize=7, markeredgewidth=2, clip_on=False)


def _ends(bands: Sequence[Band | None], *, log: bool) -> tuple[float | None, float | None]:
    """Return the y range of the finished runs, so that a run that blew up does not flatten the others."""
    reached = np.concatenate([np.concatenate([whole.low, whole.high]) for whole in bands if whole] or [np.empty(0)])
    reached = reached[np.isfinite(reached) & ((reached > 0) | (not log))]
    if not len(reached):
        return None, None
    low, high = float(reached.min()), float(reached.max())
    if log:
        room = max((high / low) ** 0.06, 1.03)
        return low / room, high * room
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    return (0.0 if low >= 0 > low - room else low - room), high + room


def _scale(axes: Axes, scale: str) -> None:
    if scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif scale == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))


def _figure() -> Figure:
    return Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")


def _legend(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    by_name = dict(zip(labels, handles, strict=True))
    figure.legend(
        [by_name[name] for name in names],
        names,
        loc="outside upper left",
        ncols=min(len(names), 5),
        frameon=False,
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
