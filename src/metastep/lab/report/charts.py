"""How every chart is drawn, said once: Altair makes Vega-Lite of it, which the page draws and a picture shows.

For the page a specification holds no rows: they are given when it is shown, so that one serves the panels of all tasks.
It has two parameters: ``selected``, the methods that have their colour (the others are grey), and ``y_domain``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import vl_convert

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from metastep.lab.report.panels import Clock, Kind, Panel, Row, Scale

#: Colours that people with any colour vision can tell apart: the hues of Okabe and Ito (2008), with a contrast of 3 or
#: more against the background. After the eighth line the colours return, dashed.
LIGHT = ("#d1480b", "#0a6fb3", "#0b8a66", "#b0568f", "#a87b00", "#2f9bd0", "#5f6670", "#6b4fb0")
DARK = ("#ff8548", "#4f9fe8", "#2fc795", "#e08fc0", "#e3b53c", "#8fd2ff", "#a3abb5", "#b39ff0")
DASHES = ((1, 0), (6, 3), (2, 2), (8, 2, 2, 2))
_FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Liberation Sans, Arial, sans-serif"
_GREY = "#8b949e"
_IS_SELECTED = "indexof(selected, datum.method) >= 0"


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """What the layers of a chart share.

    Args:
        methods: all that may be there, in the order of their colours.
        clock: what the axis along counts, where it counts time.
        scale: of the axis up.
        domain: of the axis up; None: the page's parameter says them.
        interactive: on the page, which has a legend of its own.
    """

    methods: Sequence[str]
    clock: Clock
    scale: Scale
    domain: tuple[float, float] | None = None
    interactive: bool = True

    def base(self, selected: bool | None = None, condition: str = "") -> Any:
        """Return a chart of the lines that are selected or not (None: of both), of the points that meet a condition."""
        chart = alt.Chart()
        if selected is not None and self.interactive:
            chart = chart.transform_filter(_IS_SELECTED if selected else f"!({_IS_SELECTED})")
        return chart.transform_filter(condition) if condition else chart

    def x(self, title: str | None = None, **scale: Any) -> Any:
        """Return the axis along."""
        named = title or ("seconds of training" if self.clock == "seconds" else "step")
        axis = alt.Axis(grid=False, labelFlush=True, tickCount=6)
        return alt.X("x:Q", title=named, axis=axis, scale=alt.Scale(**{"nice": False, "zero": False} | scale))

    def y(self, field: str = "y", *, form: str | None = None) -> Any:
        """Return the axis up."""
        domain: Any = {"expr": "y_domain"} if self.domain is None else list(self.domain)
        scale = alt.Scale(type=self.scale, domain=domain, clamp=True, nice=False, zero=False)
        named = {"condition": {"test": "datum.label", "value": 1}, "value": 0}  # no grid of ticks without a number
        axis = alt.Axis(format=form or "~g", tickCount=5, gridOpacity=named)
        return alt.Y(f"{field}:Q", title=None, axis=axis, scale=scale)

    def colour(self) -> Any:
        """Return the colour of a method."""
        return alt.Color("method:N", scale=alt.Scale(domain=list(self.methods)), legend=self._legend())

    def dash(self) -> Any:
        """Return the dash of a method's line."""
        dashes = [list(DASHES[place // len(LIGHT) % len(DASHES)]) for place in range(len(self.methods))]
        scale = alt.Scale(domain=list(self.methods), range=dashes)
        return alt.StrokeDash("method:N", scale=scale, legend=self._legend())

    def _legend(self) -> Any:
        if self.interactive:
            return None
        return alt.Legend(
            title=None, orient="top", columns=4, symbolType="stroke", symbolSize=300, symbolOpacity=1, labelLimit=260
        )


def specification(
    kind: Kind,
    clock: Clock,
    scale: Scale,
    methods: Sequence[str],
    *,
    domain: tuple[float, float] | None = None,
    interactive: bool = True,
) -> dict[str, Any]:
    """Return the Vega-Lite of a chart, without its rows.

    Args:
        kind: which chart.
        clock: what the axis along counts, where it counts time.
        scale: of the axis up.
        methods: all that may be there, in the order of their colours.
        domain: of the axis up; None: the parameter ``y_domain`` says them.
        interactive: on the page, with the parameter ``selected`` and no legend; else all lines have their colour.
    """
    frame = _Frame(methods=methods, clock=clock, scale=scale, domain=domain, interactive=interactive)
    draw, lists = _CHARTS[kind]
    chart = alt.layer(*draw(frame), data=alt.NamedData(name="rows"))
    if interactive:
        chart = chart.add_params(alt.param(name="selected", value=[]), alt.param(name="y_domain", value=[0, 1]))
    made: dict[str, Any] = chart.to_dict(validate=False)
    made.pop("config", None)
    rows = kind in ("ranks", "seeds")  # one below the other, a method each
    return made | {"transform": [{"flatten": lists}], "width": "container", "height": {"step": 19} if rows else 250}


def picture(panels: Sequence[Panel], methods: Sequence[str], *, columns: int = 2, form: str = "png") -> bytes:
    """Draw panels beside and below each other, with one legend, on white.

    Args:
        panels: at least one.
        methods: in the order of their colours.
        columns: panels side by side.
        form: "png" or "svg".
    """
    parts = []
    for panel in panels:
        made = specification(
            panel.kind, "step", panel.scale, methods, domain=panel.domain.get(panel.scale), interactive=False
        )
        lists = made["transform"][0]["flatten"]
        rows: list[Row] = [{**{name: [] for name in lists}, **row} for row in panel.rows["step"]]
        parts.append({**made, "data": {"values": rows}, "title": panel.title, "width": 400 if len(panels) > 1 else 680})
    whole = {
        "$schema": parts[0]["$schema"],
        "concat": [{name: value for name, value in part.items() if name != "$schema"} for part in parts],
        "columns": columns,
        "spacing": 28,
        "config": configuration(dark=False) | {"background": "#ffffff"},
        "padding": 16,
    }
    if form == "svg":
        return str(vl_convert.vegalite_to_svg(whole)).encode()
    return bytes(vl_convert.vegalite_to_png(whole, scale=2))


def configuration(*, dark: bool) -> dict[str, Any]:
    """Return colours and type of all charts, for a light or a dark background."""
    ink, muted, rule = ("#e7e9ec", "#9ba4ae", "#2a3039") if dark else ("#191d23", "#5a636e", "#e2e5ea")
    words = {"labelColor": muted, "titleColor": muted, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": 500}
    return {
        "background": "transparent",
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {**words, "gridColor": rule, "domainColor": rule, "tickColor": rule, "labelPadding": 6},
        "axisY": {"domain": False, "ticks": False},
        "legend": {**words, "labelColor": ink, "labelFontSize": 12},
        "title": {"anchor": "start", "color": ink, "fontSize": 13, "fontWeight": 600, "offset": 8},
        "line": {"strokeWidth": 2, "strokeCap": "round", "strokeJoin": "round"},
        "range": {
            "category": list(DARK if dark else LIGHT),
            "ramp": ["#a48ff5", "#35bda8", "#f2cf5b"] if dark else ["#5b3fa8", "#14807f", "#b98500"],
        },
    }


@functools.cache
def javascript() -> str:
    """Return all that draws the charts of a page, as a script that loads nothing."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _curves(frame: _Frame, form: str = ".4g", axis: str = "~g") -> list[Any]:
    """Draw means with their bands; a run that did not finish is dotted and ends in a cross."""
    x, y, colour = frame.x(), frame.y(form=axis), frame.colour()
    named = {"x": frame.clock, "y": "mean", "low": "lowest seed", "high": "highest seed"}
    tip = [
        alt.Tooltip(f"{field}:Q", title=title, format="" if field == "x" else form) for field, title in named.items()
    ]
    whole, lost = frame.base(True, "!isValid(datum.seed)"), frame.base(True, "isValid(datum.seed)")
    return [
        *_unselected(frame, x, y),
        whole.mark_area(opacity=0.14).encode(x, frame.y("low", form=axis), alt.Y2("high:Q"), colour),
        whole.mark_line().encode(x, y, colour, frame.dash()),
        lost.mark_line(strokeWidth=1.3, strokeDash=[1, 4]).encode(x, y, colour, detail="seed:N"),
        lost.transform_filter("datum.end")
        .mark_point(shape="cross", angle=45, filled=True, size=60)
        .encode(x, y, colour),
        frame.base(True).mark_point(opacity=0, size=90).encode(x, y, tooltip=[alt.Tooltip("method:N"), *tip]),
    ]


def _profile(frame: _Frame) -> list[Any]:
    """Draw staircases from factor 1 on."""
    x = frame.x("factor of the best test loss", type="log", domain=[1, 4])
    y, tip = frame.y(form="~%"), [alt.Tooltip("method:N"), alt.Tooltip("area:Q")]
    line = frame.base(True).mark_line(interpolate="step-after")
    return [*_unselected(frame, x, y, "step-after"), line.encode(x, y, frame.colour(), frame.dash(), tooltip=tip)]


def _sensitivity(frame: _Frame) -> list[Any]:
    """Draw lines that are 1 at the chosen rate; an infinite loss is a gap."""
    x, y = frame.x("initial rate over the chosen one", type="log"), frame.y()
    tip = [alt.Tooltip("method:N"), alt.Tooltip("x:Q", title="rate"), alt.Tooltip("y:Q", title="loss", format=".3g")]
    line = frame.base(True).mark_line(point={"filled": True, "size": 40})
    return [*_unselected(frame, x, y), line.encode(x, y, frame.colour(), frame.dash(), tooltip=tip)]


def _ranks(frame: _Frame) -> list[Any]:
    """Draw a method a row: its mean rank, and half of the critical difference to either side."""
    x, y = frame.x("mean rank"), _rows()
    low = frame.x("mean rank").copy()
    low.shorthand = "low:Q"
    colour = alt.condition(_IS_SELECTED, frame.colour(), alt.value(_GREY))
    colour = colour if frame.interactive else frame.colour()
    tip = [alt.Tooltip("method:N"), alt.Tooltip("x:Q", title="mean rank", format=".2f")]
    return [
        frame.base()
        .mark_rule(strokeWidth=5, opacity=0.3, strokeCap="round")
        .encode(low, alt.X2("high:Q"), y, color=colour),
        frame.base().mark_point(filled=True, size=60, opacity=1).encode(x, y, color=colour, tooltip=tip),
    ]


def _seeds(frame: _Frame) -> list[Any]:
    """Draw a method a row: a dot a seed, and a tick at their mean."""
    x = frame.x("test loss", type=frame.scale, padding=8)
    mean = alt.X("mean(x):Q", title="test loss", scale=alt.Scale(type=frame.scale, nice=False, zero=False, padding=8))
    colour, tip = frame.colour(), [alt.Tooltip("method:N"), alt.Tooltip("seed:N"), alt.Tooltip("x:Q", format=".4g")]
    return [
        frame.base().mark_tick(thickness=2, size=15).encode(mean, _rows(), color=colour),
        frame.base().mark_point(filled=True, size=70, opacity=0.6).encode(x, _rows(), color=colour, tooltip=tip),
    ]


def _layers(frame: _Frame) -> list[Any]:
    """Draw a line a layer, coloured from the first to the last."""
    colour = alt.Color("depth:Q", legend=None if frame.interactive else alt.Legend(title="layer"))
    line = frame.base().mark_line(strokeWidth=1.5)
    return [
        line.encode(frame.x(), frame.y(), colour, detail="method:N", tooltip=[alt.Tooltip("method:N", title="layer")])
    ]


def _unselected(frame: _Frame, x: Any, y: Any, interpolate: str = "linear") -> list[Any]:
    """Draw the lines that stand back; none in a picture."""
    if not frame.interactive:
        return []
    line = frame.base(False).mark_line(color=_GREY, opacity=0.3, strokeWidth=1, interpolate=interpolate)
    return [line.encode(x, y, detail=["method:N", "seed:N"], tooltip="method:N")]


def _rows() -> Any:
    return alt.Y("method:N", sort=None, title=None, axis=alt.Axis(grid=True, labelLimit=170))


_BAND = ["x", "y", "low", "high", "end"]
#: By kind: what draws it, and the lists of a row that are flattened to points.
_CHARTS: dict[Kind, tuple[Callable[[_Frame], list[Any]], list[str]]] = {
    "loss": (_curves, _BAND),
    "rate": (_curves, _BAND),
    "number": (_curves, _BAND),
    "share": (lambda frame: _curves(frame, ".2%", "~%"), _BAND),
    "profile": (_profile, ["x", "y"]),
    "sensitivity": (_sensitivity, ["x", "y"]),
    "ranks": (_ranks, ["x", "low", "high"]),
    "seeds": (_seeds, ["x", "seed"]),
    "layers": (_layers, ["x", "y"]),
}
