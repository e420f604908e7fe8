"""An experiment at work: from its plan to one record for each run, restartable at any moment."""

import csv
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import msgspec

from metastep.files import write_atomically
from metastep.lab.bench.jobs import RunJob, SearchJob, cached_task, run_job
from metastep.lab.bench.method import LR
from metastep.lab.bench.plan import PLAN_FILE, ExperimentPlan, RunKey, RunSpec
from metastep.lab.bench.run import Progress
from metastep.lab.bench.schedules import SCHEDULES, make_schedule
from metastep.lab.bench.training import check_device
from metastep.lab.bench.tuning import Trial, check_storage
from metastep.lab.records import Record, RecordsFile, read_records, write_records
from metastep.lab.runtime.executor import Executor
from metastep.lab.runtime.folder import Folder
from metastep.lab.runtime.masking import masked
from metastep.lab.runtime.stop_signals import never
from metastep.lab.tasks.table import recipe_of
from metastep.schedules import save_schedule

# ---- how far it is


@dataclass(frozen=True, kw_only=True)
class ExperimentProgress:
    """How far a comparison or an experiment is.

    Args:
        runs_done: runs at their end; a search is one.
        runs: all runs.
        steps_done: steps of all runs.
        steps: all steps.
        label: of the run that moved last.
        run: how far that one is; None if it has come to its end.
    """

    runs_done: int
    runs: int
    steps_done: int
    steps: int
    label: str
    run: Progress | None


class _Count:
    """Adds up what runs have done.

    Args:
        runs: how many there will be.
        steps: of all of them.
        tell: called whenever one moves or ends.
    """

    def __init__(self, runs: int, steps: int, tell: Callable[[ExperimentProgress], None] | None) -> None:
        self._runs, self._steps, self._tell = runs, steps, tell
        self._ended, self._ended_steps = 0, 0
        self._moving: dict[int, int] = {}  # steps of the runs at work
        self._jobs: Sequence[SearchJob | RunJob] = ()

    def begin(self, jobs: Sequence[SearchJob | RunJob]) -> None:
        """These are the runs that the following numbers mean."""
        self._jobs = jobs
        self._moving.clear()

    def moved(self, number: int, progress: Progress) -> None:
        """A run took steps."""
        self._moving[number] = progress.step
        self._say(number, progress)

    def ended(self, number: int) -> None:
        """A run came to its end."""
        self._moving.pop(number, None)
        self.passed(1, self._jobs[number].total_steps)
        self._say(number, None)

    def passed(self, runs: int, steps: int) -> None:
        """So many runs and steps are done."""
        self._ended += runs
        self._ended_steps += steps

    def _say(self, number: int, progress: Progress | None) -> None:
        if self._tell is not None:
            self._tell(
                ExperimentProgress(
                    runs_done=self._ended,
                    runs=self._runs,
                    steps_done=self._ended_steps + sum(self._moving.values()),
                    steps=self._steps,
                    label=self._jobs[number].label,
                    run=progress,
                )
            )


# ---- the experiment


