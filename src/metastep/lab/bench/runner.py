"""An experiment at work: from its plan to a record a run, restartable at any moment."""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metastep.files import write_atomically
from metastep.lab.bench.cells import RunCell, SearchCell, cached_task
from metastep.lab.bench.counting import ComparisonProgress, Count
from metastep.lab.bench.engines.engine import Engine
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.plans import PLAN_FILE, Plan
from metastep.lab.bench.records import write_records
from metastep.lab.bench.records_file import RecordsFile, records_of
from metastep.lab.bench.studies import check_storage
from metastep.lab.bench.training import check_device
from metastep.lab.bench.tuning import Trial
from metastep.lab.bench.wanted import Place, Wanted, at_defaults, cell_of, searches, with_what_was_found
from metastep.lab.runtime.folder import Folder
from metastep.lab.runtime.passwords import without_password
from metastep.lab.runtime.stop_signals import never


class ExperimentRun:
    """Runs what has no record yet, in two parts: searches and runs at defaults, then runs with what was found.

    The folder holds ``experiment.json`` (the plan), ``records.jsonl`` (a line a run, added as runs end), ``searches/``
    (Optuna's journals, and the trials at work), ``running/`` (runs at work, with their checkpoints), and in the end
    ``trials.csv`` (what the searches tried).

    Args:
        plan: what to run; that of the folder, where it has one.
        folder: where.
        storage: an Optuna storage URL for the trials; None: journal files in the folder.

    Raises:
        ValueError: for a storage other than the one that was begun with.
    """

    def __init__(self, plan: Plan, folder: Path, *, storage: str | None = None) -> None:
        begun = Plan.read(folder) if (folder / PLAN_FILE).is_file() else None
        told = None if storage is None else without_password(storage)
        if begun is not None and begun.storage != told:
            raise ValueError(
                f"storage must be that of the experiment in {folder}, {begun.storage or 'its own folder'}, "
                f"got {told or 'none'}; the trials are there."
            )
        self.plan = replace(plan, storage=told)
        self.folder = folder.absolute()  # workers may stand elsewhere
        self._storage = storage

    @classmethod
    def resume(cls, folder: Path, *, storage: str | None = None, methods: Sequence[str] = ()) -> "ExperimentRun":
        """The experiment of a folder.

        Args:
            folder: where it was begun.
            storage: of its trials, if they are not in the folder; a URL without a password need not be given again.
            methods: that join those it was begun with.

        Raises:
            FileNotFoundError: if there is none in it.
            ValueError: if it cannot be read, or was written by a newer version.
        """
        plan = Plan.read(folder)
        if storage is None and plan.storage is not None and "***" not in plan.storage:
            storage = plan.storage
        joined = replace(plan, methods=tuple(dict.fromkeys((*plan.methods, *methods))))
        return cls(joined, folder, storage=storage)

    def execute(
        self,
        engine: Engine,
        *,
        should_stop: Callable[[], bool] = never,
        on_progress: Callable[[ComparisonProgress], None] | None = None,
    ) -> list[dict[str, Any]] | None:
        """Run what is not done; return the records in the order of the plan, or None if it was stopped.

        The record of a failed run is a result; resuming the experiment runs it again.

        Args:
            engine: runs the cells.
            should_stop: asked before every step; True stops every run there, with a checkpoint.
            on_progress: told how far it is, as runs move.

        Raises:
            FolderInUse: if another process is at it.
            StorageUnreachable: if the storage of the trials cannot be reached.
            ValueError: for a device that is not there, or records of a newer version.
            OSError: if something cannot be read or written, or workers die again and again.
        """
        for base in self.plan.bases.values() if engine.here else ():
            check_device(base.device)
        if self._storage is not None:
            check_storage(self._storage)
        for base in self.plan.bases.values():
            cached_task(base)  # data that are not there are said before anything is run
        path = self.folder / "records.jsonl"
        with Folder(self.folder):
            done = self._done(path)
            write_atomically(self.folder / PLAN_FILE, self.plan.to_json())
            with RecordsFile(path) as file:
                whole = _Work(self, engine, should_stop, on_progress, file, done).execute(self._storage)
            records = [done[place] for place in sorted(done, key=self._order)]
            write_records(records, path)
            if whole:
                shutil.rmtree(self.folder / "running", ignore_errors=True)
            return records if whole else None

    def _done(self, path: Path) -> dict[Place, dict[str, Any]]:
        """The records that are there; of two of one place the later counts, and a failed one is none."""
        if not path.is_file():
            return {}
        found = {Place.of(record): record for _, record in records_of(path)}
        return {place: record for place, record in found.items() if record["status"] != "failed"}

    def _order(self, place: Place) -> tuple[int, ...]:
        tasks, methods, factors = list(self.plan.bases), list(self.plan.methods), [1.0, *self.plan.factors]
        where = tasks.index(place.task), methods.index(place.method), place.budget, factors.index(place.rate_factor)
        return (*where, place.seed)

    def write_trials(self, found: Mapping[tuple[str, str], Iterable[Trial]]) -> None:
        """Write what the searches tried as a table, ``trials.csv``."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("task", "method", "trial", "status", "inner_valid", "outer_valid", "seconds", "values", "error"))
        for (task, method), trials in found.items():
            for one in trials:
                losses = (one.objective, one.selection, round(one.seconds, 4))
                rows.writerow(
                    (task, method, one.number + 1, one.status, *losses, json.dumps(one.values), one.error or "")
                )
        write_atomically(self.folder / "trials.csv", text.getvalue())


class _Work:
    """One go at an experiment."""

    def __init__(
        self,
        experiment: ExperimentRun,
        engine: Engine,
        should_stop: Callable[[], bool],
        on_progress: Callable[[ComparisonProgress], None] | None,
        file: RecordsFile,
        done: dict[Place, dict[str, Any]],
    ) -> None:
        self._experiment, self._plan, self._folder = experiment, experiment.plan, experiment.folder
        self._engine, self._should_stop, self._on_progress = engine, should_stop, on_progress
        self._file, self._done = file, done
        self._found: dict[tuple[str, str], list[Trial]] = {}
        self._runs: dict[tuple[Any, ...], dict[str, Any]] = {}  # records by what was run

    def execute(self, storage: str | None) -> bool:
        """Run both parts; False if it was stopped."""
        first: list[Wanted] = list(at_defaults(self._plan))
        cells: list[SearchCell | RunCell] = [*searches(self._plan, self._folder, storage), *self._missing(first)]
        order = list(self._plan.bases)
        cells.sort(key=lambda cell: order.index(cell.task))  # task by task: a worker keeps the data of a few
        left = self._later()
        count = Count(len(cells) + len(left), sum(cell.total_steps for cell in cells) + sum(left), self._on_progress)
        if not self._run(cells, count):
            return False
        if self._found:
            self._experiment.write_trials(
                {
                    (task, method): self._found[task, method]
                    for task in self._plan.bases
                    for method in self._plan.methods
                    if (task, method) in self._found
                }
            )
        self._copy(first)
        second = list(with_what_was_found(self._plan, self._found))
        self._copy(second)
        missing = self._missing(second)
        count.passed(len(left) - len(missing), sum(left) - sum(cell.total_steps for cell in missing))
        if not self._run(missing, count):
            return False
        self._copy(second)
        return True

    def _run(self, cells: "list[RunCell] | list[SearchCell | RunCell]", count: Count) -> bool:
        """Run cells and keep what comes out; False if it was stopped."""
        numbered, ended = dict(enumerate(cells)), 0
        count.begin(numbered)
        for number, result in self._engine(numbered, self._should_stop, count.moved):
            if result["status"] == "stopped":
                continue
            cell = numbered[number]
            if isinstance(cell, SearchCell):
                self._found[cell.task, cell.method] = result["trials"]
            else:
                self._keep(result)
                shutil.rmtree(cell.folder, ignore_errors=True)  # only now: the record is on the disk
            ended += 1
            count.ended(number)
        return ended == len(numbered)

    def _keep(self, record: dict[str, Any]) -> None:
        self._file.add(record)
        self._done[Place.of(record)] = record

    def _missing(self, wanted: Iterable[Wanted]) -> list[RunCell]:
        """The cells of what has no record; of those that are one and the same run, the first."""
        left = {one.run: one for one in reversed([one for one in wanted if one.place not in self._done])}
        return [cell_of(one, self._plan, self._folder) for one in reversed(left.values())]

    def _copy(self, wanted: Iterable[Wanted]) -> None:
        """Give records to what was run already for another budget."""
        for one in wanted:
            if one.place in self._done:
                self._runs.setdefault(one.run, self._done[one.place])
        for one in wanted:
            if one.place not in self._done and (same := self._runs.get(one.run)) is not None:
                self._keep({**same, "budget": one.place.budget})

    def _later(self) -> list[int]:
        """Steps of each run of the second part that is left; how many there are does not depend on what is found."""
        pretended = {
            (task, method): [_pretended(method, number) for number in range(self._plan.budgets[-1])]
            for task in self._plan.bases
            for method in self._plan.methods
        }
        later = with_what_was_found(self._plan, pretended)
        return [self._plan.bases[one.place.task].total_steps for one in later if one.place not in self._done]


def _pretended(method: str, number: int) -> Trial:
    values, unknown = METHODS[method].defaults, math.inf
    return Trial(number=number, values=values, objective=unknown, selection=unknown, status="finished", seconds=0.0)
