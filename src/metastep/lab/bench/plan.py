"""The plan of an experiment: everything that will be run, fixed when it begins and kept in its folder.

An experiment lets methods of the table meet on several workloads. A comparison of schedules on one task is an
experiment, too: its methods are the schedules, each over the task's own optimizer, and its search is a few given rates.
"""

import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from metastep.files import decode_json
from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.experiments import Scale, Workload
from metastep.lab.bench.method import LR, Choice, Method
from metastep.lab.bench.methods import METHODS, method_named
from metastep.lab.bench.schedules import make_schedule
from metastep.lab.bench.tuning import Trial, winner
from metastep.lab.records import Record
from metastep.lab.tasks.table import recipe_of

SCHEMA = 1

#: The file of a plan in the folder of its experiment.
PLAN_FILE = "experiment.json"

#: The trials of every search, by task and method.
Found = Mapping[tuple[str, str], Sequence[Trial]]


class RunKey(NamedTuple):
    """What a record is of; an experiment has one record for each key."""

    task: str
    method: str
    budget: int
    seed: int
    rate_factor: float

    @classmethod
    def of(cls, record: Record) -> "RunKey":
        """The key of a record."""
        return cls(record.task, record.method or record.label, record.budget, record.seed, record.rate_factor)


@dataclass(frozen=True)
class RunSpec:
    """A record that the plan asks for: its key, and the values of what the method tunes."""

    key: RunKey
    values: Mapping[str, Any]

    @property
    def run(self) -> tuple[Any, ...]:
        """What it shares with the records of the same run: several budgets may lead to the same values."""
        key = self.key
        return key.task, key.method, key.seed, key.rate_factor, json.dumps(self.values, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A schedule of a comparison.

    Args:
        label: what it is called; also the name of a folder.
        schedule: what it is, see :func:`metastep.lab.bench.schedules.make_schedule`.
        reads_lr: whether it multiplies the base rate, which can then be tuned; others set their own scale.
    """

    label: str
    schedule: str
    reads_lr: bool

    def __post_init__(self) -> None:
        if self.label in ("", ".", "..") or set(self.label) & set('/\\:\0"<>|?*'):
            raise ValueError(f"label must be fit for the name of a folder, got {self.label!r}; write label=file.")


@dataclass(frozen=True, kw_only=True)
class ExperimentPlan:
    """What is run.

    Args:
        title: of the page.
        bases: the run that methods change, by the name of the workload in the experiment.
        methods: names of the table of methods; in a comparison, labels of its candidates.
        seeds: 0, 1, ... of every run.
        budgets: numbers of trials, from the smallest.
        factors: by which the rate found with the largest budget is multiplied.
        factor_seeds: seeds of those runs.
        study: beginning of the names of its searches, its own in whatever storage.
        storage: where trials are kept, without its secrets; None: in the folder.
        candidates: of a comparison: its schedules.
        lrs: of a comparison: base rates, from the smallest. Of several, each schedule that reads one gets the rate with
            the lowest outer_valid loss at the end of a run on a seed of its own.

    Raises:
        ValueError: for no task or method, numbers out of range, or tasks without the splits that tuning needs.
        ImportError: if the package of a method is not installed; it says which extra brings it.
    """

    title: str
    bases: Mapping[str, RunConfig]
    methods: tuple[str, ...]
    seeds: int = 3
    budgets: tuple[int, ...] = (1,)
    factors: tuple[float, ...] = ()
    factor_seeds: int = 1
    study: str
    storage: str | None = None
    candidates: tuple[Candidate, ...] = ()
    lrs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.candidates:
            self._check_comparison()
        if not self.bases or not self.methods:
            raise ValueError(f"{'methods' if self.bases else 'tasks'} must name at least one, got none.")
        for name in () if self.candidates else self.methods:
            method_named(name)
        for what, number in (("seeds", self.seeds), ("factor_seeds", self.factor_seeds)):
            if number < 1:
                raise ValueError(f"{what} must be >= 1, got {number}.")
        if not self.budgets or min(self.budgets) < 1 or sorted(set(self.budgets)) != list(self.budgets):
            raise ValueError(f"budgets must be different numbers of trials >= 1, growing, got {list(self.budgets)}.")
        if not all(0 < factor < math.inf and factor != 1 for factor in self.factors):
            raise ValueError(f"factors must be > 0 and not 1, got {list(self.factors)}.")
        for name, base in self.bases.items():
            if self.budgets[-1] > 1 and not self.candidates and 0 in (base.inner_valid, base.outer_valid):
                raise ValueError(f"inner_valid and outer_valid must be > 0 to tune on {name}; trials are judged there.")

    def _check_comparison(self) -> None:
        labels = [candidate.label for candidate in self.candidates]
        if len(set(labels)) != len(labels):
            raise ValueError(f"schedules must have different labels, got {', '.join(labels)}; write label=file.")
        if tuple(labels) != self.methods or len(self.bases) != 1:
            raise ValueError("methods must be the labels of the candidates, on one task.")
        _check_rates(self.lrs)
        (base,) = self.bases.values()
        if len(self.lrs) > 1 and base.outer_valid == 0:
            raise ValueError(f"lrs must be one rate without an outer_valid split to choose by, got {list(self.lrs)}.")
        if self.budgets != (len(self.lrs),):
            raise ValueError(f"budgets must be the number of rates, {len(self.lrs)}, got {list(self.budgets)}.")

    @classmethod
    def of(
        cls, title: str, workloads: Sequence[Workload], methods: Sequence[str], scale: Scale, given: Mapping[str, Any]
    ) -> Self:
        """Make the plan of a new experiment.

        Args:
            title: of the page.
            workloads: the tasks under their settings.
            methods: names of the table of methods.
            scale: how many seeds, budgets and factors.
            given: settings of all runs, before those of the workloads.
        """
        return cls(
            title=title,
            bases={workload.name: workload.base(given) for workload in workloads},
            methods=tuple(methods),
            seeds=scale.seeds,
            budgets=scale.budgets,
            factors=scale.factors,
            factor_seeds=scale.factor_seeds,
            study=secrets.token_hex(6),
        )

    @classmethod
    def comparison(
        cls, base: RunConfig, schedules: Sequence[tuple[str, str]], *, seeds: int, lrs: Sequence[float]
    ) -> Self:
        """Make the plan of a new comparison.

        Args:
            base: the run that all share; its schedule, seed and rate are replaced, and only runs that learn their
                schedule keep its ``meta``.
            schedules: label and schedule of each candidate.
            seeds: number of seeds, >= 1.
            lrs: base rates to choose from.

        Raises:
            ValueError: for an unknown schedule, or as the class does.
            OSError: for schedule files that are not there.
        """
        _check_rates(lrs)
        if not schedules:
            raise ValueError("schedules must name at least one schedule, got none.")
        text = recipe_of(base.task, base.data_dir).kind == "language"
        candidates = tuple(
            Candidate(label=label, schedule=schedule, reads_lr=make_schedule(schedule, 1000, text=text)[0].relative)
            for label, schedule in schedules
        )
        return cls(
            title=f"{base.task}: schedules compared",
            bases={base.task: replace(base, lr=min(lrs))},
            methods=tuple(candidate.label for candidate in candidates),
            seeds=seeds,
            budgets=(len(lrs),),
            study=secrets.token_hex(6),
            candidates=candidates,
            lrs=tuple(sorted(lrs)),
        )

    # ---- what is to be run

    def method(self, name: str) -> Method:
        """Return a method of the table, or a candidate as one."""
        for candidate in self.candidates:
            if candidate.label == name:
                (base,) = self.bases.values()
                tuned = candidate.reads_lr and len(self.lrs) > 1
                return Method(
                    name=name,
                    summary=candidate.schedule,
                    source=candidate.schedule,
                    optimizer=base.optimizer,
                    options=base.optimizer_options,
                    schedule=candidate.schedule,
                    space={LR: Choice(self.lrs)} if tuned else {},
                    defaults={LR: self.lrs[0]} if tuned else {},
                )
        return METHODS[name]

    def searches(self) -> Iterator[tuple[str, str]]:
        """Yield task and method of each search; a method that tunes nothing has nothing to search for."""
        for task in self.bases if self.budgets[-1] > 1 else ():
            for method in self.methods:
                if self.method(method).space:
                    yield task, method

    def runs_at_defaults(self) -> Iterator[RunSpec]:
        """Yield the runs for which nothing is searched."""
        if 1 in self.budgets:
            for task in self.bases:
                for method in self.methods:
                    for seed in range(self.seeds):
                        yield RunSpec(RunKey(task, method, 1, seed, 1.0), self.method(method).defaults)

    def runs_as_found(self, found: Found) -> Iterator[RunSpec]:
        """Yield the runs with tuned values, and those at a multiple of the rate that the largest budget found."""
        largest = self.budgets[-1]
        for task in self.bases:
            for method in self.methods:
                for budget in self.budgets:
                    values = self._values(found, task, method, budget)
                    for seed in range(self.seeds if budget > 1 else 0):
                        yield RunSpec(RunKey(task, method, budget, seed, 1.0), values)
                    for factor in self.factors if budget == largest and LR in values else ():
                        for seed in range(self.factor_seeds):
                            yield RunSpec(RunKey(task, method, budget, seed, factor), values)

    def _values(self, found: Found, task: str, method: str, budget: int) -> Mapping[str, Any]:
        known = self.method(method)
        return known.defaults if budget == 1 or not known.space else winner(found[task, method], budget).values

    def order(self, key: RunKey) -> tuple[int, ...]:
        """Where a record stands among those of the plan."""
        tasks, methods, factors = list(self.bases), list(self.methods), [1.0, *self.factors]
        return (
            tasks.index(key.task), methods.index(key.method), key.budget, factors.index(key.rate_factor), key.seed
        )  # fmt: skip

    # ---- its file

    def to_json(self) -> str:
        """The plan as JSON text, with the schema's version."""
        values: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        values["bases"] = {name: msgspec.Raw(base.to_json().encode()) for name, base in self.bases.items()}
        return msgspec.json.format(msgspec.json.encode(_PlanFile(schema=SCHEMA, **values)), indent=1).decode()

    @classmethod
    def read(cls, folder: Path) -> "ExperimentPlan":
        """Read the plan of an experiment's folder.

        Raises:
            FileNotFoundError: if there is none; it says what the folder holds instead.
            ValueError: if it cannot be read, or is of a newer version.
        """
        path = folder / PLAN_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no comparison or experiment in {folder}; {_other(folder)}.")
        try:
            version = decode_json(path.read_bytes(), _Version, "it").schema
            if version > SCHEMA:
                raise ValueError(f"schema must be at most {SCHEMA}, got {version}; use a newer metastep")
            kept = decode_json(path.read_bytes(), _PlanFile, "it")
            bases = {name: RunConfig.from_json(bytes(base).decode()) for name, base in kept.bases.items()}
            values = {name: getattr(kept, name) for name in kept.__struct_fields__ if name not in ("schema", "bases")}
            return cls(bases=bases, **values)
        except ValueError as error:
            raise ValueError(f"{path} is no plan of an experiment: {error}") from error


def _check_rates(lrs: Sequence[float]) -> None:
    if not lrs or not all(0 < lr < math.inf for lr in lrs) or len(set(lrs)) != len(lrs):
        raise ValueError(f"lrs must be different rates > 0, got {list(lrs)}.")


class _Version(msgspec.Struct):
    schema: int


class _PlanFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What ``experiment.json`` holds."""

    schema: int
    title: str
    bases: dict[str, msgspec.Raw]
    methods: tuple[str, ...]
    seeds: int
    budgets: tuple[int, ...]
    factors: tuple[float, ...]
    factor_seeds: int
    study: str
    storage: str | None = None
    candidates: tuple[Candidate, ...] = ()
    lrs: tuple[float, ...] = ()


def _other(folder: Path) -> str:
    if (folder / "run.json").is_file():
        return f"it holds a run: metastep train --resume {folder}"
    if (folder / "compare.json").is_file():
        return (
            f"it holds a comparison of an earlier metastep, which this one can show (metastep report {folder}) but not "
            "resume; compare again into a new folder"
        )
    return "--resume wants a folder that metastep compare or metastep experiment made"
