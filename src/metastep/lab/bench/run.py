"""A run: from a configuration to trained weights, curves and a record, in a folder that can be resumed."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor
from torch.optim import Optimizer

from metastep.core.distributed import (
    barrier,
    broadcast_object,
    current_rank,
    gather_objects,
    mean_over_ranks,
    rank_count,
)
from metastep.files import decode_json
from metastep.lab.bench.config import RunConfig, read_config
from metastep.lab.bench.curves import CurveLog, columns_of, layers_of
from metastep.lab.bench.protocols import load_run_task
from metastep.lab.bench.schedules import is_from_files, phases_of
from metastep.lab.bench.training import make_trainer
from metastep.lab.records import Record, encode_record, read_record
from metastep.lab.runtime.folder import CheckpointError, Folder, LogMark, state_of
from metastep.lab.runtime.provenance import provenance
from metastep.lab.runtime.stop_signals import never
from metastep.lab.tasks import Task
from metastep.lab.tasks.own_model import code_digests
from metastep.optim.hyper import HyperOptimizer
from metastep.schedules import LearnedLR, MLRSNet, Schedule, load_schedule, save_schedule

_LOG = logging.getLogger(__name__)

Status = Literal["running", "finished", "diverged", "stopped"]

#: Without ``checkpoint_every``: seconds between checkpoints, or so many times what saving one takes if that is more.
_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE = 30.0, 20.0

#: About so many times in a run the rates of the layers are written.
LAYER_ENTRIES = 60

#: What torch and its modules raise for a state that is of another network or optimizer, or of other types.
_NOT_THE_STATE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run tells whoever watches it, after every stretch of steps."""

    step: int
    total_steps: int
    loss: float
    lr: float
    valid: dict[str, float]
    meta_loss: float | None


class LossSum:
    """Adds losses one after the other, in float64, so that where a run was interrupted cannot be seen in their mean.

    Args:
        total: sum of the losses since the last entry of the training curve.
        count: how many they are.
    """

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self.total, self.count = total, count

    def add(self, losses: Sequence[Tensor]) -> None:
        """Take losses, () each and on one device, which is waited for once for all of them."""
        for loss in torch.stack(list(losses)).tolist() if losses else ():
            self.total += loss
        self.count += len(losses)


class _State(msgspec.Struct, kw_only=True):
    """What a checkpoint holds; what has a default is missing in those of older versions."""

    trainer: dict[str, Any]
    processes: list[dict[str, Any]] = msgspec.field(default_factory=lambda: [{}])  # of each rank, what is its own
    train_seconds: float
    eval_seconds: float
    valid: dict[str, float]
    open_entry: tuple[float, int] = (0.0, 0)
    status: Literal["running", "finished", "diverged", "stopped"]
    log: LogMark | None = None  # what metrics.jsonl holds