class ExperimentRun:
    """Runs what has no record yet, in two parts: searches and runs at defaults, then runs with what was found.

    The folder holds ``experiment.json`` (the plan), ``records.jsonl`` (a line a run, added as runs end), ``searches/``
    (finished trials, and those at work), ``runs/`` (runs at work, with their checkpoints; a comparison keeps its runs),
    ``schedules/`` (of a comparison: copies of the schedules that are files), and in the end ``trials.csv`` (what the
    searches tried).

    Args:
        plan: what to run; that of the folder, where it has one.
        folder: where.
        storage: an Optuna storage URL for the trials; None: files in the folder.

    Raises:
        ValueError: for a storage other than the one that was begun with.
    """

    def __init__(self, plan: ExperimentPlan, folder: Path, *, storage: str | None = None) -> None:
        told = None if storage is None else masked(storage)
        if (folder / PLAN_FILE).is_file():
            begun = ExperimentPlan.read(folder).storage
            if (None if begun is None else masked(begun)) != told:
                raise ValueError(
                    f"storage must be that of the experiment in {folder}, {begun or 'its own folder'}, "
                    f"got {told or 'none'}; the trials are there."
                )
        self.plan = replace(plan, storage=told)
        self.folder = folder
        self.storage = storage

    @classmethod
    def resume(cls, folder: Path, *, storage: str | None = None, methods: Sequence[str] = ()) -> Self:
        """The experiment, or comparison, of a folder.

        Args:
            folder: where it was begun.
            storage: of its trials, if they are not in the folder; a URL without a secret need not be given again.
            methods: that join those it was begun with.

        Raises:
            FileNotFoundError: if there is none in it.
            ValueError: if it cannot be read, or was written by a newer version.
        """
        plan = ExperimentPlan.read(folder)
        if storage is None and plan.storage is not None and "***" not in plan.storage:
            storage = plan.storage
        joined = replace(plan, methods=tuple(dict.fromkeys((*plan.methods, *methods))))
        return cls(joined, folder, storage=storage)

    def execute(
        self,
        executor: Executor,
        *,
        should_stop: Callable[[], bool] = never,
        on_progress: Callable[[ExperimentProgress], None] | None = None,
    ) -> list[Record] | None:
        """Run what is not done; return the records in the order of the plan, or None if it was stopped.

        The record of a failed run is a result; resuming the experiment runs it again.

        Args:
            executor: runs the jobs.
            should_stop: asked before every step; True stops every run there, with a checkpoint.
            on_progress: told how far it is, as runs move.

        Raises:
            FolderInUse: if another process is at it.
            StorageUnreachable: if the storage of the trials cannot be reached.
            ValueError: for a device that is not there, or records of a newer version.
            OSError: if something cannot be read or written, or workers die again and again.
        """
        for base in self.plan.bases.values() if executor.local else ():
            check_device(base.device)
        if self.storage is not None:
            check_storage(self.storage)
        for base in self.plan.bases.values():
            cached_task(base)  # data that are not there are said before anything is run
        path = self.folder / "records.jsonl"
        with Folder(self.folder) as folder:
            done = self._done(path)
            folder.write(PLAN_FILE, self.plan.to_json())
            self._prepare()
            with RecordsFile(path) as file:
                work = _Execution(self, executor, should_stop, on_progress, file, done)
                whole = work.execute()
            folder.check()
            records = [done[key] for key in sorted(done, key=self.plan.order)]
            write_records(records, path)
            if whole and not self.plan.candidates:
                shutil.rmtree(self.folder / "runs", ignore_errors=True)
            return records if whole else None

    def _done(self, path: Path) -> dict[RunKey, Record]:
        """The records that are there; of two of one key the later counts, and a failed one is none."""
        if not path.is_file():
            return {}
        found = {RunKey.of(record): record for _, record in read_records(path)}
        return {key: record for key, record in found.items() if record.status != "failed"}

    def _prepare(self) -> None:
        """Copy schedules from files: a comparison is of one and the same schedule whenever it is resumed."""
        earlier, runs = self.folder / "running", self.folder / "runs"
        if earlier.is_dir() and not runs.exists():  # what the folder was called until 0.1
            earlier.rename(runs)
        for candidate in self.plan.candidates:
            file = self.schedule_file(candidate.label)
            if file is not None and not file.is_file():
                (base,) = self.plan.bases.values()
                text = recipe_of(base.task, base.data_dir).kind == "language"
                save_schedule(make_schedule(candidate.schedule, base.total_steps, text=text)[0], file)

    def schedule_file(self, method: str) -> Path | None:
        """Where the copy of a candidate's schedule is kept; None if it is no file."""
        for candidate in self.plan.candidates:
            if candidate.label == method and candidate.schedule not in SCHEDULES:
                return self.folder.absolute() / "schedules" / f"{method}.safetensors"
        return None


