"""One self-contained HTML page of a comparison or an experiment: it opens from a file, offline, on any screen."""

from __future__ import annotations

import json
from html import escape
from importlib import import_module, resources
from string import Template
from typing import TYPE_CHECKING, Any

from metastep.files import write_atomically
from metastep.lab.report import panels, tables
from metastep.lab.report.verdict import counted, trials, verdict
from metastep.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    from metastep.lab.report.panels import Panel
    from metastep.lab.report.results import Results

#: Methods that have their colour from the beginning; the others are grey until a reader chooses them.
SELECTED = 8

_ONE_TASK = """Mean over the seeds that finished, with half of the range from the lowest to the highest seed; the lowest
mean test loss first, methods with a lost run last. Test data was read once, after training; the best validation loss is
the lowest of each run. A number leads to its records, and a head sorts by its column."""
_MANY_TASKS = """Mean over seeds on the test split, with its 95 % bootstrap interval; bold: best of the task among
methods all of whose runs finished. Area: under the performance profile, 1 is best. Rank: mean over tasks, 1 is best,
with half of the critical difference to either side. Settings were chosen on validation data; test data was read once.
A number leads to its records, and a head sorts by its column."""
_CURVES = """Lines are means over seeds, bands reach from the lowest to the highest seed. A run that did not finish is
dotted and ends in a cross."""
_SECONDS = """Seconds count training alone, without evaluation; there, a run that has ended keeps its last value."""


def write_page(results: Results, path: Path) -> Path:
    """Write the report as a single HTML file and return its path.

    The file carries its script (Vega), style and numbers, and forbids itself to load anything. It is moved into place
    when it is complete: a page that was there stays until then.

    Args:
        results: what is shown.
        path: the file to write.

    Raises:
        ModuleNotFoundError: if Altair or vl-convert is not installed.
    """
    charts = charts_module()
    slots = {method: slot for slot, method in enumerate(results.methods)}
    groups = _chart_groups(results)
    every = [panel for _, _, those in groups for panel in those]
    lead, *rest = verdict(results)
    page = Template(_text("page.html")).substitute(
        title=escape(results.title),
        about="".join(f"<li>{escape(word)}</li>" for word in _about(results)),
        lead=escape(lead),
        rest=escape(" ".join(rest)),
        notes="".join(f"<li>{escape(note)}</li>" for note in results.notes),
        results=_results(results, slots),
        legend=_legend(slots),
        switches=_switches(every),
        charts=_charts(groups),
        sections="".join(_section(*section) for section in _sections(results, slots)),
        palette=_palette(charts.LIGHT, charts.DARK),
        style=_text("page.css"),
        vega=charts.javascript(),
        data=_data(results, groups, charts),
        script=_text("page.js"),
        version=escape(__version__),
    )
    write_atomically(path, page)
    return path


def write_pictures(results: Results, folder: Path, form: str = "png") -> list[Path]:
    """Draw the charts of the page as PNG or SVG files on white, for READMEs and papers, and return their paths.

    On one task: loss, accuracy (or another metric), learning rate; on several: validation loss and learning rate of
    every task, profiles, ranks, and sensitivity where it was measured.

    Args:
        results: what is shown.
        folder: where the files go.
        form: "png" or "svg".

    Raises:
        ModuleNotFoundError: if Altair or vl-convert is not installed.
    """
    by_task = [panels.curves(results, task) for task in results.tasks]
    if results.one_task:
        train, valid, metric, rate = by_task[0]
        files = {"loss": [train, valid], results.metric(results.tasks[0]): [metric], "learning_rate": [rate]}
    else:
        files = {
            "validation_loss": [loss for loss, _ in by_task],
            "learning_rate": [rate for _, rate in by_task],
            "profiles": panels.profiles(results),
            "ranks": panels.ranks(results),
            "sensitivity": panels.sensitivity(results),
        }
    paths = []
    for name, those in files.items():
        if those:
            paths.append(folder / f"{name}.{form}")
            write_atomically(paths[-1], charts_module().picture(those, results.methods, form=form))
    return paths


