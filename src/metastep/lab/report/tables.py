"""The tables of a report, each made once and written as HTML, as Markdown, or for runs as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from metastep.lab.report.verdict import short, trials, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from metastep.lab.report.results import Group, Key, Results, Run
    from metastep.lab.report.scores import Interval

#: A spreadsheet takes a text that begins so for a formula, and may run it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
#: Values of a setting that differs between runs, shown at most.
_MOST = 12


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table.

    Args:
        text: what it says.
        note: what stands smaller behind it, such as an interval.
        warning: what stands in red behind it, such as a count of lost runs.
        kind: "number", "best", "diverged", "failed", or "" for a text.
        link: name of the place on the page that it leads to.
        value: by which rows are sorted.
        method: that this row is of; its colour is shown.
        learned: whether the method is a learned schedule.
    """

    text: str
    note: str = ""
    warning: str = ""
    kind: str = ""
    link: str = ""
    value: float | None = None
    method: str | None = None
    learned: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under heads; a head is a name and what stands smaller under it, such as a unit."""

    heads: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    kind: str = "plain"

    def as_html(self, slots: Mapping[str, int] | None = None) -> str:
        """Return the table as an HTML element; ``slots`` are the places of methods in the palette."""
        heads = "".join(
            f'<th scope="col"><span>{_breakable(name)}</span>{f"<small>{escape(unit)}</small>" if unit else ""}</th>'
            for name, unit in self.heads
        )
        body = "".join(f"<tr>{''.join(_html(cell, slots or {}) for cell in row)}</tr>" for row in self.rows)
        return f'<table class="{self.kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'

    def as_markdown(self) -> str:
        """Return the table as lines of Markdown."""
        heads = [f"{name} ({unit})" if unit else name for name, unit in self.heads]
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
        lines += [
            [" ".join(filter(None, (one.text, one.note and f"[{one.note}]", one.warning))) for one in row]
            for row in self.rows
        ]
        return "\n".join("| " + " | ".join(_in_one_line(part) for part in line) + " |" for line in lines)


def sample(slot: int) -> str:
    """Draw a short piece of the line in this slot of the palette."""
    line = f'<path d="M1 4H21" style="stroke:var(--line-{slot % 8})"/>'
    return f'<svg class="sample d{slot // 8 % 4}" width="22" height="8" aria-hidden="true">{line}</svg>'


def anchor(results: Results, key: Key) -> str:
    """Name the place on the page of the records behind a number."""
    task, method, budget = key
    return f"r-{results.tasks.index(task)}-{results.methods.index(method)}-{budget}"


def results_table(results: Results, budget: int) -> Table:
    """Write what the methods reached: on one task in every respect, on several by task and over all of them."""
    return _one_task(results, budget) if results.one_task else _many_tasks(results, budget)


def _one_task(results: Results, budget: int) -> Table:
    metric = results.metric(results.tasks[0])
    heads = [
        ("method", ""),
        ("test loss", ""),
        (f"test {metric}", "%" if metric == "accuracy" else ""),
        ("best valid. loss", ""),
    ]
    heads += [("rate", "peak → last"), ("training", "seconds"), ("runs", "")]
    best = results.best(results.tasks[0], budget)
    rows = []
    for group in results.ordered(budget):
        link = anchor(results, (group.task, group.method, budget))
        kind = "number best" if group.method == best else "number"
        peak, last = group.peak_rate, group.final_rate
        rates = " → ".join("–" if rate is None else short(rate.mean, 3) for rate in (peak, last))
        rows.append(
            [
                Cell(text=group.method, method=group.method, learned=group.learned),
                _spread(group.test_loss, link=link),
                _spread(group.test_metric, metric, kind=kind, link=link),
                _spread(group.best_valid_loss),
                Cell(text=rates, kind="number", value=peak.mean if peak else None),
                _spread(group.train_seconds, digits=3),
                Cell(text=str(len(group.finished)), kind="number", warning=_lost(group), value=len(group.finished)),
            ]
        )
    return Table(heads=heads, rows=rows, kind="scores")


def _many_tasks(results: Results, budget: int) -> Table:
    standing = results.standings[budget]
    ranks = standing.ranking.mean_rank if standing.ranking else {}
    half = standing.ranking.critical_difference / 2 if standing.ranking else 0.0
    metrics = {task: results.metric(task) for task in results.tasks}
    best = {task: results.best(task, budget) for task in results.tasks}
    heads = [("method", ""), ("area", ""), ("rank", ""), *((task, _UNITS[metric]) for task, metric in metrics.items())]
    rows = []
    for method in sorted(results.methods, key=lambda name: -standing.areas.get(name, -1.0)):
        area, rank = standing.areas.get(method), ranks.get(method)
        groups = {task: results.groups.get((task, method, budget)) for task in results.tasks}
        learned = any(group.learned for group in groups.values() if group)
        row = [
            Cell(text=method, method=method, learned=learned),
            Cell(text="–" if area is None else f"{area:.3f}", kind="number", value=area),
            Cell(
                text="–" if rank is None else f"{rank:.1f}",
                note=f"± {half:.1f}" if rank is not None else "",
                kind="number",
                value=rank,
            ),
        ]
        for task, group in groups.items():
            if group is None:
                row.append(Cell(text="–", kind="number"))
                continue
            shown = group.confidence
            row.append(
                Cell(
                    text="–" if shown is None else number(shown.mean, metrics[task]),
                    note="" if shown is None else interval(shown, metrics[task]),
                    warning=_lost(group),
                    kind="number best" if best[task] == method else "number",
                    link=anchor(results, (task, method, budget)),
                    value=shown.mean if shown else None,
                )
            )
        rows.append(row)
    return Table(heads=heads, rows=rows, kind="scores")


def lost_runs(results: Results) -> Table | None:
    """List what diverged and what failed, by task, method and budget; None where every run finished."""
    rows = []
    for key, group in results.groups.items():
        for status in ("diverged", "failed", "stopped"):
            those = [run for run in group.runs if run.record.status == status]
            if not those:
                continue
            errors = "; ".join(sorted({run.record.error for run in those if run.record.error}))
            far = "; ".join(f"seed {run.record.seed} {_how_far(run)}" for run in those) if results.one_task else ""
            rows.append(
                [
                    Cell(text=group.method, link=anchor(results, key)),
                    Cell(text=group.task),
                    Cell(text=str(group.budget), kind="number"),
                    Cell(text=status, kind=status),
                    Cell(text=f"{len(those)} of {len(group.runs)}", kind="number"),
                    Cell(text=errors or far),
                ]
            )
    heads = [(name, "") for name in ("method", "task", "trials", "what", "runs", "message")]
    return Table(heads=heads, rows=rows) if rows else None


def paper_figures(results: Results) -> Table | None:
    """Write numbers of papers beside ours; None where none is known."""
    rows = []
    for one in results.figures:
        group = results.groups.get((one.task, one.method, results.budgets[-1]))
        ours = group and group.confidence
        here = f"{number(ours.mean, one.metric)} ({interval(ours, one.metric)})" if ours else "not run"
        published = Cell(text=one.value, note="published", kind="number")
        texts = [Cell(text=text) for text in (one.method, one.task, one.metric)]
        rows.append([*texts, published, Cell(text=here, kind="number"), Cell(text=one.citation)])
    heads = [(name, "") for name in ("method", "task", "metric", "paper", "here", "source")]
    return Table(heads=heads, rows=rows) if rows else None


def overheads(results: Results) -> Table | None:
    """Write the time of a step over that of plain SGD; None where that was not run."""
    rows = [
        [Cell(text=method, method=method), Cell(text=f"{value:.2f}", kind="number", value=value)]
        for method, value in results.overheads.items()
    ]
    return (
        Table(heads=[("method", ""), ("time of a step", "over plain SGD")], rows=rows, kind="plain narrow")
        if rows
        else None
    )


def runs_table(group: Group) -> Table:
    """Write the runs behind a number."""
    rows = [
        [
            Cell(text=str(run.record.seed), kind="number"),
            Cell(text=run.record.status, kind="" if run.finished else run.record.status),
            Cell(text="–" if run.loss is None else f"{run.loss:.5g}", kind="number"),
            Cell(text=number(run.record.final.get(group.metric), group.metric), kind="number"),
            Cell(text=f"{run.record.train_seconds:.2f}", kind="number"),
            Cell(text=_plain(run.record.found) if run.record.found else "defaults"),
            Cell(text=run.source),
        ]
        for run in group.runs
    ]
    heads = ("seed", "ended", "test loss", group.metric, "seconds", "settings", "record")
    return Table(heads=[(name, "") for name in heads], rows=rows)


def found_settings(results: Results, method: str) -> tuple[Table | None, Table | None]:
    """Write what a method tunes, over which values, and what was found on each task with the largest budget."""
    groups = [
        group for (_, name, budget), group in results.groups.items() if (name, budget) == (method, results.budgets[-1])
    ]
    tuned = next((run.record.tuned for group in groups for run in group.runs if run.record.tuned), {})
    space = [[Cell(text=name), Cell(text=_plain(values))] for name, values in tuned.items()]
    found = [
        [Cell(text=group.task, link=anchor(results, (group.task, method, group.budget))), Cell(text=texts)]
        for group in groups
        if (texts := "; ".join(dict.fromkeys(_plain(run.record.found) for run in group.runs if run.record.found)))
    ]
    return (
        Table(heads=[("tunes", ""), ("over", "")], rows=space) if space else None,
        Table(heads=[("task", ""), ("found", "")], rows=found) if found else None,
    )


def origins(results: Results) -> Table:
    """Write all that the records say of how they were made.

    What all runs share is said once. What differs is said by method where there is one task, else with how many runs
    each value has.
    """
    flat = [(run, dict(_flatten(_origin(run)))) for run in results.runs]
    rows = []
    for name in dict.fromkeys(name for _, one in flat for name in one):
        values: Counter[str] = Counter(one.get(name, "–") for _, one in flat)
        if len(values) == 1:
            lines = list(values)
        elif results.one_task:
            by_method: dict[str, dict[str, None]] = {}
            for run, one in flat:
                by_method.setdefault(run.method, {})[one.get(name, "–")] = None
            lines = [f"{method}: {', '.join(those)}" for method, those in by_method.items()]
        else:
            lines = [f"{value} ({count} runs)" for value, count in values.most_common(_MOST)]
            lines += [f"and {len(values) - _MOST} others"] if len(values) > _MOST else []
        rows.append([Cell(text=name), Cell(text="\n".join(lines))])
    return Table(heads=[("what", ""), ("value", "")], rows=rows, kind="plain origins")


def as_markdown(results: Results) -> str:
    """Write the verdict, a table per budget, and what was lost."""
    parts = [f"# {_in_one_line(results.title)}", *map(_in_one_line, (" ".join(verdict(results)), *results.notes))]
    for budget in reversed(results.budgets):
        parts += [f"## {trials(budget).capitalize()}", results_table(results, budget).as_markdown()]
    if papers := paper_figures(results):
        parts += ["## Published figures", papers.as_markdown()]
    lost = lost_runs(results)
    parts += ["## Diverged and failed", lost.as_markdown() if lost else "Every run finished."]
    return "\n\n".join(parts) + "\n"


def as_csv(results: Results) -> str:
    """Write a row per run; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ("task", "method", "budget", "seed", "status", "test_loss", "metric", "test_metric", "seconds")
    writer.writerow((*names, "settings", "error", "record"))
    for run in results.runs:
        one, metric = run.record, run.record.metric
        numbers = (one.task, run.method, one.budget, one.seed, one.status, run.loss, metric, one.final.get(metric))
        row = (*numbers, one.train_seconds, json.dumps(one.found), one.error or "", run.source)
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in row])
    return buffer.getvalue()


