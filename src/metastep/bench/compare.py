"""A comparison: several schedules on one task, the same seeds for all, one record a run."""

import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from metastep.bench.config import RunConfig
from metastep.bench.methods import make_schedule
from metastep.bench.records import write_records
from metastep.bench.run import Progress, Run
from metastep.files import write_atomically
from metastep.tasks import load_task

#: Rates are chosen on a seed that is not among those compared.
_TUNING_SEED = 10_000


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A schedule in a comparison: what to call it, and what it is (see ``make_schedule``)."""

    label: str
    schedule: str

    @classmethod
    def parse(cls, text: str) -> "Entrant":
        """From ``name``, ``file`` or ``label=file``."""
        label, found, schedule = text.partition("=")
        if found:
            return cls(label=label, schedule=schedule)
        files, _, control = text.partition("@")
        stem = "+".join(Path(part).stem for part in files.split("+"))
        return cls(label=f"{stem}@{control}" if control else stem, schedule=text)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared.

    Args:
        base: the settings that all runs share; its schedule, seed and lr are replaced.
        entrants: the schedules.
        seeds: number of seeds, >= 1; seeds are 0, 1, ...
        lrs: base rates for the schedules that read one; of several each such schedule gets the one with the lowest
            outer_valid loss at the end of a run on a seed of its own. Schedules that scale themselves are not tuned.
    """

    base: RunConfig
    entrants: tuple[Entrant, ...]
    seeds: int
    lrs: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be >= 1, got {self.seeds}.")
        if not self.entrants:
            raise ValueError("schedules must name at least one schedule, got none.")
        labels = [entrant.label for entrant in self.entrants]
        if len(set(labels)) != len(labels):
            raise ValueError(f"schedules must have different labels, got {', '.join(labels)}; write label=file.")
        if not self.lrs or not all(0 < lr < math.inf for lr in self.lrs):
            raise ValueError(f"lrs must be rates > 0, got {list(self.lrs)}.")

    def to_json(self) -> str:
        """The configuration as JSON text."""
        entrants = [asdict(entrant) for entrant in self.entrants]
        base = json.loads(self.base.to_json())
        return json.dumps({"base": base, "entrants": entrants, "seeds": self.seeds, "lrs": self.lrs}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "CompareConfig":
        """The configuration of :meth:`to_json`.

        Raises:
            ValueError: if it is none.
        """
        try:
            values = json.loads(text)
            return cls(
                base=RunConfig.from_json(json.dumps(values["base"])),
                entrants=tuple(Entrant(**entrant) for entrant in values["entrants"]),
                seeds=values["seeds"],
                lrs=tuple(values["lrs"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no configuration of a comparison: {error}") from error


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    label: str
    config: RunConfig
    folder: Path


class Comparison:
    """Runs every cell that has no record yet; what was stopped or killed goes on from its checkpoint.

    Args:
        config: what to compare.
        folder: where; runs lie in folders of their own below it.
    """

    def __init__(self, config: CompareConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        task = load_task(config.base.task, data_dir=config.base.data_dir)
        self._scales_itself = {
            entrant.label: not make_schedule(entrant.schedule, config.base.total_steps, text=task.text)[0].relative
            for entrant in config.entrants
        }

    @classmethod
    def resume(cls, folder: Path) -> "Comparison":
        """The comparison of a folder.

        Raises:
            FileNotFoundError: if there is none in it.
        """
        path = folder / "compare.json"
        if not path.is_file():
            raise FileNotFoundError(f"no comparison in {folder}: it has no compare.json.")
        return cls(CompareConfig.from_json(path.read_text()), folder)

    def execute(
        self,
        *,
        workers: int = 1,
        on_cell: Callable[[str, int, int], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[dict[str, Any]] | None:
        """Run what is not done; return the records in the order of the entrants, or None if it was stopped.

        Args:
            workers: processes, >= 1; with one, runs are in this process.
            on_cell: told the label, the cells done and the cells known of, after each.
            on_progress: told the progress of the running cell (one worker only).
        """
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}.")
        write_atomically(self.folder / "compare.json", self.config.to_json())
        tuning = list(self._tuning_cells())
        final = len(self.config.entrants) * self.config.seeds

        def run(cells: Sequence[Cell], before: int) -> list[dict[str, Any]] | None:
            done = []
            for label, record in _run_all(cells, workers, on_progress):
                if record["status"] == "stopped":
                    return None
                done.append(record)
                if on_cell is not None:
                    on_cell(label, before + len(done), len(tuning) + final)
            return done

        if run(tuning, 0) is None or run(list(self._cells()), len(tuning)) is None:
            return None
        records = [_labelled(cell) for cell in self._cells()]
        write_records(records, self.folder / "records.jsonl")
        return records

    def _tuning_cells(self) -> Iterator[Cell]:
        if len(self.config.lrs) > 1:
            for entrant in self.config.entrants:
                if not self._scales_itself[entrant.label]:
                    for lr in self.config.lrs:
                        yield self._cell(entrant, _TUNING_SEED, lr, test=False)

    def _cells(self) -> Iterator[Cell]:
        for entrant in self.config.entrants:
            lr = self._chosen(entrant)
            for seed in range(self.config.seeds):
                yield self._cell(entrant, seed, lr, test=True)

    def _cell(self, entrant: Entrant, seed: int, lr: float, *, test: bool) -> Cell:
        config = replace(self.config.base, schedule=entrant.schedule, seed=seed, lr=lr, test=test)
        return Cell(entrant.label, config, self.folder / "runs" / entrant.label / f"lr-{lr:g}-seed-{seed}")

    def _chosen(self, entrant: Entrant) -> float:
        """The rate with the lowest last outer_valid loss; a diverged run never has it."""
        lrs = self.config.lrs
        if len(lrs) == 1 or self._scales_itself[entrant.label]:
            return lrs[0]

        def last_loss(lr: float) -> float:
            cell = self._cell(entrant, _TUNING_SEED, lr, test=False)
            record = json.loads((cell.folder / "record.json").read_text())
            losses = record["valid"]["loss"]
            return losses[-1] if record["status"] == "finished" and losses and losses[-1] is not None else math.inf

        return min(lrs, key=last_loss)


def _run_all(
    cells: Sequence[Cell], workers: int, on_progress: Callable[[Progress], None] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    if workers == 1:
        for cell in cells:
            yield cell.label, Run(cell.config, cell.folder, on_progress=on_progress, tensorboard=False).execute()
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_run_cell, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future].label, future.result()
        except KeyboardInterrupt:  # the workers had the signal, too, and stop after their step
            pool.shutdown(cancel_futures=True)
            yield "", {"status": "stopped"}


def _run_cell(cell: Cell) -> dict[str, Any]:
    return Run(cell.config, cell.folder, tensorboard=False).execute()


def _labelled(cell: Cell) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((cell.folder / "record.json").read_text())
    return {**record, "label": cell.label}
