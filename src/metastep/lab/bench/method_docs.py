"""The table of methods as Markdown, for the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastep.lab.bench.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from metastep.lab.bench.method import Method

#: The lines between which a page holds the table.
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"


def methods_as_markdown() -> str:
    """Return the methods as tables: one for each base optimizer under schedules, one for each hypergradient optimizer.

    Example:
        >>> "| `adamw/cosine` | half a cosine to zero | lr 1e-5 .. 0.1, log (1e-3) |" in methods_as_markdown()
        True
    """
    groups: dict[str, list[Method]] = {}
    for method in METHODS.values():
        groups.setdefault(_title(method), []).append(method)
    parts = [line for title, methods in groups.items() for line in (f"### {title}", "", *_table(methods), "")]
    return "\n".join(parts)


def _title(method: Method) -> str:
    first, found, _ = method.name.partition("/")
    return f"`{first}`" if found else "By themselves"


def _table(methods: Iterable[Method]) -> Iterator[str]:
    yield "| method | what it is | tunes (default) | source | needs |"
    yield "|---|---|---|---|---|"
    for method in methods:
        needs = "cannot be run" if method.missing else "" if method.package is None else f"`{method.package}`"
        yield f"| `{method.name}` | {method.summary} | {method.tunes()} | {method.source} | {needs} |"