def number(value: float | None, metric: str) -> str:
    """Write a metric as a reader expects it: an accuracy in per cent, an r2 to 3 places, others to 4 digits."""
    if value is None:
        return "–"
    if metric == "accuracy":
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if metric == "r2" else short(value)


def interval(ends: Interval, metric: str) -> str:
    """Write the two ends of an interval."""
    return f"{number(ends.low, metric)} to {number(ends.high, metric)}"


_UNITS = {"accuracy": "accuracy, %", "perplexity": "perplexity", "r2": "r²"}


def _spread(
    spread: Interval | None, metric: str = "", *, digits: int = 4, kind: str = "number", link: str = ""
) -> Cell:
    """Write a mean and half of the range over seeds."""
    if spread is None:
        return Cell(text="–", kind=kind, link=link)
    factor = 100 if metric == "accuracy" else 1
    mean, half = spread.mean * factor, spread.half_range * factor
    mean_text, half_text = (f"{mean:.2f}", f"{half:.2f}") if factor == 100 else (short(mean, digits), short(half, 2))
    return Cell(text=mean_text, note=f"± {half_text}" if half else "", kind=kind, link=link, value=spread.mean)


def _lost(group: Group) -> str:
    return f"{group.lost}/{len(group.runs)} ✗" if group.lost else ""