class Run:
    """One run, and its folder: ``run.json``, ``metrics.jsonl``, ``checkpoint.pt``, ``record.json``, schedules.

    On several ranks each makes a Run; rank 0 writes the folder, which all of them read.

    Args:
        config: what to run.
        folder: where; made if needed. A run of this configuration that it holds is resumed.
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
        self._losses = LossSum()
        self._resumed = False
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
        if config.code and self._writes and config.code != code_digests(config.code):
            self._note(
                f"the code of {', '.join(config.code)} has changed since the run began; it goes on with the new."
            )
        self._folder = Folder(folder)
        fresh = not (begun and self._folder.checkpoint.exists())
        self.trainer = make_trainer(config, self.task, schedule_file=self._schedule_file, fresh=fresh)

    # ---- running

    def execute(self) -> Record:
        """Run to the end, or until ``should_stop``; return the record.

        A run that has come to its end is not run again, so the test split is read once.

        Raises:
            FolderInUse: if another process is at it.
            FolderGone: if the folder, or a file that it needs, was deleted or renamed on the way.
            CheckpointError: if the folder holds checkpoints, and none that is of this run can be read.
            OSError: if something cannot be written; the last good checkpoint, if there is one, is kept.
        """
        barrier()  # until all ranks have looked into the folder
        with self._folder if self._writes else nullcontext():
            if (record := self._finished_record()) is not None:
                self.status = "diverged" if record.status == "diverged" else "finished"
                return record
            if self._writes:
                self._begin()
            mark = self._restore()
            log = self._open_log(mark) if self._writes else None
            try:
                return self._train(log)
            except _NOT_THE_STATE as error:
                if not self._resumed or isinstance(error, ValueError):
                    raise
                raise CheckpointError(
                    f"the run in {self.folder} failed after it was resumed; its checkpoint may be damaged, or of "
                    f"another version ({type(error).__name__}: {_first_line(error)})."
                ) from error
            finally:
                if log is not None:
                    log.close()

    def _train(self, log: CurveLog | None) -> Record:
        while self.status == "running":
            if self.trainer.steps >= self.config.total_steps:
                self.status = "finished"
            elif self._should_stop():
                self.status = "stopped"
            else:
                self._stretch(log)
        self._save(log)
        return self._finish(log)

    def _finished_record(self) -> Record | None:
        """The record of a run that has come to its end, on all ranks."""
        path = self.folder / "record.json"
        record = read_record(path) if self._writes and path.is_file() else None
        found: Record | None = broadcast_object(record)
        return found

    def _open_log(self, mark: LogMark | None) -> CurveLog:
        after, clock = self.trainer.steps, self._train_seconds
        log = CurveLog(self.folder, mark=mark, after=after, clock=clock, tensorboard=self._tensorboard)
        if log.damage is not None:
            self._note(log.damage)
        self._folder.needed |= {"run.json", log.path.name}
        return log

    def _note(self, text: str) -> None:
        (self._on_note or _LOG.warning)(text)

    def _should_stop(self) -> bool:
        """Whether one of the ranks is to stop: an all-reduce of 8 bytes."""
        return mean_of_ranks(float(self._one_should_stop())) > 0

    def _stretch(self, log: CurveLog | None) -> None:
        """Train to the next step at which something is due: an entry, a look, a snapshot, a checkpoint."""
        trainer, config = self.trainer, self.config
        until = self._next_event()
        started = time.perf_counter()
        self._losses.add(self._advance(until))  # waits for the device: the clock is honest
        loss_sum = mean_of_ranks(self._losses.total)
        self._train_seconds += time.perf_counter() - started
        if trainer.steps < until:
            return
        step, loss, lr = trainer.steps, loss_sum / self._losses.count, applied_rate(trainer.optimizer, trainer.lr)
        learner = trainer.learner
        meta_loss = None if learner is None else learner.last_meta_loss
        if not math.isfinite(loss):
            self.status = "diverged"
        if self.status == "diverged" or self._due(config.log_every):
            if log is not None:
                log.write("train", step, {"loss": loss, "lr": lr, "seconds": self._train_seconds})
                if self._due(_layers_every(config)) and (rates := layer_rates(trainer.optimizer)):
                    log.write("layers", step, rates)
                if meta_loss is not None:
                    log.write("meta", step, {"loss": meta_loss, "seconds": self._train_seconds})
            self._losses = LossSum()
        if self.status == "running" and config.eval_every is not None and self._due(config.eval_every):
            self._evaluate(log)
        if self._on_progress is not None:
            total = config.total_steps
            self._on_progress(
                Progress(step=step, total_steps=total, loss=loss, lr=lr, valid=self._valid, meta_loss=meta_loss)
            )
        if self._writes and step in self._snapshots():
            self._folder.check()
            save_schedule(trainer.lr.schedule, self._snapshot(step))
        if broadcast_object(self._writes and self._checkpoint_due()) and step < config.total_steps:
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

    def _evaluate(self, log: CurveLog | None) -> None:
        if self.task.splits["outer_valid"] == 0:
            return
        started = time.perf_counter()
        with self.trainer.evaluating():
            self._valid = self.task.evaluate(self.trainer.network, "outer_valid", device=self.config.device)
        self._eval_seconds += time.perf_counter() - started
        if log is not None:
            log.write("valid", self.trainer.steps, {**self._valid, "seconds": self._train_seconds})

    def _finish(self, log: CurveLog | None) -> Record:
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
        record = None if log is None else self._record(log, test, inner)
        if record is not None:
            if self.status != "stopped":
                self._folder.write("record.json", encode_record(record))
            self._folder.check()
        shared: Record = broadcast_object(record)
        return shared

    def _record(self, log: CurveLog, test: dict[str, float], inner: dict[str, float]) -> Record:
        config, metric, entries = self.config, self.task.metric, log.entries()
        train = columns_of(entries, "train", ("step", "seconds", "loss", "lr"))
        assert self.status != "running"
        return Record(
            task=config.task,
            schedule=config.schedule,
            label=config.schedule,
            seed=config.seed,
            optimizer=config.optimizer,
            lr=config.lr,
            batch_size=config.batch_size,
            total_steps=config.total_steps,
            status=self.status,
            train=train,
            valid=columns_of(entries, "valid", ("step", "seconds", "loss", metric)),
            layers=layers_of(entries),
            meta=columns_of(entries, "meta", ("step", "seconds", "loss")),
            final={name: _finite(test.get(name)) for name in ("loss", metric)},
            inner={name: _finite(inner.get(name)) for name in ("loss", metric)},
            train_seconds=self._train_seconds,
            eval_seconds=self._eval_seconds,
            peak_rate=max((rate for rate in train["lr"] if rate is not None), default=None),
            scale=self.trainer.lr.scale,
            learned=any(isinstance(part, MLRSNet) for part in self.trainer.lr.schedule.modules()),
            settings={
                **decode_json(config.to_json(), dict[str, Any], "settings"),
                "data": self.task.notes,
                "splits": dict(self.task.splits),
            },
            **provenance(config.device),
        )

    # ---- what is kept

    @property
    def _kept_schedule(self) -> Path:
        return self.folder / "schedule-used.safetensors"

    def _begin(self) -> None:
        """Write the configuration, and the schedule if it is from files: a resume does not need those."""
        if not (self.folder / "run.json").is_file():
            self._folder.write("run.json", self.config.to_json())
        if self._schedule_file is None and is_from_files(self.config.schedule):
            save_schedule(self.trainer.lr.schedule, self._kept_schedule)

    def _restore(self) -> LogMark | None:
        """Load the checkpoint, if there is one; return what it says of the log.

        Raises:
            CheckpointError: if none can be read, or it is not of this run.
            ValueError: if it is of a run on more, or fewer, ranks.
        """
        if not self._folder.checkpoint.exists():
            return None
        content, note = self._folder.checkpoint.load()
        if note is not None and self._writes:
            self._note(note)
        what = f"the checkpoint in {self.folder}"
        state = state_of(content, _State, what)
        own = with_rank_state(state.trainer, state.processes)
        try:
            self.trainer.load_state_dict(own)
            if not 0 <= self.trainer.steps <= self.config.total_steps:
                raise ValueError(f"steps must be from 0 to {self.config.total_steps}, got {self.trainer.steps}")
        except _NOT_THE_STATE as error:
            raise CheckpointError(f"{what} is damaged, or of another run: {_first_line(error)}.") from error
        self._resumed = True
        self._train_seconds, self._eval_seconds = state.train_seconds, state.eval_seconds
        self._valid = state.valid
        self._losses = LossSum(*state.open_entry)
        self.status = "diverged" if state.status == "diverged" else "running"
        return state.log

    def _save(self, log: CurveLog | None) -> None:
        """Write a checkpoint, after the curves that belong to it."""
        started = time.monotonic()
        trainer, loss_sum = self.trainer.state_dict(), mean_of_ranks(self._losses.total)
        state = {
            "trainer": trainer,
            "processes": gather_objects(_of_this_rank(trainer)),
            "train_seconds": self._train_seconds,
            "eval_seconds": self._eval_seconds,
            "valid": self._valid,
            "open_entry": (loss_sum, self._losses.count),
            "status": self.status,
        }
        if log is not None:
            self._folder.save({**state, "log": asdict(log.sync())})
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
            learned = phases_of([load_schedule(file) for file in files])
        save_schedule(learned, self.folder / "schedule.safetensors")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# ---- several ranks: rank 0 writes the folder, and each trains on its rows of every batch


def mean_of_ranks(number: float) -> float:
    """The mean over the ranks."""
    return float(mean_over_ranks(torch.tensor(number, dtype=torch.float64)))


def _of_this_rank(state: dict[str, Any]) -> Any:
    """The parts of a trainer's state that differ between ranks, to be sent."""
    return _on_cpu({key: state[key] for key in ("batches", "validation_batches", "rng", "device_rng")})


