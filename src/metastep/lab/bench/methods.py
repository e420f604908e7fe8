"""Every method of the benchmark, in one table: what it is, what it tunes, where it is from."""

from __future__ import annotations

from importlib.util import find_spec

from metastep.lab.bench.method import Method
from metastep.lab.bench.names import unknown_name
from metastep.lab.bench.optimizers import missing_package
from metastep.lab.bench.schedules import schedule_is_there
from metastep.lab.bench.table.hyper import hyper
from metastep.lab.bench.table.learned import learned
from metastep.lab.bench.table.neighbours import neighbours
from metastep.lab.bench.table.packages import packages
from metastep.lab.bench.table.scheduled import scheduled

__all__ = ["METHODS", "Method", "available", "method_named"]

#: Every method by name. A new one is an entry in a file of ``bench/table``.
METHODS: dict[str, Method] = {
    method.name: method for rows in (scheduled, learned, hyper, neighbours, packages) for method in rows()
}


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