def _how_far(run: Run) -> str:
    steps = run.record.train.get("step", [])
    known = [step for step, loss in zip(steps, run.record.train.get("loss", []), strict=False) if loss is not None]
    return f"after step {known[-1]} of {run.record.total_steps}" if known else "before its first logged step"


def _origin(run: Run) -> dict[str, Any]:
    one = run.record
    names = (
        "command",
        "optimizer",
        "batch_size",
        "total_steps",
        "lr",
        "versions",
        "machine",
        "git_revision",
        "settings",
    )
    return {name: getattr(one, name) for name in names} | {"created": one.created[:10]}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, "" if prefix + name == "settings" else f"{prefix}{name}.")
        elif value is not None and value != {}:
            yield prefix + name, _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return json.dumps(value)


def _in_one_line(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _breakable(text: str) -> str:
    """Escape a text, and let a line end after a slash."""
    return escape(text).replace("/", "/<wbr>")


def _html(cell: Cell, slots: Mapping[str, int]) -> str:
    if cell.method is not None:
        mark = sample(slots[cell.method]) if cell.method in slots else ""
        badge = ' <b class="learned">learned</b>' if cell.learned else ""
        return f'<th scope="row">{mark}<span>{_breakable(cell.text)}</span>{badge}</th>'
    text = escape(cell.text).replace("\n", "<br>")
    note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
    warning = f' <b class="diverged">{escape(cell.warning)}</b>' if cell.warning else ""
    inner = f'<a href="#{cell.link}">{text}{note}{warning}</a>' if cell.link else f"{text}{note}{warning}"
    kind = f' class="{cell.kind}"' if cell.kind else ""
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f"<td{kind}{value}>{inner}</td>"