def write_rate_picture(rates: Mapping[str, Sequence[float]], path: Path, *, title: str) -> Path:
    """Draw what a schedule answers, query by query, to sequences of losses, as a PNG file, and return its path.

    Raises:
        ValueError: if there is no sequence, or an empty one.
        ModuleNotFoundError: if Altair or vl-convert is not installed.
    """
    if not rates or not all(rates.values()):
        raise ValueError("rates must hold at least one sequence and none empty; query the schedule first.")
    write_atomically(path, charts_module().picture([panels.rates(rates, title)], list(rates), columns=1))
    return path


def charts_module() -> ModuleType:
    """Import what draws charts, which nothing else of the package needs.

    Raises:
        ModuleNotFoundError: if Altair or vl-convert is not installed; it names the extra.
    """
    try:
        return import_module("metastep.lab.report.charts")
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("metastep"):
            raise
        raise ModuleNotFoundError(
            f'{error.name} must be installed to draw charts; pip install "metastep[report]".', name=error.name
        ) from error


def _text(name: str) -> str:
    return resources.files("metastep.lab.report").joinpath(name).read_text(encoding="utf-8")


def _about(results: Results) -> list[str]:
    records = [run.record for run in results.runs]
    lost = sum(not run.finished for run in results.runs)
    words = [
        *([results.tasks[0]] if results.one_task else [counted(len(results.tasks), "task")]),
        counted(len(results.methods), "method"),
        counted(len({record.seed for record in records}), "seed"),
        counted(len(records), "run"),
        f"{lost:,} diverged or failed" if lost else "every run finished",
    ]
    if results.one_task:
        said: dict[str, set[Any]] = {
            "{}": {record.optimizer for record in records},
            "batches of {}": {record.batch_size for record in records},
            "{:,} steps": {record.total_steps for record in records},
        }
        words += [text.format(next(iter(values))) for text, values in said.items() if len(values) == 1]
    return [*words, max(record.created for record in records)[:10]]


def _results(results: Results, slots: Mapping[str, int]) -> str:
    parts = []
    for budget in reversed(results.budgets):
        head = f'<h3 class="over">{escape(trials(budget).capitalize())}</h3>' if len(results.budgets) > 1 else ""
        parts.append(head + _scroll(tables.results_table(results, budget).as_html(slots)))
    return f'{"".join(parts)}<p class="small">{_ONE_TASK if results.one_task else _MANY_TASKS}</p>'


def _legend(slots: Mapping[str, int]) -> str:
    return "".join(
        f'<button type="button" value="{slot}" aria-pressed="{"true" if slot < SELECTED else "false"}">'
        f"{tables.sample(slot)}<span>{escape(method)}</span></button>"
        for method, slot in slots.items()
    )


def _switches(every: Sequence[Panel]) -> str:
    kinds = {panel.kind for panel in every if panel.choices}
    switches: dict[str, tuple[str, dict[str, str]]] = {}
    if any("seconds" in panel.rows for panel in every):
        switches["clock"] = ("Over", {"step": "Steps", "seconds": "Seconds"})
    scales = {"": "Fit", "log": "Log", "linear": "Linear"}
    switches |= {kind: (kind.capitalize(), scales) for kind in ("loss", "rate") if kind in kinds}
    return "".join(
        f'<fieldset class="switch"><legend>{head}</legend>'
        + "".join(
            f'<label><input type="radio" name="{name}" value="{value}"{" checked" if not place else ""}>'
            f"<span>{text}</span></label>"
            for place, (value, text) in enumerate(values.items())
        )
        + "</fieldset>"
        for name, (head, values) in switches.items()
    )


def _chart_groups(results: Results) -> list[tuple[str, str, list[Panel]]]:
    """Return the panels in their sections: title, what to know, and the panels."""
    layers = panels.layers(results)
    budget = f"{trials(results.budgets[-1]).capitalize()}. {_CURVES}"
    by_task = [panels.curves(results, task) for task in results.tasks]
    if results.one_task:
        groups = [
            ("Curves", f"{budget} {_SECONDS}", by_task[0]),
            ("Seeds", "A tick is the mean.", [panels.seeds(results)]),
        ]
    else:
        groups = [
            (
                "Performance profiles",
                "The share of tasks on which a method's test loss is within a factor of the best method's. Higher, and"
                " further to the left, is better.",
                panels.profiles(results),
            ),
            (
                "Ranks",
                "Mean over tasks, 1 is best, with half of the critical difference to either side: two methods whose"
                " bars overlap are not told apart (Nemenyi, 5 %).",
                panels.ranks(results),
            ),
            ("Validation loss", budget, [loss for loss, _ in by_task]),
            ("Learning rates", f"{budget} The rate that was really used.", [rate for _, rate in by_task]),
        ]
    text = "Test loss over that at the chosen rate, as the initial rate is multiplied; mean over tasks. Flat is good."
    groups.insert(-2, ("Sensitivity to the initial rate", text, panels.sensitivity(results)))
    groups.append(("Rates of layers", "From the first layer to the last.", layers))
    return [group for group in groups if group[2]]


