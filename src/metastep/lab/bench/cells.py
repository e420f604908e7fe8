"""The work of an experiment, cell by cell: a search for a method's values, and a run with values that were found."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metastep.lab.bench.compact import compact, failed
from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.protocols import load_run_task
from metastep.lab.bench.records import read_record
from metastep.lab.bench.run import Progress, Run
from metastep.lab.bench.studies import open_study, watched
from metastep.lab.bench.tuning import TUNING_SEED, Search, Trial, not_well
from metastep.lab.runtime.folder import Folder
from metastep.lab.tasks import Task

#: Entries of a trial's training curve: a run is seen to diverge at its next entry, and ends there.
_TRIAL_ENTRIES = 10

#: What of a run says which data it reads.
_DATA = ("task", "data_dir", "noise", "noise_rate", "inner_valid", "outer_valid", "train_size")

#: The tasks that a worker keeps in memory. Cells come task by task.
_TASKS = 2
_tasks: dict[tuple[Any, ...], Task] = {}


@dataclass(frozen=True, kw_only=True)
class SearchCell:
    """The trials of one method on one task, one after the other.

    Args:
        task: its name in the experiment.
        method: name of the method.
        base: the run of the task that the method changes.
        trials: how many.
        folder: for the trial at work, and for the journal where there is no other storage.
        study: name of the study in the storage.
        storage: an Optuna storage URL; None: a journal file.
        seed: of the search.
    """

    task: str
    method: str
    base: RunConfig
    trials: int
    folder: Path
    study: str
    storage: str | None = field(default=None, repr=False)
    seed: int = 0

    @property
    def label(self) -> str:
        """What it is called while it runs."""
        return f"{self.task} {self.method} search"

    @property
    def total_steps(self) -> int:
        """Steps of all its trials."""
        return self.trials * self.base.total_steps

    def run(self, should_stop: Callable[[], bool], on_progress: Callable[[Progress], None]) -> dict[str, Any]:
        """Make the trials that are not there yet; return all, as ``{"status", "trials"}``.

        Raises:
            StorageUnreachable: if the storage is lost.
            FolderInUse: if another process is at it.
            OSError: if something cannot be written.
        """
        with Folder(self.folder):
            with watched(self.storage):
                study = open_study(self.study, storage=self.storage, journal=self.folder / "trials.journal")
                search = Search(METHODS[self.method], study, seed=self.seed)
                done = search.trials()
            while len(done) < self.trials:
                with watched(self.storage):
                    values = search.propose()
                trial = self._try(len(done), values, should_stop, on_progress)
                if trial is None:
                    return {"status": "stopped", "trials": []}
                with watched(self.storage):
                    search.add(trial)
                    done = search.trials()
                shutil.rmtree(self._trial_folder(trial.number), ignore_errors=True)
        return {"status": "finished", "trials": done[: self.trials]}

    def _try(
        self,
        number: int,
        values: Mapping[str, Any],
        should_stop: Callable[[], bool],
        on_progress: Callable[[Progress], None],
    ) -> Trial | None:
        """Run a trial; None if it was stopped."""

        def moved(progress: Progress) -> None:
            steps = number * self.base.total_steps + progress.step
            on_progress(replace(progress, step=steps, total_steps=self.total_steps))

        total = self.base.total_steps
        base = replace(
            self.base,
            seed=TUNING_SEED,
            test=False,
            inner=True,
            log_every=max(1, total // _TRIAL_ENTRIES),
            eval_every=total,
        )
        try:
            config = METHODS[self.method].configure(base, values)
            record = run_record(config, self._trial_folder(number), should_stop, moved)
        except OSError:
            raise
        except Exception as error:  # a trial that fails is one that was made, and the worst
            return Trial(
                number=number,
                values=values,
                objective=math.inf,
                selection=math.inf,
                status="failed",
                seconds=0.0,
                error=one_line(error),
            )
        if record["status"] == "stopped":
            return None
        well = record["status"] == "finished"
        return Trial(
            number=number,
            values=values,
            objective=not_well(record["inner"]["loss"] if well else None),
            selection=not_well(record["valid"]["loss"][-1] if well else None),
            status=record["status"],
            seconds=record["train_seconds"],
        )

    def _trial_folder(self, number: int) -> Path:
        return self.folder / f"trial-{number}"


@dataclass(frozen=True, kw_only=True)
class RunCell:
    """One run of one method on one task, with values that are settled: a line of the records.

    Args:
        task: its name in the experiment.
        method: name of the method.
        base: the run of the task that the method changes; its seed is this run's.
        budget: trials that the values were chosen from; 1: they are the defaults.
        values: of what the method tunes.
        rate_factor: by which the rate among the values is multiplied, to see what that costs.
        folder: for the run while it is at work.
    """

    task: str
    method: str
    base: RunConfig
    budget: int
    values: Mapping[str, Any]
    rate_factor: float = 1.0
    folder: Path

    @property
    def label(self) -> str:
        """What it is called while it runs."""
        return f"{self.task} {self.method}"

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        return self.base.total_steps

    def run(self, should_stop: Callable[[], bool], on_progress: Callable[[Progress], None]) -> dict[str, Any]:
        """Return its record; a run that ends in an exception is recorded as failed, with the error.

        Raises:
            FolderInUse: if another process is at it.
            OSError: if something cannot be written.
        """
        found = dict(self.values)
        if self.rate_factor != 1.0:
            found["lr"] *= self.rate_factor
        method = METHODS[self.method]
        about = {
            "task": self.task,
            "method": self.method,
            "budget": self.budget,
            "rate_factor": self.rate_factor,
            "tuned": {name: space.describe() for name, space in method.space.items()},
            "found": found,
        }
        try:
            record = run_record(method.configure(self.base, found), self.folder, should_stop, on_progress)
        except OSError:
            raise
        except Exception as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            return failed(self.base, about, one_line(error))
        return record if record["status"] == "stopped" else compact(record, about)


def run_record(
    config: RunConfig, folder: Path, should_stop: Callable[[], bool], on_progress: Callable[[Progress], None]
) -> dict[str, Any]:
    """Run a configuration in a folder, or go on with it there; return its record."""
    kept = read_record(folder)
    if kept is not None:
        return kept
    task = cached_task(config)
    run = Run(config, folder, task=task, should_stop=should_stop, on_progress=on_progress, tensorboard=False)
    return run.execute().as_dict()


def cached_task(config: RunConfig) -> Task:
    """Read the data of a run's task, once for the runs of a process that ask for the same."""
    key = tuple(getattr(config, name) for name in _DATA)
    if key not in _tasks:
        while len(_tasks) >= _TASKS:
            del _tasks[next(iter(_tasks))]
        _tasks[key] = load_run_task(config)
    return _tasks[key]


def one_line(error: Exception) -> str:
    """Return an error as a line of a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
