"""A run: from a configuration to trained weights, curves and a record, in a folder that can be resumed."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metastep.core.distributed import barrier, broadcast_object, current_rank, rank_count
from metastep.files import write_atomically
from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.curves import CurveLog, SilentLog
from metastep.lab.bench.open_entry import OpenEntry
from metastep.lab.bench.protocols import load_run_task
from metastep.lab.bench.ranks import any_rank, gather_rank_states, mean_of_ranks, rank_zero_decides, with_rank_state
from metastep.lab.bench.rates import applied_rate, layer_rates, layers_every
from metastep.lab.bench.records import make_record, read_record, write_record
from metastep.lab.bench.schedules import is_from_files
from metastep.lab.bench.trainers import make_trainer
from metastep.lab.runtime.folder import CheckpointFile, Folder
from metastep.lab.runtime.stop_signals import never
from metastep.lab.tasks import Task
from metastep.schedules import MLRSNet, Phased, Schedule, load_schedule, save_schedule

_LOG = logging.getLogger(__name__)

Status = Literal["running", "finished", "diverged", "stopped"]

#: Without ``checkpoint_every``: seconds between checkpoints, or so many times what saving one takes if that is more.
_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE = 30.0, 20.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run tells whoever watches it, after every stretch of steps."""

    step: int
    total_steps: int
    loss: float
    lr: float
    valid: dict[str, float]
    meta_loss: float | None