class _Execution:
    """One go at an experiment."""

    def __init__(
        self,
        experiment: ExperimentRun,
        executor: Executor,
        should_stop: Callable[[], bool],
        on_progress: Callable[[ExperimentProgress], None] | None,
        file: RecordsFile,
        done: dict[RunKey, Record],
    ) -> None:
        self._experiment, self._plan = experiment, experiment.plan
        self._folder = experiment.folder.absolute()  # workers may stand elsewhere
        self._executor, self._should_stop, self._on_progress = executor, should_stop, on_progress
        self._file, self._done = file, done
        self._found: dict[tuple[str, str], list[Trial]] = {}
        self._same: dict[tuple[Any, ...], Record] = {}  # records by what was run

    def execute(self) -> bool:
        """Run both parts; False if it was stopped."""
        first = list(self._plan.runs_at_defaults())
        jobs: list[SearchJob | RunJob] = [*self._searches(), *self._missing(first)]
        order = list(self._plan.bases)
        jobs.sort(key=lambda job: order.index(job.task))  # task by task: a worker keeps the data of a few
        left = self._later()
        count = _Count(len(jobs) + len(left), sum(job.total_steps for job in jobs) + sum(left), self._on_progress)
        if not self._run(jobs, count):
            return False
        if self._found:
            self._write_trials()
        self._copy(first)
        second = list(self._plan.runs_as_found(self._found))
        self._copy(second)
        missing = self._missing(second)
        count.passed(len(left) - len(missing), sum(left) - sum(job.total_steps for job in missing))
        if not self._run(missing, count):
            return False
        self._copy(second)
        return True

    def _run(self, jobs: Sequence[SearchJob | RunJob], count: _Count) -> bool:
        """Run jobs and keep what comes out; False if it was stopped."""
        ended = 0
        count.begin(jobs)
        results = self._executor.run(
            run_job, jobs, should_stop=self._should_stop, on_progress=count.moved, describe=lambda job: job.label
        )
        for number, result in results:
            job = jobs[number]
            if isinstance(job, SearchJob) and isinstance(result, list):
                self._found[job.task, job.method.name] = result
            elif isinstance(job, RunJob) and isinstance(result, Record) and result.status != "stopped":
                self._keep(result)
                if not self._plan.candidates:
                    shutil.rmtree(job.folder, ignore_errors=True)  # only now: the record is on the disk
            else:
                continue
            ended += 1
            count.ended(number)
        return ended == len(jobs)

    def _keep(self, record: Record) -> None:
        self._file.add(record)
        self._done[RunKey.of(record)] = record

    def _searches(self) -> list[SearchJob]:
        largest = self._plan.budgets[-1]
        return [
            SearchJob(
                task=task,
                method=self._plan.method(method),
                base=self._plan.bases[task],
                trials=largest,
                folder=self._folder / "searches" / _folder_name(task, method),
                grid=tuple({LR: lr} for lr in self._plan.lrs),
                study=f"metastep-{self._plan.study}/{task}/{method}",
                storage=self._experiment.storage,
            )
            for task, method in self._plan.searches()
        ]

    def _missing(self, specs: Iterable[RunSpec]) -> list[RunJob]:
        """The jobs of what has no record; of those that are one and the same run, the first."""
        left = {spec.run: spec for spec in reversed([spec for spec in specs if spec.key not in self._done])}
        return [self._job(spec) for spec in reversed(left.values())]

    def _job(self, spec: RunSpec) -> RunJob:
        key, whole = spec.key, bool(self._plan.candidates)
        own = Path(key.method, f"seed-{key.seed}") if whole else _folder_name(*map(str, key))
        return RunJob(
            key=key,
            method=self._plan.method(key.method),
            base=replace(self._plan.bases[key.task], seed=key.seed),
            values=spec.values,
            folder=self._folder / "runs" / own,
            schedule_file=self._experiment.schedule_file(key.method),
            whole=whole,
        )

    def _copy(self, specs: Iterable[RunSpec]) -> None:
        """Give records to what was run already for another budget."""
        for spec in specs:
            if spec.key in self._done:
                self._same.setdefault(spec.run, self._done[spec.key])
        for spec in specs:
            if spec.key not in self._done and (same := self._same.get(spec.run)) is not None:
                self._keep(msgspec.structs.replace(same, budget=spec.key.budget))

    def _later(self) -> list[int]:
        """Steps of each run of the second part that is left; how many there are does not depend on what is found."""
        unknown = math.inf
        pretended = {
            (task, method): [
                Trial(
                    number=number,
                    values=self._plan.method(method).defaults,
                    objective=unknown,
                    selection=unknown,
                    status="finished",
                    seconds=0.0,
                )
                for number in range(self._plan.budgets[-1])
            ]
            for task in self._plan.bases
            for method in self._plan.methods
        }
        later = self._plan.runs_as_found(pretended)
        return [self._plan.bases[spec.key.task].total_steps for spec in later if spec.key not in self._done]

    def _write_trials(self) -> None:
        """Write what the searches tried as a table, ``trials.csv``."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("task", "method", "trial", "status", "inner_valid", "outer_valid", "seconds", "values", "error"))
        for task in self._plan.bases:
            for method in self._plan.methods:
                for one in self._found.get((task, method), ()):
                    losses = (one.objective, one.selection, round(one.seconds, 4))
                    rows.writerow(
                        (task, method, one.number + 1, one.status, *losses, json.dumps(one.values), one.error or "")
                    )
        write_atomically(self._folder / "trials.csv", text.getvalue())


def _folder_name(*parts: str) -> str:
    """A name that any file system takes, and that no two jobs share."""
    text = " ".join(parts)
    return f"{re.sub(r'[^A-Za-z0-9.+-]+', '-', text)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
