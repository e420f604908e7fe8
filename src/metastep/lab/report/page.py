"""One self-contained HTML page per comparison: it opens from a file, on a phone, in the dark, offline."""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from metastep.files import write_atomically
from metastep.lab.report import palette, tables
from metastep.lab.report.curves import Band, Clock, Series, band, curve, series_of
from metastep.lab.report.records import metric_of
from metastep.lab.report.summary import summarize
from metastep.lab.report.verdict import verdict
from metastep.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from metastep.lab.report.curves import Vector
    from metastep.lab.report.records import Record

_CLOCKS: tuple[Clock, ...] = ("step", "seconds")


def write_page(records: Sequence[Record], path: Path, *, title: str, notes: Sequence[str] = ()) -> Path:
    """Write the report of one comparison as a single HTML file and return its path.

    The file carries its script (plotly), style and numbers, and forbids itself to load anything. It is moved
    into place when it is complete: a page that was there stays until then.

    Args:
        records: runs of one task, as `read_records` returns them.
        path: the file to write.
        title: the heading.
        notes: sentences to show under the verdict, plain text.

    Raises:
        ValueError: ``records`` is empty or mixes tasks.
        ModuleNotFoundError: plotly is not installed.
    """
    rows = summarize(records)
    series = series_of(records)
    order = {row.label: place for place, row in enumerate(rows)}
    series.sort(key=lambda one: order[one.label])
    first = records[0]
    metric = metric_of(first)
    seeds = len({record["seed"] for record in records})
    about = [
        first["task"],
        f"{len(rows)} {_plural(len(rows), 'schedule')}",
        f"{seeds} {_plural(seeds, 'seed')}",
        *_shared(records),
        max(record["created"] for record in records)[:10],
    ]
    lead, *rest = verdict(rows)
    layers = _layers(series)
    page = Template(_text("page.html")).substitute(
        title=escape(title),
        about="".join(f"<li>{escape(word)}</li>" for word in about),
        lead=escape(lead),
        rest=escape(" ".join(rest)),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        metric=metric,
        results=tables.results(rows, series),
        divergences=tables.divergences(series),
        settings=tables.settings(records),
        layers="".join(_layer_panel(place, one) for place, one in enumerate(layers)),
        palette=palette.as_css(),
        style=_text("page.css"),
        plotly=_plotly(),
        data=_as_script({"metric": metric, "series": [_series(one) for one in series], "layers": layers}),
        script=_text("page.js"),
        version=escape(__version__),
    )
    write_atomically(path, page)
    return path


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'plotly must be installed to write a page; pip install "metastep[report]".', name=error.name
        ) from error
    return str(get_plotlyjs())


def _text(name: str) -> str:
    return resources.files("metastep.lab.report").joinpath(name).read_text(encoding="utf-8")


def _shared(records: Sequence[Record]) -> list[str]:
    optimizers = {record["optimizer"] for record in records}
    sizes = {record["batch_size"] for record in records}
    steps = {record["total_steps"] for record in records}
    words = [next(iter(optimizers))] if len(optimizers) == 1 else []
    words += [f"batches of {next(iter(sizes))}"] if len(sizes) == 1 else []
    words += [f"{next(iter(steps)):,} steps"] if len(steps) == 1 else []
    return words


def _series(series: Series) -> dict[str, Any]:
    quantities = ("train_loss", "valid_loss", "valid_metric", "lr")
    return {
        "label": series.label,
        "learned": series.learned,
        "slot": series.slot % len(palette.LIGHT),
        "dash": palette.dash(series.slot),
        "runs": len(series.finished),
        "bands": {
            quantity: {
                clock: _band(band([curve(run, quantity, clock) for run in series.finished])) for clock in _CLOCKS
            }
            for quantity in quantities
        },
        "diverged": [
            {
                "seed": run["seed"],
                "curves": {
                    quantity: {clock: _curve(*curve(run, quantity, clock)) for clock in _CLOCKS}
                    for quantity in quantities
                },
            }
            for run in series.diverged
        ],
    }


def _band(band: Band | None) -> dict[str, Any] | None:
    if band is None:
        return None
    return {name: _numbers(getattr(band, name)) for name in ("x", "mean", "low", "high")}


def _curve(x: Vector, y: Vector) -> dict[str, Any]:
    return {"x": _numbers(x), "y": _numbers(y)}


def _layers(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Return the rates per layer of one run per label: means over seeds would hide how a rate moves."""
    shown = []
    for one in series:
        run = next((run for run in (*one.finished, *one.diverged) if run.get("layers")), None)
        if run is None or not (layers := run.get("layers")):
            continue
        step = np.asarray(layers["step"], dtype=np.float64)
        clock = run["train"]
        seconds = np.interp(step, clock["step"], clock["seconds"]) if clock["step"] else np.full_like(step, np.nan)
        shown.append(
            {
                "label": one.label,
                "seed": run["seed"],
                "names": layers["names"],
                "step": _numbers(step),
                "seconds": _numbers(seconds),
                "rates": [_numbers(np.asarray(rates, dtype=np.float64)) for rates in layers["rates"]],
            }
        )
    return shown


def _layer_panel(place: int, layers: dict[str, Any]) -> str:
    names = "".join(f"<li>{escape(name)}</li>" for name in layers["names"])
    return (
        f'<section class="panel wide"><h3>{escape(layers["label"])}: rate of each layer</h3>'
        f"<p>Seed {layers['seed']}; from the first layer to the last.</p>"
        f'<div class="plot" id="layers-{place}"></div>'
        f"<details><summary>The {len(layers['names'])} layers</summary>"
        f'<ol class="layers">{names}</ol></details></section>'
    )


def _numbers(values: Vector) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _as_script(data: object) -> str:
    """Write JSON that cannot end the script element it stands in."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"