class Run:
    """One run, and its folder: ``run.json``, ``metrics.jsonl``, ``checkpoint.pt``, ``record.json``, schedules.

    On several processes each makes a Run; the first writes the folder, which all of them read.

    Args:
        config: what to run.
        folder: where; made if needed. If it holds a run of this configuration, that goes on.
        schedule_file: read the schedule from here rather than from where the configuration says.
        should_stop: asked before every step; True stops there, with a checkpoint.
        on_progress: called after every stretch of steps.
        on_note: told what a person should know, such as a damaged checkpoint; default: the log, as a warning.
        tensorboard: whether to write event files.
        task: the run's, where it has been read already.

    Raises:
        ValueError: for a configuration that cannot be run, or that is not that of the run in the folder.
        OSError: for data or schedule files that are not there.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        schedule_file: Path | None = None,
        should_stop: Callable[[], bool] = never,
        on_progress: Callable[[Progress], None] | None = None,
        on_note: Callable[[str], None] | None = None,
        tensorboard: bool = True,
        task: Task | None = None,
    ) -> None:
        self.config, self.folder = config, folder
        self.status: Status = "running"
        self._one_should_stop = should_stop
        self._on_progress, self._on_note = on_progress, on_note
        self._tensorboard = tensorboard
        self._writes = current_rank() == 0
        self._valid: dict[str, float] = {}
        self._train_seconds, self._eval_seconds = 0.0, 0.0
        self._open = OpenEntry()
        self._saved_at, self._saving_took = time.monotonic(), 0.0
        begun = (folder / "run.json").is_file()
        if begun and read_config(folder) != config:
            raise ValueError(f"config must be that of the run in {folder}, got another; use a new folder.")
        self._schedule_file = schedule_file
        if begun and schedule_file is None and self._kept_schedule.is_file():
            self._schedule_file = self._kept_schedule
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.task = load_run_task(config) if task is None else task
        self._checkpoint = CheckpointFile(folder / "checkpoint.pt")
        fresh = not (begun and self._checkpoint.exists())
        self.trainer = make_trainer(config, self.task, schedule_file=self._schedule_file, fresh=fresh)

    # ---- running

    def execute(self) -> dict[str, Any]:
        """Run to the end, or until ``should_stop``; return the record.

        A run that has come to its end is not run again, so the test split is read once.

        Raises:
            FolderInUse: if another process is at it.
            OSError: if something cannot be written; the last good checkpoint is kept.
        """
        barrier()  # until they have looked into the folder
        with Folder(self.folder) if self._writes else nullcontext():
            record: dict[str, Any] | None = broadcast_object(read_record(self.folder) if self._writes else None)
            if record is not None:
                self.status = record["status"]
                return record
            if self._writes:
                self._begin()
            self._restore()
            log = self._open_log()
            try:
                while self.status == "running":
                    if self.trainer.steps >= self.config.total_steps:
                        self.status = "finished"
                    elif self._should_stop():
                        self.status = "stopped"
                    else:
                        self._stretch(log)
                self._save(log)
                return self._finish(log)
            finally:
                log.close()

    def _open_log(self) -> CurveLog:
        if not self._writes:
            return SilentLog(self.folder)
        return CurveLog(self.folder, after=self.trainer.steps, tensorboard=self._tensorboard)

    def _should_stop(self) -> bool:
        return any_rank(self._one_should_stop())

    def _stretch(self, log: CurveLog) -> None:
        """Train to the next step at which something is due: an entry, a look, a snapshot, a checkpoint."""
        trainer, config = self.trainer, self.config
        until = self._next_event()
        started = time.perf_counter()
        self._open.add(self._advance(until))  # waits for the device: the clock is honest
        loss_sum = mean_of_ranks(self._open.total)
        self._train_seconds += time.perf_counter() - started
        if trainer.steps < until:
            return
        step, loss, lr = trainer.steps, loss_sum / self._open.count, applied_rate(trainer.optimizer, trainer.lr)
        learner = trainer.learner
        meta_loss = None if learner is None else learner.last_meta_loss
        if not math.isfinite(loss):
            self.status = "diverged"
        if self.status == "diverged" or self._due(config.log_every):
            log.write("train", step, {"loss": loss, "lr": lr, "seconds": self._train_seconds})
            rates = (
                layer_rates(trainer.optimizer) if self._due(layers_every(config.total_steps, config.log_every)) else {}
            )
            if rates:
                log.write("layers", step, rates)
            if meta_loss is not None:
                log.write("meta", step, {"loss": meta_loss, "seconds": self._train_seconds})
            self._open = OpenEntry()
        if self.status == "running" and config.eval_every is not None and self._due(config.eval_every):
            self._evaluate(log)
        if self._on_progress is not None:
            total = config.total_steps
            self._on_progress(
                Progress(step=step, total_steps=total, loss=loss, lr=lr, valid=self._valid, meta_loss=meta_loss)
            )
        if self._writes and step in self._snapshots():
            save_schedule(trainer.lr.schedule, self._snapshot(step))
        if rank_zero_decides(self._checkpoint_due) and step < config.total_steps:
            self._save(log)

    def _advance(self, until: int) -> list[Tensor]:
        """Take steps, up to a number of them in all, or until it is to stop; return their losses, () each."""
        trainer, losses = self.trainer, list[Tensor]()
        should_stop = self._should_stop if rank_count() > 1 else self._one_should_stop
        while trainer.steps < until and not should_stop():
            losses.append(trainer.advance())
        return losses

    def _next_event(self) -> int:
        config, step = self.config, self.trainer.steps
        intervals = [config.log_every, config.checkpoint_every, config.eval_every]
        events = [(step // every + 1) * every for every in intervals if every is not None]
        return min(config.total_steps, *events, *(snapshot for snapshot in self._snapshots() if snapshot > step))

    def _due(self, every: int) -> bool:
        return self.trainer.steps % every == 0 or self.trainer.steps == self.config.total_steps

    def _checkpoint_due(self) -> bool:
        if self.config.checkpoint_every is not None:
            return self._due(self.config.checkpoint_every)
        return time.monotonic() - self._saved_at > max(_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * self._saving_took)

    def _evaluate(self, log: CurveLog) -> None:
        if self.task.splits["outer_valid"] == 0:
            return
        started = time.perf_counter()
        with self.trainer.evaluating():
            self._valid = self.task.evaluate(self.trainer.network, "outer_valid", device=self.config.device)
        self._eval_seconds += time.perf_counter() - started
        log.write("valid", self.trainer.steps, {**self._valid, "seconds": self._train_seconds})

    def _finish(self, log: CurveLog) -> dict[str, Any]:
        test: dict[str, float] = {}
        inner: dict[str, float] = {}
        if self.status == "finished":
            if self._writes and self.trainer.learner is not None:
                self._save_learned()
            started = time.perf_counter()
            with self.trainer.evaluating():
                if self.config.inner:
                    inner = self.task.evaluate(self.trainer.network, "inner_valid", device=self.config.device)
                if self.config.test:
                    test = self.task.evaluate(self.trainer.network, "test", device=self.config.device)
            self._eval_seconds += time.perf_counter() - started
        if not self._writes:
            return dict(broadcast_object(None))
        record = make_record(
            self.config,
            self.task,
            status=self.status,
            entries=log.path,
            final=test,
            inner=inner,
            train_seconds=self._train_seconds,
            eval_seconds=self._eval_seconds,
            scale=self.trainer.lr.scale,
            learned=any(isinstance(part, MLRSNet) for part in self.trainer.lr.schedule.modules()),
        )
        if self.status != "stopped":
            write_record(record, self.folder / "record.json")
        return dict(broadcast_object(record))

    # ---- what is kept

    @property
    def _kept_schedule(self) -> Path:
        return self.folder / "schedule-used.safetensors"

    def _begin(self) -> None:
        """Write the configuration, and the schedule if it is from files: a resume does not need those."""
        if not (self.folder / "run.json").is_file():
            write_atomically(self.folder / "run.json", self.config.to_json())
        if self._schedule_file is None and is_from_files(self.config.schedule):
            save_schedule(self.trainer.lr.schedule, self._kept_schedule)

    def _restore(self) -> None:
        if not self._checkpoint.exists():
            return
        state, note = self._checkpoint.load()
        if note is not None:
            (self._on_note or _LOG.warning)(note)
        self.trainer.load_state_dict(with_rank_state(state["trainer"], state.get("processes", [{}])))
        self._train_seconds, self._eval_seconds = state["train_seconds"], state["eval_seconds"]
        self._valid = state["valid"]
        self._open = OpenEntry(*state.get("open_entry", ()))
        self.status = "diverged" if state["status"] == "diverged" else "running"

    def _save(self, log: CurveLog) -> None:
        """Write a checkpoint, after the curves that belong to it."""
        started = time.monotonic()
        trainer, loss_sum = self.trainer.state_dict(), mean_of_ranks(self._open.total)
        state = {
            "trainer": trainer,
            "processes": gather_rank_states(trainer),
            "train_seconds": self._train_seconds,
            "eval_seconds": self._eval_seconds,
            "valid": self._valid,
            "open_entry": (loss_sum, self._open.count),
            "status": self.status,
        }
        if self._writes:
            log.sync()
            self._checkpoint.save(state)
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - started

    def _snapshots(self) -> tuple[int, ...]:
        meta = self.config.meta
        return () if meta is None or self.trainer.learner is None else meta.snapshots

    def _snapshot(self, step: int) -> Path:
        return self.folder / "snapshots" / f"step-{step:07d}.safetensors"

    def _save_learned(self) -> None:
        """Write ``schedule.safetensors``: the snapshots as one schedule of phases, or the last weights alone."""
        files = [self._snapshot(step) for step in self._snapshots()]
        learned: Schedule = self.trainer.lr.schedule
        if len(files) > 1:
            learned = Phased([load_schedule(file) for file in files])
        save_schedule(learned, self.folder / "schedule.safetensors")


def read_config(folder: Path) -> RunConfig:
    """Return the configuration of the run in a folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read.
    """
    path = folder / "run.json"
    if not path.is_file():
        other = f"; it holds a comparison: metastep compare --resume {folder}"
        hint = other if (folder / "compare.json").is_file() else "; --resume wants a folder that a run made"
        raise FileNotFoundError(f"no run in {folder}{hint}.")
    return RunConfig.from_json(path.read_text())