def with_rank_state(state: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank 0's state of a trainer, with this rank's own part.

    Raises:
        ValueError: if there were more, or fewer, processes.
    """
    if len(parts) != rank_count():
        raise ValueError(
            f"the checkpoint is of a run on {len(parts)} process{'es' * (len(parts) > 1)}, this is one on "
            f"{rank_count()}; resume with torchrun --nproc-per-node {len(parts)} (or as many on several machines)."
        )
    return {**state, **parts[current_rank()]}


def _on_cpu(value: Any) -> Any:
    """A state with its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    return [_on_cpu(part) for part in value] if isinstance(value, list) else value


# ---- the rates that a run writes down


def applied_rate(optimizer: Optimizer, lr: LearnedLR) -> float:
    """The rate that moved the parameters of the first group in the last step.

    An optimizer that makes its own rate says it (``applied_rate``). Where rates adapt themselves it is the mean over
    the parameters: the schedule's is only what they start from.
    """
    own: Callable[[], float] | None = getattr(optimizer, "applied_rate", None)
    if own is not None:
        return float(own())
    if not isinstance(optimizer, HyperOptimizer):
        return lr.get_last_lr()[0]
    group, rates = optimizer.param_groups[0], optimizer.rates()[0]["combined"]
    total, elements = 0.0, 0
    for rate, parameter in zip(rates.values(), (p for p in group["params"] if p.requires_grad), strict=True):
        total += float(rate.mean()) * parameter.numel()
        elements += parameter.numel()
    return total / max(elements, 1)


def layer_rates(optimizer: Optimizer) -> dict[str, float]:
    """By name, the mean rate of each tensor; empty where rates do not adapt themselves."""
    if not isinstance(optimizer, HyperOptimizer):
        return {}
    with torch.no_grad():
        return {name: float(rate.mean()) for group in optimizer.rates() for name, rate in group["combined"].items()}


def _layers_every(config: RunConfig) -> int:
    """Steps between two entries of the layers' rates: a multiple of those between two of the loss."""
    return config.log_every * max(1, config.total_steps // (LAYER_ENTRIES * config.log_every))
