"""What an executor runs for an experiment: a search for the values of one method on one task, or one run.

Jobs are plain values, so that they can be sent to other processes and machines. A job that was stopped or killed is
resumed where it was.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.method import LR, Method
from metastep.lab.bench.plan import RunKey
from metastep.lab.bench.protocols import load_run_task
from metastep.lab.bench.run import Progress, Run
from metastep.lab.bench.tuning import (
    TUNING_SEED,
    GridSearch,
    Search,
    Trial,
    not_well,
    open_study,
    storage_errors,
)
from metastep.lab.records import Curve, Record, read_record
from metastep.lab.runtime.folder import CheckpointError, Folder
from metastep.lab.runtime.provenance import provenance
from metastep.lab.tasks import Task
from metastep.lab.tasks.table import recipe_of
from metastep.lab.tasks.task import METRICS

#: Entries of a trial's training curve: a run is seen to diverge at its next entry, and ends there.
_TRIAL_ENTRIES = 10

#: Points of a curve in the records of an experiment, at most, and significant digits of its numbers. The final numbers
#: keep all, so that thousands of records lie in one small file.
POINTS, DIGITS = 40, 5
#: Settings that methods differ in; those that all runs of a task share are in the experiment's plan.
_SETTINGS = ("optimizer_options", "warmup_steps", "meta")

#: What of a run says which data it reads.
_DATA = ("task", "data_dir", "noise", "noise_rate", "inner_valid", "outer_valid", "train_size")

#: The tasks that a worker keeps in memory. Jobs come task by task.
_TASKS = 2
_tasks: dict[tuple[Any, ...], Task] = {}


# ---- jobs


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """The trials of one method on one task, one after the other.

    Args:
        task: its name in the experiment.
        method: the method.
        base: the run of the task that the method changes.
        trials: how many.
        folder: for the trial at work, and for the finished ones where there is no other storage.
        grid: values of each trial; empty: they are searched for.
        study: name of the study in the storage.
        storage: an Optuna storage URL; None: a journal file.
        seed: of the search.
    """

    task: str
    method: Method
    base: RunConfig
    trials: int
    folder: Path
    grid: tuple[Mapping[str, Any], ...] = ()
    study: str = ""
    storage: str | None = field(default=None, repr=False)
    seed: int = 0

    @property
    def label(self) -> str:
        """What it is called while it runs."""
        return f"{self.task} {self.method.name} search"

    @property
    def total_steps(self) -> int:
        """Steps of all its trials."""
        return self.trials * self.base.total_steps

    def run(self, should_stop: Callable[[], bool], report: Callable[[Progress], None]) -> list[Trial] | None:
        """Make the trials that are not there yet; return all, or None if it was stopped.

        Raises:
            StorageUnreachable: if the storage is lost.
            FolderInUse: if another process is at it.
            CheckpointError: if a run that was begun has no readable checkpoint.
            OSError: if something cannot be written.
        """
        with Folder(self.folder):
            with storage_errors(self.storage):
                search = self._search()
                done = search.trials()
            while len(done) < self.trials:
                with storage_errors(self.storage):
                    values = search.propose()
                trial = self._try(len(done), values, should_stop, report)
                if trial is None:
                    return None
                with storage_errors(self.storage):
                    search.add(trial)
                    done = search.trials()
                shutil.rmtree(self._trial_folder(trial.number), ignore_errors=True)
        return done[: self.trials]

    def _search(self) -> GridSearch | Search:
        if self.grid:
            return GridSearch(self.grid, self.folder / "trials.json")
        study = open_study(self.study, storage=self.storage, journal=self.folder / "trials.journal")
        return Search(self.method, study, seed=self.seed)

    def _try(
        self,
        number: int,
        values: Mapping[str, Any],
        should_stop: Callable[[], bool],
        report: Callable[[Progress], None],
    ) -> Trial | None:
        """Run a trial; None if it was stopped."""

        def moved(progress: Progress) -> None:
            steps = number * self.base.total_steps + progress.step
            report(replace(progress, step=steps, total_steps=self.total_steps))

        total = self.base.total_steps
        base = replace(
            self.base,
            seed=TUNING_SEED,
            test=False,
            inner=not self.grid,
            log_every=max(1, total // _TRIAL_ENTRIES),
            eval_every=total,
        )
        try:
            config = self.method.configure(base, values)
            record = _record_of_run(config, self._trial_folder(number), should_stop, moved)
        except (OSError, CheckpointError):  # what is there stays as it is
            raise
        except Exception as error:  # a trial that fails is one that was made, and the worst
            unknown = math.inf
            return Trial(
                number=number,
                values=values,
                objective=unknown,
                selection=unknown,
                status="failed",
                seconds=0.0,
                error=_one_line(error),
            )
        if record.status == "stopped":
            return None
        well = record.status == "finished"
        return Trial(
            number=number,
            values=values,
            objective=not_well(record.inner.get("loss") if well and record.inner else None),
            selection=not_well(record.valid["loss"][-1] if well else None),
            status=record.status,
            seconds=record.train_seconds,
        )

    def _trial_folder(self, number: int) -> Path:
        return self.folder / f"trial-{number}"


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """One run of one method on one task, with values that are settled: a line of the records.

    Args:
        key: what its record is of.
        method: the method.
        base: the run of the task that the method changes; its seed is this run's.
        values: of what the method tunes.
        folder: for the run while it is at work.
        schedule_file: the schedule, where the experiment keeps a copy of it.
        whole: whether the record keeps all points of its curves, and its layers.
    """

    key: RunKey
    method: Method
    base: RunConfig
    values: Mapping[str, Any]
    folder: Path
    schedule_file: Path | None = None
    whole: bool = False

    @property
    def task(self) -> str:
        """Name of the task in the experiment."""
        return self.key.task

    @property
    def label(self) -> str:
        """What it is called while it runs."""
        return f"{self.key.task} {self.key.method}"

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        return self.base.total_steps

    def run(self, should_stop: Callable[[], bool], report: Callable[[Progress], None]) -> Record:
        """Return its record; a run that ends in an exception is recorded as failed, with the error.

        Raises:
            FolderInUse: if another process is at it.
            CheckpointError: if a run that was begun has no readable checkpoint.
            OSError: if something cannot be written.
        """
        found = dict(self.values)
        if self.key.rate_factor != 1.0:
            found[LR] *= self.key.rate_factor
        about = {
            "task": self.key.task,
            "method": self.key.method,
            "label": self.key.method,
            "budget": self.key.budget,
            "rate_factor": self.key.rate_factor,
            "tuned": {name: space.describe() for name, space in self.method.space.items()},
            "found": found,
        }
        try:
            config = self.method.configure(self.base, found)
            record = _record_of_run(config, self.folder, should_stop, report, self.schedule_file)
        except (OSError, CheckpointError):  # what is there stays as it is
            raise
        except Exception as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            return _failed(self.base, about, _one_line(error))
        if record.status == "stopped":
            return record
        return msgspec.structs.replace(record, **about, **({} if self.whole else _compact(record)))


def run_job(
    job: SearchJob | RunJob, should_stop: Callable[[], bool], report: Callable[[Progress], None]
) -> list[Trial] | Record | None:
    """What an executor runs for each job."""
    return job.run(should_stop, report)


def _record_of_run(
    config: RunConfig,
    folder: Path,
    should_stop: Callable[[], bool],
    report: Callable[[Progress], None],
    schedule_file: Path | None = None,
) -> Record:
    """Run a configuration in a folder, or resume it there; return its record."""
    if (folder / "record.json").is_file():
        return read_record(folder / "record.json")
    run = Run(
        config,
        folder,
        schedule_file=schedule_file,
        task=cached_task(config),
        should_stop=should_stop,
        on_progress=report,
        tensorboard=False,
    )
    return run.execute()


def cached_task(config: RunConfig) -> Task:
    """Read the data of a run's task, once for the runs of a process that ask for the same."""
    key = tuple(getattr(config, name) for name in _DATA)
    if key not in _tasks:
        while len(_tasks) >= _TASKS:
            del _tasks[next(iter(_tasks))]
        _tasks[key] = load_run_task(config)
    return _tasks[key]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _compact(record: Record) -> dict[str, Any]:
    """What is shortened, or left out, in the record of an experiment."""
    return {
        "train": thinned(record.train),
        "valid": thinned(record.valid),
        "settings": {name: record.settings[name] for name in _SETTINGS if record.settings[name]},
        **dict.fromkeys(("meta", "layers", "inner", "scale")),
    }


def thinned(curve: Curve) -> Curve:
    """Return a curve with at most :data:`POINTS` points, the first and the last among them, in fewer digits.

    Example:
        >>> thinned({"step": [1, 2, 3], "loss": [5.0, None, 1.0000001]})
        {'step': [1, 2, 3], 'loss': [5.0, None, 1.0]}
    """
    length = len(curve["step"])
    last = length - 1
    kept = range(length) if length <= POINTS else sorted({round(k * last / (POINTS - 1)) for k in range(POINTS)})
    return {name: [_shorter(values[k]) for k in kept] for name, values in curve.items()}


def _shorter(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _failed(base: RunConfig, about: Mapping[str, Any], error: str) -> Record:
    """The record of a run that ended in an error."""
    same = ("seed", "optimizer", "schedule", "lr", "batch_size", "total_steps")
    return Record(
        **{name: getattr(base, name) for name in same},
        **about,
        status="failed",
        error=error,
        train={},
        valid={},
        final={"loss": None, METRICS[recipe_of(base.task, base.data_dir).kind]: None},
        train_seconds=0.0,
        eval_seconds=0.0,
        settings={},
        **provenance("cpu"),
    )