def _charts(groups: Iterable[tuple[str, str, list[Panel]]]) -> str:
    place, parts = 0, []
    for title, text, those in groups:
        figures = []
        for panel in those:
            heading = f"<figcaption><h3>{escape(panel.title)}</h3></figcaption>" if panel.title != title else ""
            rows = " rows" if panel.kind in ("ranks", "seeds") else ""
            figures.append(
                f'<figure class="panel">{heading}<div class="chart{rows}" id="chart-{place}"></div></figure>'
            )
            place += 1
        many = " many" if len(those) > 4 else ""
        body = f'<p class="small">{escape(text)}</p><div class="panels{many}">{"".join(figures)}</div>'
        parts.append(_section(title, body))
    return "".join(parts)


def _sections(results: Results, slots: Mapping[str, int]) -> list[tuple[str, str]]:
    lost, papers, overheads = tables.lost_runs(results), tables.paper_figures(results), tables.overheads(results)
    records = "".join(
        f'<details id="{tables.anchor(results, key)}"><summary>{escape(" · ".join((key[0], key[1], _trials(key[2]))))}'
        f"</summary>{tables.runs_table(group).as_html()}</details>"
        for key, group in results.groups.items()
    )
    sections = [
        ("Published figures", _scroll(papers.as_html()) if papers else ""),
        ("What each method tunes, and what it found", _found(results)),
        ("Time of a step", _scroll(overheads.as_html(slots)) if overheads else ""),
        ("Diverged and failed", _scroll(lost.as_html()) if lost else ""),
        ("Records", f'<div class="records">{records}</div>'),
        ("Where the runs come from", _scroll(tables.origins(results).as_html())),
    ]
    return [section for section in sections if section[1]]


def _found(results: Results) -> str:
    parts = []
    for method in results.methods:
        found = [table.as_html() for table in tables.found_settings(results, method) if table]
        if found:
            parts.append(f"<details><summary>{escape(method)}</summary>{''.join(found)}</details>")
    return f'<div class="found">{"".join(parts)}</div>' if parts else ""


def _trials(budget: int) -> str:
    return counted(budget, "trial")


def _section(title: str, body: str) -> str:
    name = title.lower().replace(" ", "-").replace(",", "")
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{body}</section>'


def _scroll(table: str) -> str:
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _palette(light: Sequence[str], dark: Sequence[str]) -> str:
    """Return the colours of the lines as CSS variables, following the reader's colour scheme."""
    sets = ("".join(f"--line-{slot}:{value};" for slot, value in enumerate(colours)) for colours in (light, dark))
    return ":root{{{}}}@media (prefers-color-scheme:dark){{:root{{{}}}}}".format(*sets)


def content(results: Results, groups: Iterable[tuple[str, str, list[Panel]]] | None = None) -> dict[str, Any]:
    """Return all numbers of the charts, as the page carries them."""
    return {
        "methods": results.methods,
        "selected": results.methods[:SELECTED],
        "panels": [
            {name: getattr(panel, name) for name in ("kind", "title", "rows", "scale", "domain", "choices")}
            for _, _, those in (_chart_groups(results) if groups is None else groups)
            for panel in those
        ],
    }


def _data(results: Results, groups: Sequence[tuple[str, str, list[Panel]]], charts: Any) -> str:
    """Return all that draws the charts as JSON that cannot end the script element it stands in."""
    ways = {way: None for _, _, those in groups for panel in those for way in panel.specifications}
    data = {
        **content(results, groups),
        "specifications": {"/".join(way): charts.specification(*way, results.methods) for way in ways},
        "configurations": {name: charts.configuration(dark=name == "dark") for name in ("light", "dark")},
    }
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
