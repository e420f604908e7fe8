"""One self-contained HTML page for a whole experiment: methods by tasks, curves, and every record."""

from __future__ import annotations

from html import escape
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from metastep.files import write_atomically
from metastep.lab.report import experiment_figures as figures
from metastep.lab.report import experiment_tables as tables
from metastep.lab.report import palette
from metastep.lab.report.vector import sample
from metastep.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from metastep.lab.report.experiment import Experiment


def write_experiment_page(experiment: Experiment, path: Path) -> Path:
    """Write the report of an experiment as a single HTML file and return its path.

    Figures are drawn as SVG, so that the page needs no script to be read or printed; its few lines of script light up
    methods and open the records that a number links to. It loads nothing.

    Args:
        experiment: what is shown.
        path: the file to write; it is moved into place when it is complete.
    """
    slots = {method: slot for slot, method in enumerate(experiment.methods)}
    largest = experiment.budgets[-1]
    page = Template(_text("experiment.html")).substitute(
        title=escape(experiment.title),
        about="".join(f"<li>{escape(word)}</li>" for word in _about(experiment)),
        notes="".join(f"<li>{escape(note)}</li>" for note in (*experiment.scores.remarks, *experiment.notes)),
        legend="".join(
            f'<button type="button" data-m="{slot}" aria-pressed="{"true" if slot < figures.LIT else "false"}">'
            f"{sample(slot)}<span>{escape(method)}</span></button>"
            for method, slot in slots.items()
        ),
        results="".join(_results(experiment, budget, slots) for budget in reversed(experiment.budgets)),
        profiles=_profiles(experiment, slots),
        sensitivity=_sensitivity(experiment, slots),
        curves=_panels(experiment, largest, slots, "losses"),
        rates=_panels(experiment, largest, slots, "rates"),
        budget=escape(figures.trials(largest).capitalize()),
        found=tables.found(experiment, largest),
        failures=_scroll(tables.failures(experiment)),
        published=_optional("published", "Published figures", tables.published(experiment)),
        overheads=_optional("overhead", "Time of a step", tables.overheads(experiment, slots)),
        records=tables.records(experiment),
        origins=tables.origins(experiment.cells),
        palette=palette.as_css(),
        style=_text("page.css") + _text("experiment.css"),
        script=_text("experiment.js"),
        version=escape(__version__),
    )
    write_atomically(path, page)
    return path


def _about(experiment: Experiment) -> list[str]:
    runs = experiment.cells
    counts = {
        "method": len(experiment.methods),
        "task": len(experiment.tasks),
        "seed": len({cell.seed for cell in runs}),
        "run": len(runs),
    }
    lost = sum(cell.status != "finished" for cell in runs)
    return [
        *(f"{count:,} {word if count == 1 else f'{word}s'}" for word, count in counts.items()),
        f"{lost:,} diverged or failed",
    ]


def _results(experiment: Experiment, budget: int, slots: Mapping[str, int]) -> str:
    table = tables.results(experiment, budget, slots)
    return f'<h3 class="over">{escape(figures.trials(budget).capitalize())}</h3>{_scroll(table)}'


def _profiles(experiment: Experiment, slots: Mapping[str, int]) -> str:
    return "".join(
        f'<figure class="panel"><figcaption><h3>{escape(figures.trials(budget).capitalize())}</h3></figcaption>'
        f"{figures.profiles(experiment, budget, slots)}</figure>"
        for budget in reversed(experiment.budgets)
    )


def _sensitivity(experiment: Experiment, slots: Mapping[str, int]) -> str:
    if not experiment.scores.sensitivities:
        return ""
    text = "Test loss over that at the chosen rate, as the initial rate is multiplied; mean over tasks. Flat is good."
    figure = f'<figure class="panel one">{figures.sensitivity(experiment, slots)}</figure>'
    return _optional("sensitivity", "Sensitivity to the initial rate", f'<p class="small">{text}</p>{figure}')


def _panels(experiment: Experiment, budget: int, slots: Mapping[str, int], which: str) -> str:
    draw = figures.losses if which == "losses" else figures.rates
    return "".join(
        f'<figure class="panel"><figcaption><h3>{escape(task)}</h3></figcaption>'
        f"{draw(experiment, task, budget, slots)}</figure>"
        for task in experiment.tasks
    )


def _optional(name: str, title: str, content: str) -> str:
    """Give a section, or nothing where there is nothing to show."""
    if not content:
        return ""
    body = _scroll(content) if content.startswith("<table") else content
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{body}</section>'


def _scroll(table: str) -> str:
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _text(name: str) -> str:
    return resources.files("metastep.lab.report").joinpath(name).read_text(encoding="utf-8")
