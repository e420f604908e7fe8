"""``metastep list``: what there is to name."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from metastep.cli import options as o
from metastep.cli.display import say, show


def listing(
    kind: Annotated[
        str | None, typer.Argument(help="Only tasks, schedules, optimizers, methods, experiments or settings.")
    ] = None,
    json: o.Json = False,
) -> None:
    """List what can be named: tasks, schedules, optimizers, methods, experiments, and the settings for --set."""
    from metastep.lab.bench.experiments import EXPERIMENTS
    from metastep.lab.bench.methods import METHODS
    from metastep.lab.bench.names import unknown_name
    from metastep.lab.bench.optimizers import OPTIMIZERS
    from metastep.lab.bench.schedules import SCHEDULES
    from metastep.lab.tasks import describe_tasks
    from metastep.schedules import shipped_schedules

    tables = {
        "tasks": describe_tasks(),
        "schedules": {name: method.summary for name, method in SCHEDULES.items()} | shipped_schedules(),
        "optimizers": {
            name: optimizer.place + (f" (extra {optimizer.extra})" if optimizer.extra else "")
            for name, optimizer in OPTIMIZERS.items()
        },
        "methods": {name: f"{m.summary}; tunes {m.tunes()}" for name, m in METHODS.items()},
        "experiments": {name: experiment.summary for name, experiment in EXPERIMENTS.items()},
        "settings": {name: summary for name, (_, summary) in o.SETTINGS.items()},
    }
    if kind is not None:
        if kind not in tables:
            raise unknown_name("kind", kind, tables)
        tables = {kind: tables[kind]}
    if json:
        o.print_json(tables)
        return
    for title, entries in tables.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(no_wrap=True)
        for name, summary in entries.items():
            table.add_row(f"  [bold]{name}[/bold]", summary)
        show(table)
        say("")
