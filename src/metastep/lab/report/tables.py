"""The parts of the page that are text: results, settings, and what happened to runs that diverged."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

from metastep.lab.report import palette
from metastep.lab.report.curves import curve
from metastep.lab.report.verdict import short

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from metastep.lab.report.curves import Series
    from metastep.lab.report.records import Record
    from metastep.lab.report.summary import Spread, SummaryRow

_STRIP_WIDTH, _STRIP_HEIGHT, _DOT = 108, 20, 4.5
_COLUMNS = (
    "Schedule",
    "Test loss",
    "Each seed",
    "{Metric}",
    "Best valid. loss",
    "Peak → final rate",
    "Seconds",
)


def results(rows: Sequence[SummaryRow], series: Sequence[Series]) -> str:
    """Return the table of results as HTML, in the order of ``rows``."""
    slots = {one.label: one.slot for one in series}
    metric = f"Test {rows[0].metric}"
    heads = [
        f'<th scope="col"><button type="button">{name.format(Metric=metric)}</button></th>'
        if name != "Each seed"
        else f'<th scope="col">{name}</th>'
        for name in (*_COLUMNS, "Runs")
    ]
    low, high = _strip_ends(rows)
    body = "".join(_result(row, slots[row.label], low, high) for row in rows)
    return f'<table id="results"><thead><tr>{"".join(heads)}</tr></thead><tbody>{body}</tbody></table>'


def _result(row: SummaryRow, slot: int, low: float, high: float) -> str:
    label = escape(row.label)
    mark = f'<i class="mark" style="background:var(--line-{slot % len(palette.LIGHT)})"></i>'
    learned = ' <span class="badge learned">learned</span>' if row.learned else ""
    runs = f"{row.finished}" if not row.diverged else f"{row.finished} of {row.seeds}"
    diverged = f' <span class="badge diverged">{row.diverged} diverged</span>' if row.diverged else ""
    percent = row.metric == "accuracy"
    return (
        f"<tr{' class=learned' if row.learned else ''}>"
        f'<th scope="row" data-value="{label}">{mark}<span>{label}</span>{learned}</th>'
        f"{_cell(row.test_loss)}"
        f"<td>{_strip(row, slot, low, high)}</td>"
        f"{_cell(row.test_metric, percent=percent)}{_cell(row.best_valid_loss)}"
        f"{_rates(row.peak_rate, row.final_rate)}{_cell(row.train_seconds, digits=3)}"
        f'<td data-value="{row.finished}">{runs}{diverged}</td></tr>'
    )


def _cell(spread: Spread | None, *, percent: bool = False, digits: int = 4) -> str:
    if spread is None:
        return '<td class="none" data-value="">–</td>'
    if percent:
        mean, around, unit = f"{100 * spread.mean:.2f}", f"{100 * spread.half_range:.2f}", " %"
    else:
        mean, around, unit = short(spread.mean, digits), short(spread.half_range, 2), ""
    around = "" if spread.n == 1 or not spread.half_range else f' <span class="around">± {around}</span>'
    return f'<td data-value="{spread.mean!r}" title="{_range(spread)}">{mean}{around}{unit}</td>'


def _rates(peak: Spread | None, final: Spread | None) -> str:
    """Return one cell for both rates, sorted by the peak; the ranges over seeds stand in its title."""
    if peak is None and final is None:
        return _cell(None)
    title = "; ".join(f"{name} {_range(rate)}" for name, rate in (("peak", peak), ("final", final)) if rate)
    shown = " → ".join("–" if rate is None else short(rate.mean, 3) for rate in (peak, final))
    return f'<td data-value="{"" if peak is None else repr(peak.mean)}" title="{title}">{shown}</td>'


def _range(spread: Spread) -> str:
    return f"{short(spread.low)} to {short(spread.high)}, {spread.n} {'run' if spread.n == 1 else 'runs'}"


def _strip_ends(rows: Sequence[SummaryRow]) -> tuple[float, float]:
    losses = [loss for row in rows for loss in row.test_losses.values()]
    return (min(losses), max(losses)) if losses else (0.0, 0.0)


def _strip(row: SummaryRow, slot: int, low: float, high: float) -> str:
    if not row.test_losses:
        return ""
    bend = math.log if low > 0 else float
    width = bend(high) - bend(low)

    def place(loss: float) -> float:
        return _DOT + (_STRIP_WIDTH - 2 * _DOT) * ((bend(loss) - bend(low)) / width if width else 0.5)

    colour = f"var(--line-{slot % len(palette.LIGHT)})"
    dots = "".join(
        f'<circle cx="{place(loss):.1f}" cy="{_STRIP_HEIGHT / 2}" r="{_DOT}">'
        f"<title>seed {seed}: {short(loss)}</title></circle>"
        for seed, loss in sorted(row.test_losses.items())
    )
    return (
        f'<svg class="strip" width="{_STRIP_WIDTH}" height="{_STRIP_HEIGHT}" style="--mark:{colour}"'
        ' role="img" aria-label="test loss of each seed">'
        f'<path d="M0 {_STRIP_HEIGHT / 2}H{_STRIP_WIDTH}"/>{dots}</svg>'
    )


def divergences(series: Sequence[Series]) -> str:
    """Return one list item per run that diverged, saying how far it came."""
    return "".join(
        f"<li>{escape(one.label)}, seed {run['seed']}, diverged{_how_far(run)}:"
        " dotted in the plots, ending in a cross.</li>"
        for one in series
        for run in one.diverged
    )


def _how_far(run: Record) -> str:
    steps, losses = curve(run, "train_loss", "step")
    known = [int(step) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)]
    return f" after step {known[-1]} of {run['total_steps']}" if known else " before its first logged step"


def settings(records: Sequence[Record]) -> str:
    """Return everything that the records say about how they were made, as HTML rows.

    What all runs share is said once; what differs is said per label, and per seed only where it must be.
    """
    flat = [dict(_flatten(_described(record))) for record in records]
    names = list(dict.fromkeys(name for one in flat for name in one))
    rows = []
    for name in names:
        values = [one.get(name, "–") for one in flat]
        if len(set(values)) == 1:
            shown = f"<code>{escape(values[0])}</code>"
        else:
            shown = _by_label([record["label"] for record in records], values)
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{shown}</td></tr>')
    return "".join(rows)


def _by_label(labels: Sequence[str], values: Sequence[str]) -> str:
    groups: dict[str, list[str]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(label, []).append(value)
    items = "".join(
        f"<dt>{escape(label)}</dt><dd><code>{escape(', '.join(dict.fromkeys(group)))}</code></dd>"
        for label, group in groups.items()
    )
    return f"<dl>{items}</dl>"


def _described(record: Record) -> dict[str, Any]:
    names = (
        "command",
        "task",
        "optimizer",
        "batch_size",
        "total_steps",
        "lr",
        "versions",
        "machine",
        "git_revision",
    )
    return {
        **{name: record[name] for name in names},  # type: ignore[literal-required]
        "settings": record["settings"],
        "train_seconds": short(record["train_seconds"], 3),
        "eval_seconds": short(record["eval_seconds"], 3),
        "created": record["created"],
    }


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, "" if prefix + name == "settings" else f"{prefix}{name}.")
        else:
            yield prefix + name, "none" if value is None else str(value)
