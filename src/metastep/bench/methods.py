"""Every method of the benchmark, in one table: what it is, what it tunes, where it is from."""

from __future__ import annotations

from metastep.bench.method import Method
from metastep.bench.names import unknown_name
from metastep.bench.table.hyper import hyper
from metastep.bench.table.scheduled import scheduled

__all__ = ["METHODS", "Method", "available", "method_named"]

#: Every method by name. A new one is an entry in a file of ``bench/table``.
METHODS: dict[str, Method] = {method.name: method for rows in (scheduled, hyper) for method in rows()}


def method_named(name: str) -> Method:
    """Return a method of the table.

    Raises:
        ValueError: for an unknown name; it says the nearest.
        ImportError: if the package of the method is not installed; it says which extra brings it.

    Example:
        >>> method_named("adamw/cosine").defaults
        {'lr': 0.001}
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    method = METHODS[name]
    if not method.installed:
        raise ImportError(
            f"method {name} needs the package {method.package}, which is not installed; "
            f"run pip install 'metastep[{method.extra}]'."
        )
    return method


def available(method: Method) -> bool:
    """Whether everything that a method needs is there."""
    return method.installed
