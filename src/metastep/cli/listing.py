"""``metastep list``: what there is to name."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from metastep.cli import options as o
from metastep.cli.display import say, show


def listing(
    kind: Annotated[str | None, typer.Argument(help="Only tasks, schedules or optimizers.")] = None,
    json: o.Json = False,
) -> None:
    """List the tasks, the schedules (those that ship with the package included) and the optimizers."""
    from metastep.bench.names import unknown_name
    from metastep.bench.optimizers import OPTIMIZERS
    from metastep.bench.schedules import SCHEDULES
    from metastep.schedules import shipped_schedules
    from metastep.tasks import describe_tasks

    tables = {
        "tasks": describe_tasks(),
        "schedules": {name: method.summary for name, method in SCHEDULES.items()} | shipped_schedules(),
        "optimizers": {
            name: optimizer.place + (f" (extra {optimizer.extra})" if optimizer.extra else "")
            for name, optimizer in OPTIMIZERS.items()
        },
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
        for name, summary in entries.items():
            table.add_row(f"  [bold]{name}[/bold]", summary)
        show(table)
        say("")
