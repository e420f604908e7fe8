"""Plots as SVG inside a page: sharp in print, coloured by the page's own variables, and without a script."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from metastep.lab.report import palette

if TYPE_CHECKING:
    from collections.abc import Sequence

Scale = Literal["linear", "log"]
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 10.0, 34.0
_DASHES = {"solid": "", "dash": "6 3", "dot": "1.5 3", "dashdot": "6 3 1.5 3"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a plot; a point that is not finite (or, on a log axis, not positive) is a gap.

    Args:
        name: what it is called when pointed at.
        slot: its place in the palette.
        x: values along.
        y: values up.
        lit: whether it has its colour from the beginning; else it is grey, and stands back.
        steps: whether the value stays until the next point.
    """

    name: str
    slot: int
    x: Sequence[float]
    y: Sequence[float]
    lit: bool = True
    steps: bool = False


def plot(
    lines: Sequence[Line],
    *,
    label: str,
    x_label: str,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    y_ends: tuple[float, float] | None = None,
    width: float = 520,
    height: float = 260,
) -> str:
    """Draw lines over axes.

    Args:
        lines: what is drawn; lit ones lie on top.
        label: what the plot shows, for those who do not see it.
        x_label: under the axis.
        x_scale: of the axis along.
        y_scale: of the axis up.
        y_ends: of the axis up; None: what the lines reach, without their highest tenth part if that towers.
        width: in pixels of a plot shown in its own size.
        height: the same.
    """
    across = _Axis.over([x for line in lines for x in line.x], x_scale, _LEFT, width - _RIGHT, tight=True)
    values = [y for line in lines for y in line.y]
    up = _Axis.over(
        list(y_ends) if y_ends else _without_towers(values), y_scale, height - _BOTTOM, _TOP, tight=bool(y_ends)
    )
    drawn = sorted(lines, key=lambda line: line.lit)
    return (
        f'<svg class="figure" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        + "".join(
            f'<path class="grid" d="M{_LEFT:g} {at:.1f}H{width - _RIGHT:g}"/>'
            f'<text class="tick" x="{_LEFT - 6:g}" y="{at + 3.5:.1f}" text-anchor="end">{text}</text>'
            for at, text in up.ticks()
        )
        + "".join(
            f'<text class="tick" x="{at:.1f}" y="{height - _BOTTOM + 15:.1f}" text-anchor="middle">{text}</text>'
            for at, text in across.ticks()
        )
        + f'<text class="axis" x="{(_LEFT + width - _RIGHT) / 2:g}" y="{height - 4:g}" text-anchor="middle">'
        f"{escape(x_label)}</text>" + "".join(_path(line, across, up) for line in drawn) + "</svg>"
    )


def style(slot: int) -> str:
    """Give the colour and the dash of the line in this slot, as CSS variables."""
    return f"--c:var(--line-{slot % len(palette.LIGHT)});--d:{_DASHES[palette.dash(slot)] or 'none'}"


def sample(slot: int) -> str:
    """Draw a short piece of the line in this slot, for a legend."""
    return (
        f'<svg class="sample" width="22" height="8" style="{style(slot)}" aria-hidden="true"><path d="M1 4H21"/></svg>'
    )


def _path(line: Line, across: _Axis, up: _Axis) -> str:
    words, pen_up, before = [], True, 0.0
    for x, y in zip(line.x, line.y, strict=True):
        if not (across.can_show(x) and up.can_show(y)):
            pen_up = True
            continue
        place_x, place_y = across.place(x), up.place(y)
        if pen_up:
            words.append(f"M{place_x:.1f} {place_y:.1f}")
        elif line.steps:
            words.append(f"H{place_x:.1f}V{place_y:.1f}" if place_y != before else f"H{place_x:.1f}")
        else:
            words.append(f"L{place_x:.1f} {place_y:.1f}")
        pen_up, before = False, place_y
    if len(words) == 1:
        words.append("h0.1")  # a single point is a dot
    state = "line lit" if line.lit else "line"
    return (
        f'<path class="{state}" data-m="{line.slot}" style="{style(line.slot)}" d="{"".join(words)}">'
        f"<title>{escape(line.name)}</title></path>"
    )


def _without_towers(values: Sequence[float]) -> list[float]:
    """Leave out what lies far above nine tenths of the values, so that a run that blew up flattens no other."""
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return []
    high = finite[int(0.9 * (len(finite) - 1))]
    limit = high + 1.0 * (high - finite[0])
    return [value for value in finite if value <= limit] or finite


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    scale: Scale
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], scale: Scale, start: float, end: float, *, tight: bool) -> _Axis:
        log = scale == "log"
        usable = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        low, high = (min(usable), max(usable)) if usable else (1.0, 2.0)
        if log:
            low = max(low, high / 1e6)
            room = 1.0 if tight else max((high / low) ** 0.05, 1.02)
            low, high = low / room, high * room
            return cls(low, high if high > low else low * 2, scale, start, end)
        room = 0.0 if tight else 0.05 * (high - low)
        low, high = low - room, high + room
        return cls(low, high if high > low else low + 1, scale, start, end)

    def can_show(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or self.scale == "linear")

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) if self.scale == "log" else v for v in (self.low, self.high, value))
        share = min(max((value - low) / (high - low), 0.0), 1.0)  # what lies outside runs along the edge
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        values = _log_ticks(self.low, self.high) if self.scale == "log" else _linear_ticks(self.low, self.high)
        return [(self.place(value), f"{value:.4g}") for value in values]


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 12) for k in range(first, first + 8) if step * k <= high * (1 + 1e-12)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    if decades < 0.5:
        return _linear_ticks(low, high)
    digits = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0) if decades > 1 else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**power for power in powers for digit in digits]
    inside = [value for value in values if low <= value <= high]
    every = 1 + len(inside) // 8
    return inside[::every]


def thinned(x: Sequence[float], y: Sequence[float], points: int) -> tuple[list[float], list[float]]:
    """Keep about `points` of a curve, always the first and the last."""
    if len(x) <= points:
        return list(x), list(y)
    places = sorted({round(k * (len(x) - 1) / (points - 1)) for k in range(points)})
    return [x[k] for k in places], [y[k] for k in places]
