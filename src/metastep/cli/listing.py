"""``metastep list``: what there is to name."""

from __future__ import annotations

from shutil import get_terminal_size
from textwrap import shorten, wrap
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from metastep.cli import options as o
from metastep.cli.display import say, show

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Longer lists are shown as names alone, by what stands before the slash; a group that is too long is cut to so many
#: letters. Of methods there are too many for more than a line a group.
_LINES, _LETTERS, _FEWER = 18, {"methods": 60}, 40


def listing(
    kind: Annotated[
        str | None, typer.Argument(help="Only tasks, schedules, optimizers, methods, experiments or settings.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every name, with what it is.")] = False,
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
    elif kind is None and not everything:
        show(_rows(((title, f"{len(each)}: {', '.join(each)}") for title, each in tables.items()), whole=False))
        say("\nOne kind: metastep list tasks. With what each is: metastep list tasks --all.")
    else:
        for title, entries in tables.items():
            say(title)
            if everything:
                show(_rows(entries.items()))
            elif len(entries) <= _LINES:
                show(_rows(entries.items(), whole=False))
            else:
                groups, alone = _by_group(entries, _LETTERS.get(title, 100))
                if groups:
                    show(_rows(groups))
                width = max(get_terminal_size().columns - 1, _FEWER)
                for line in wrap(", ".join(alone), width - 2, break_on_hyphens=False):
                    say(f"  {line}")
            if not everything:
                say(f"\nWith what each is: metastep list {title} --all.")


def _rows(entries: Iterable[tuple[str, str]], *, whole: bool = True) -> Table:
    """Names and what they are; each on one line, cut at the end of the screen, unless ``whole``."""
    rows = list(entries)
    room = get_terminal_size().columns - max(len(name) for name, _ in rows) - 4
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    for name, text in rows:
        shown = text if whole else shorten(text, max(room, 20), placeholder=" ...")
        table.add_row(f"  [bold]{escape(name)}[/bold]", escape(shown))  # a summary may hold what looks like markup
    return table


def _by_group(entries: Iterable[str], letters: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Names by what stands before their slash, and those that stand alone."""
    groups: dict[str, list[str]] = {}
    for name in entries:
        group, slash, rest = name.partition("/")
        groups.setdefault(group + slash, []).append(rest)
    alone = [group + names[0] for group, names in groups.items() if len(names) == 1]
    return [(group, _some(names, letters)) for group, names in groups.items() if len(names) > 1], alone


def _some(names: list[str], letters: int) -> str:
    """Give all names if they are short, or else the first, and how many there are."""
    text = ", ".join(names)
    if len(text) <= letters:
        return text
    some = names[:3]
    while len(", ".join(some)) > _FEWER and len(some) > 1:
        some.pop()
    return f"{', '.join(some)}, ... {len(names)} in all"
