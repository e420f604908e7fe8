"""The tables of an experiment as HTML; every number links to the records that it comes from."""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Any

from metastep.lab.report.experiment import better_is_higher
from metastep.lab.report.vector import sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from metastep.lab.report.experiment import Cell, Experiment, Interval, Key


def anchor(experiment: Experiment, key: Key) -> str:
    """Give the place on the page of the records behind a number."""
    task, method, budget = key
    return f"r-{experiment.tasks.index(task)}-{experiment.methods.index(method)}-{budget}"


def number(value: float, metric: str) -> str:
    """Write a metric as a reader expects it: an accuracy in per cent, an r2 to 3 places, others to 4 digits."""
    if metric == "accuracy":
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if metric == "r2" else f"{value:#.4g}".rstrip(".")


def results(experiment: Experiment, budget: int, slots: Mapping[str, int]) -> str:
    """Write methods by tasks: the test metric with its interval, and what the methods score over all tasks."""
    tasks, groups, scores = experiment.tasks, experiment.groups, experiment.scores
    metrics = {task: experiment.metric(task) for task in tasks}
    best = {task: _best(experiment, task, budget) for task in tasks}
    areas = {one.method: one.area for one in scores.profiles if one.budget == budget}
    places = {task: place for place, task in enumerate(tasks)}
    rows = []
    for method in sorted(slots, key=lambda name: (-areas.get(name, -1.0), slots[name])):
        cells = []
        for task in tasks:
            key = (task, method, budget)
            runs = groups.get(key, [])
            content = _cell(scores.qualities.get(key), runs, metrics[task])
            if runs:
                where = f"#r-{places[task]}-{slots[method]}-{budget}"
                content = f'<a href="{where}">{content}</a>'
            cells.append(f'<td class="best">{content}</td>' if best[task] == method else f"<td>{content}</td>")
        area = f"{areas[method]:.3f}" if method in areas else "–"
        rank = scores.ranks.get((method, budget))
        ranks = "–" if rank is None else f"{rank.mean:.1f} <small>± {(rank.high - rank.low) / 2:.1f}</small>"
        head = f'<th scope="row">{sample(slots[method])}<span>{_breakable(method)}</span></th>'
        rows.append(f"<tr>{head}<td>{area}</td><td>{ranks}</td>{''.join(cells)}</tr>")
    heads = "".join(
        f'<th scope="col"><span>{escape(task).replace("/", "/<wbr>")}</span><small>{_unit(metrics[task])}</small></th>'
        for task in tasks
    )
    return (
        '<table class="scores"><thead><tr><th scope="col">method</th><th scope="col">area</th>'
        f'<th scope="col">rank</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def found(experiment: Experiment, budget: int) -> str:
    """Write what each method tunes, and the settings found, by task."""
    rows = []
    groups = experiment.groups
    for method in experiment.methods:
        cells = [cell for cell in experiment.cells if cell.method == method and cell.budget == budget]
        if not cells:
            continue
        tuned = next((cell.tuned for cell in cells if cell.tuned), {})
        space = "".join(f"<dt>{escape(name)}</dt><dd>{escape(values)}</dd>" for name, values in tuned.items())
        lines = "".join(
            f'<dt><a href="#{anchor(experiment, (task, method, budget))}">{escape(task)}</a></dt>'
            f"<dd>{escape(_settings(groups[task, method, budget]))}</dd>"
            for task in experiment.tasks
            if (task, method, budget) in groups
        )
        over = f"<p>Tunes:</p><dl>{space}</dl>" if space else "<p>Tunes nothing.</p>"
        rows.append(f"<details><summary>{escape(method)}</summary>{over}<p>Found:</p><dl>{lines}</dl></details>")
    return "".join(rows)


def failures(experiment: Experiment) -> str:
    """List what diverged and what failed, by task, method and budget."""
    rows = []
    for key, cells in experiment.groups.items():
        for status in ("diverged", "failed"):
            those = [cell for cell in cells if cell.status == status]
            if not those:
                continue
            task, method, budget = key
            errors = "; ".join(sorted({cell.error for cell in those if cell.error}))
            rows.append(
                f'<tr><td><a href="#{anchor(experiment, key)}">{escape(method)}</a></td><td>{escape(task)}</td>'
                f'<td class="number">{budget}</td><td class="{status}">{status}</td>'
                f'<td class="number">{len(those)} of {len(cells)}</td><td>{escape(errors)}</td></tr>'
            )
    if not rows:
        return "<p>Every run finished.</p>"
    heads = ("method", "task", "trials", "what", "runs", "message")
    return _table("plain", heads, rows)


def published(experiment: Experiment) -> str:
    """Write figures of papers beside ours; nothing where none is known."""
    if not experiment.published:
        return ""
    rows = []
    for one in experiment.published:
        budget = experiment.budgets[-1]
        ours = experiment.scores.qualities.get((one.task, one.method, budget))
        here = "not run" if ours is None else _interval(ours, one.metric)
        rows.append(
            f"<tr><td>{escape(one.method)}</td><td>{escape(one.task)}</td><td>{escape(one.metric)}</td>"
            f'<td class="number">{escape(one.value)} <b class="published">published</b></td>'
            f'<td class="number">{here}</td><td>{escape(one.citation)}</td></tr>'
        )
    return _table("plain", ("method", "task", "metric", "paper", "here", "source"), rows)


def overheads(experiment: Experiment, slots: Mapping[str, int]) -> str:
    """Write the time of a step over that of plain SGD."""
    rows = [
        f'<tr><td>{sample(slots[name])}{escape(name)}</td><td class="number">{value:.2f}</td></tr>'
        for name, value in sorted(experiment.scores.overheads.items(), key=lambda item: item[1])
        if name in slots
    ]
    return _table("plain narrow", ("method", "time of a step / plain SGD"), rows) if rows else ""


def records(experiment: Experiment) -> str:
    """Write every run, grouped as the numbers above are; closed until a link leads there."""
    methods = {name: place for place, name in enumerate(experiment.methods)}
    tasks = {name: place for place, name in enumerate(experiment.tasks)}
    parts = []
    for (task, method, budget), cells in experiment.groups.items():
        metric = cells[0].metric
        rows = "".join(_record(cell) for cell in cells)
        heads = "".join(
            f"<th>{name}</th>" for name in ("seed", "ended", "test loss", metric, "seconds", "settings", "record")
        )
        parts.append(
            f'<details id="r-{tasks[task]}-{methods[method]}-{budget}"><summary>{escape(task)} · {escape(method)} · '
            f"{budget} {'trial' if budget == 1 else 'trials'}</summary>"
            f'<table class="plain"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></details>'
        )
    return "".join(parts)


def origins(cells: Sequence[Cell]) -> str:
    """Write where the runs come from: versions, machines, revisions and commands, with how many runs each."""
    names = dict.fromkeys(name for cell in cells for name in cell.origin)
    rows = []
    for name in names:
        counts = Counter(_plain(cell.origin[name]) for cell in cells if name in cell.origin)
        values = "<br>".join(
            escape(value) + (f" ({count} runs)" if len(counts) > 1 else "") for value, count in counts.most_common(12)
        )
        more = f"<br>and {len(counts) - 12} others" if len(counts) > 12 else ""
        rows.append(f"<tr><th scope='row'>{escape(name)}</th><td>{values}{more}</td></tr>")
    return f'<table class="plain origins"><tbody>{"".join(rows)}</tbody></table>'


def _record(cell: Cell) -> str:
    loss = "–" if cell.loss is None else f"{cell.loss:.5g}"
    quality = "–" if cell.quality is None else number(cell.quality, cell.metric)
    return (
        f'<tr><td class="number">{cell.seed}</td><td class="{cell.status}">{cell.status}</td>'
        f'<td class="number">{loss}</td><td class="number">{quality}</td><td class="number">{cell.seconds:.2f}</td>'
        f"<td>{escape(_plain(cell.found))}</td><td><code>{escape(cell.source)}</code></td></tr>"
    )


def _cell(interval: Interval | None, runs: Sequence[Cell], metric: str) -> str:
    lost = sum(cell.status != "finished" for cell in runs)
    bad = (
        f' <b class="diverged" title="{lost} of {len(runs)} runs did not finish">{lost}/{len(runs)} ✗</b>'
        if lost
        else ""
    )
    if interval is None:
        return bad.strip() or "–"
    return _interval(interval, metric) + bad


def _interval(interval: Interval, metric: str) -> str:
    mean, low, high = (number(value, metric) for value in (interval.mean, interval.low, interval.high))
    return f"{mean} <small>{low} to {high}</small>"


def _best(experiment: Experiment, task: str, budget: int) -> str | None:
    means = {
        method: interval.mean
        for (of, method, trials), interval in experiment.scores.qualities.items()
        if of == task
        and trials == budget
        and all(cell.status == "finished" for cell in experiment.groups.get((of, method, trials), ()))
    }
    if not means:
        return None
    choose = max if better_is_higher(experiment.metric(task)) else min
    return choose(means, key=lambda method: means[method])


def _breakable(name: str) -> str:
    """Let a line end after a slash."""
    return escape(name).replace("/", "/<wbr>")


def _unit(metric: str) -> str:
    return {"accuracy": "accuracy, %", "perplexity": "perplexity", "r2": "r²"}.get(metric, metric)


def _settings(cells: Sequence[Cell]) -> str:
    """Give the settings of the seeds, once where all share them."""
    return "; ".join(dict.fromkeys(_plain(cell.found) for cell in cells)) or "defaults"


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if hasattr(value, "items"):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return json.dumps(value)


def _table(kind: str, heads: Sequence[str], rows: Iterable[str]) -> str:
    columns = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return f'<table class="{kind}"><thead><tr>{columns}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
