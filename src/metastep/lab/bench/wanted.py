"""Which records a plan wants, and the cells that make them."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from metastep.lab.bench.cells import RunCell, SearchCell
from metastep.lab.bench.method import LR
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.plans import Plan
from metastep.lab.bench.tuning import Trial, winner

#: The trials of every search, by task and method.
Found = Mapping[tuple[str, str], Sequence[Trial]]


class Place(NamedTuple):
    """What a record is of; an experiment has one record a place."""

    task: str
    method: str
    budget: int
    seed: int
    rate_factor: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Place":
        """The place of a record."""
        return cls(*(record[name] for name in cls._fields))


@dataclass(frozen=True)
class Wanted:
    """A record that is wanted, and the values it is run with."""

    place: Place
    values: Mapping[str, Any]

    @property
    def run(self) -> tuple[Any, ...]:
        """What it shares with the records of the same run: budgets may lead to the same values."""
        place = self.place
        return place.task, place.method, place.seed, place.rate_factor, json.dumps(self.values, sort_keys=True)


def searches(plan: Plan, folder: Path, storage: str | None) -> Iterator[SearchCell]:
    """Yield the searches: one a task and method, of so many trials as the largest budget has.

    A method that tunes nothing has nothing to search for.
    """
    if plan.budgets[-1] == 1:
        return
    for task, base in plan.bases.items():
        for method in plan.methods:
            if METHODS[method].space:
                yield SearchCell(
                    task=task,
                    method=method,
                    base=base,
                    trials=plan.budgets[-1],
                    folder=folder / "searches" / _folder_name(task, method),
                    study=f"metastep-{plan.study}/{task}/{method}",
                    storage=storage,
                )


def at_defaults(plan: Plan) -> Iterator[Wanted]:
    """Yield the records for which nothing is searched."""
    if 1 in plan.budgets:
        for task in plan.bases:
            for method in plan.methods:
                for seed in range(plan.seeds):
                    yield Wanted(Place(task, method, 1, seed, 1.0), METHODS[method].defaults)


def with_what_was_found(plan: Plan, found: Found) -> Iterator[Wanted]:
    """Yield the records of tuned values, and those at a multiple of the rate that the largest budget found."""
    largest = plan.budgets[-1]
    for task in plan.bases:
        for method in plan.methods:
            for budget in plan.budgets:
                values = _values(found, task, method, budget)
                for seed in range(plan.seeds if budget > 1 else 0):
                    yield Wanted(Place(task, method, budget, seed, 1.0), values)
                for factor in plan.factors if budget == largest and LR in values else ():
                    for seed in range(plan.factor_seeds):
                        yield Wanted(Place(task, method, budget, seed, factor), values)


def cell_of(wanted: Wanted, plan: Plan, folder: Path) -> RunCell:
    """Return the cell that makes a record."""
    place = wanted.place
    return RunCell(
        task=place.task,
        method=place.method,
        base=replace(plan.bases[place.task], seed=place.seed),
        budget=place.budget,
        values=wanted.values,
        rate_factor=place.rate_factor,
        folder=folder / "running" / _folder_name(*map(str, place)),
    )


def _values(found: Found, task: str, method: str, budget: int) -> Mapping[str, Any]:
    if budget == 1 or not METHODS[method].space:
        return METHODS[method].defaults
    return winner(found[task, method], budget).values


def _folder_name(*parts: str) -> str:
    """A name that any file system takes, and that no two cells share."""
    text = " ".join(parts)
    return f"{re.sub(r'[^A-Za-z0-9.+-]+', '-', text)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
