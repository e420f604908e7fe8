"""A comparison: several schedules on one task, the same seeds for all, one record a run."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from metastep.files import write_atomically
from metastep.lab.bench.counting import ComparisonProgress, Count
from metastep.lab.bench.entrants import CompareConfig, Entrant
from metastep.lab.bench.protocols import load_run_task
from metastep.lab.bench.records import read_record, write_records
from metastep.lab.bench.schedules import SCHEDULES, make_schedule
from metastep.lab.bench.training import check_device
from metastep.lab.bench.tuning import TUNING_SEED
from metastep.lab.bench.workers import Cell, run_here, run_in_workers
from metastep.lab.runtime.folder import Folder
from metastep.lab.runtime.stop_signals import never
from metastep.schedules import Schedule, load_schedule, save_schedule


class Comparison:
    """Runs every cell that has no record yet; what was stopped or killed goes on from its checkpoint.

    Args:
        config: what to compare.
        folder: where; runs lie in folders of their own below it.

    Raises:
        ValueError: for an unknown schedule or device, or settings that the task refuses.
        OSError: for data or schedule files that are not there.
    """

    def __init__(self, config: CompareConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        check_device(config.base.device)
        task = load_run_task(config.base)
        self._schedules = {entrant.label: self._schedule(entrant, text=task.text) for entrant in config.entrants}

    @classmethod
    def resume(cls, folder: Path) -> "Comparison":
        """The comparison of a folder.

        Raises:
            FileNotFoundError: if there is none in it.
        """
        path = folder / "compare.json"
        if not path.is_file():
            other = f"; it holds a run: metastep train --resume {folder}"
            hint = other if (folder / "run.json").is_file() else "; --resume wants a folder that a comparison made"
            raise FileNotFoundError(f"no comparison in {folder}{hint}.")
        return cls(CompareConfig.from_json(path.read_text()), folder)

    def execute(
        self,
        *,
        workers: int = 1,
        should_stop: Callable[[], bool] = never,
        on_progress: Callable[[ComparisonProgress], None] | None = None,
    ) -> list[dict[str, Any]] | None:
        """Run what is not done; return the records in the order of the entrants, or None if it was stopped.

        Args:
            workers: processes, >= 1; with one, runs are in this process.
            should_stop: asked before every step; True stops every run there, with a checkpoint.
            on_progress: told how far it is, as runs move.

        Raises:
            FolderInUse: if another process is at it.
            OSError: if something cannot be written, or workers die again and again.
        """
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}.")
        with Folder(self.folder):
            write_atomically(self.folder / "compare.json", self.config.to_json())
            for label, schedule in self._from_files():
                save_schedule(schedule, self._file_of(label))
            runs = self._tuning_runs() + self._runs()
            count = Count(runs, runs * self.config.base.total_steps, on_progress)
            tuned = self._run(self._tuning_cells(), workers, should_stop, count)
            if not tuned or not self._run(self._cells(), workers, should_stop, count):
                return None
            records = [self._record(cell) for cell in self._cells()]
            write_records(records, self.folder / "records.jsonl")
            return records

    def chosen_rates(self) -> dict[str, float]:
        """The base rate of every entrant that reads one; after the runs that choose it."""
        return {e.label: self._rate(e) for e in self.config.entrants if self._schedules[e.label].relative}

    # ---- cells

    def _run(self, cells: Iterable[Cell], workers: int, should_stop: Callable[[], bool], count: Count) -> bool:
        """Run the cells; False if it was stopped."""
        numbered = dict(enumerate(cells))
        done = set()
        count.begin(numbered)
        if workers == 1:
            results = run_here(numbered, should_stop, count.moved)
        else:
            results = run_in_workers(numbered, workers, should_stop, count.moved)
        for number, record in results:
            if record["status"] == "stopped":
                continue
            done.add(number)
            count.ended(number)
        return len(done) == len(numbered)

    def _tuned(self) -> list[Entrant]:
        several = len(self.config.lrs) > 1
        return [e for e in self.config.entrants if several and self._schedules[e.label].relative]

    def _tuning_runs(self) -> int:
        return len(self._tuned()) * len(self.config.lrs)

    def _runs(self) -> int:
        return len(self.config.entrants) * self.config.seeds

    def _tuning_cells(self) -> Iterator[Cell]:
        for entrant in self._tuned():
            for lr in self.config.lrs:
                yield self._cell(entrant, TUNING_SEED, lr, test=False)

    def _cells(self) -> Iterator[Cell]:
        for entrant in self.config.entrants:
            lr = self._rate(entrant)
            for seed in range(self.config.seeds):
                yield self._cell(entrant, seed, lr, test=True)

    def _cell(self, entrant: Entrant, seed: int, lr: float, *, test: bool) -> Cell:
        learns = entrant.schedule in SCHEDULES and SCHEDULES[entrant.schedule].learns
        meta = self.config.base.meta if learns else None
        config = replace(self.config.base, schedule=entrant.schedule, seed=seed, lr=lr, test=test, meta=meta)
        folder = self.folder / "runs" / entrant.label / f"lr-{lr}-seed-{seed}"
        file = None if entrant.schedule in SCHEDULES else self._file_of(entrant.label)
        return Cell(label=entrant.label, config=config, folder=folder, schedule_file=file)

    def _rate(self, entrant: Entrant) -> float:
        """The rate with the lowest last outer_valid loss; a diverged run never has it, and the smaller wins a tie."""
        if entrant not in self._tuned():
            return self.config.lrs[0]

        def last_loss(lr: float) -> float:
            record = read_record(self._cell(entrant, TUNING_SEED, lr, test=False).folder)
            if record is None or record["status"] != "finished" or not record["valid"]["loss"]:
                return math.inf
            loss = record["valid"]["loss"][-1]
            return math.inf if loss is None else float(loss)

        return min(self.config.lrs, key=lambda lr: (last_loss(lr), lr))

    def _record(self, cell: Cell) -> dict[str, Any]:
        record = read_record(cell.folder)
        if record is None:
            raise FileNotFoundError(f"the record of {cell.folder} is gone; --resume runs it again.")
        return {**record, "label": cell.label}

    # ---- schedules from files are copied, so that a comparison is of one and the same schedule whenever it goes on

    def _file_of(self, label: str) -> Path:
        return self.folder / "schedules" / f"{label}.safetensors"

    def _schedule(self, entrant: Entrant, *, text: bool) -> Schedule:
        file = self._file_of(entrant.label)
        if (self.folder / "compare.json").is_file() and file.is_file():
            return load_schedule(file)
        return make_schedule(entrant.schedule, self.config.base.total_steps, text=text)[0]

    def _from_files(self) -> Iterator[tuple[str, Schedule]]:
        for entrant in self.config.entrants:
            if entrant.schedule not in SCHEDULES and not self._file_of(entrant.label).is_file():
                yield entrant.label, self._schedules[entrant.label]
