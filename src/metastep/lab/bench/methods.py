"""Every method of the benchmark, in one table: what it is, what it tunes, where it is from.

The command line, the table of the documentation and the contract tests are made from this table.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from metastep.lab.bench.method import Method
from metastep.lab.bench.names import unknown_name
from metastep.lab.bench.optimizers import missing_package
from metastep.lab.bench.schedules import schedule_is_there
from metastep.lab.bench.table.baselines import baselines
from metastep.lab.bench.table.hyper import hyper
from metastep.lab.bench.table.scheduled import scheduled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["METHODS", "Method", "available", "method_named", "methods_as_markdown"]


def _by_name(methods: Iterable[Method]) -> dict[str, Method]:
    found: dict[str, Method] = {}
    for method in methods:
        if method.name in found:
            raise ValueError(f"name must be of one method only, got {method.name} twice; rename one of them.")
        found[method.name] = method
    return found


#: Every method by name. A new one is a row in the file of its kind in ``bench/table``.
METHODS: dict[str, Method] = _by_name([*scheduled(), *hyper(), *baselines()])


def method_named(name: str) -> Method:
    """Return a method of the table that can be run here.

    Raises:
        ValueError: for an unknown name; it says the nearest.
        ImportError: if the package of the method is not installed; it says which extra brings it. Also for a method
            that cannot be run anywhere; it says why.
        FileNotFoundError: if the schedule of the method is not there.

    Example:
        >>> method_named("adamw/cosine").defaults
        {'lr': 0.001}
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    method = METHODS[name]
    if method.missing:
        raise ImportError(f"method {name} cannot be run: {method.missing}")
    if method.package is not None and not _installed(method.package):
        raise missing_package(f"method {name}", method.package, method.extra)
    if not schedule_is_there(method.schedule):
        raise FileNotFoundError(f"method {name} needs the schedule {method.schedule}, which is not there.")
    return method


def available(method: Method) -> bool:
    """Whether everything that a method needs is there. Nothing is imported to see.

    Example:
        >>> available(METHODS["sgd/constant"])
        True
    """
    present = method.package is None or _installed(method.package)
    return not method.missing and present and schedule_is_there(method.schedule)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a None in sys.modules
        return False


# ---- the table as Markdown, for the documentation

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
