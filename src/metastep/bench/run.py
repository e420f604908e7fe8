"""A run: from a configuration to trained weights, curves and a record, in a folder that can be resumed."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from metastep.bench.config import RunConfig
from metastep.bench.curves import CurveLog
from metastep.bench.methods import make_schedule
from metastep.bench.optimizers import make_optimizer
from metastep.bench.protocols import load_run_task
from metastep.bench.records import make_record, write_record
from metastep.bench.stopping import StopSignal
from metastep.files import write_atomically
from metastep.meta import MetaLearner
from metastep.meta.checkpoints import CheckpointFile
from metastep.meta.trainer import Trainer
from metastep.schedules import LearnedLR, MLRSNet, Phased, Schedule, load_schedule, save_schedule

Status = Literal["running", "finished", "diverged", "stopped"]

#: Batches of training data on which an eval-mode training loss is measured, to set the scale of a learned schedule.
_SCALE_BATCHES = 20


@dataclass
class Progress:
    """What a run tells whoever watches it, at every entry of its training curve."""

    step: int
    total_steps: int
    loss: float
    lr: float
    valid: dict[str, float]
    meta_loss: float | None


class Run:
    """One run, and its folder: ``run.json``, ``metrics.jsonl``, ``checkpoint.pt``, ``record.json``, learned schedules.

    Args:
        config: what to run.
        folder: where; made if needed. If it holds a checkpoint, the run goes on from there.
        on_progress: called at every entry of the training curve.
        tensorboard: whether to write event files.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        tensorboard: bool = True,
    ) -> None:
        self.config, self.folder = config, folder
        self.status: Status = "running"
        self.note: str | None = None
        self._on_progress = on_progress
        self._tensorboard = tensorboard
        self._stop = StopSignal()
        self._train_seconds = 0.0
        self._eval_seconds = 0.0
        self._valid: dict[str, float] = {}
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.task = load_run_task(config)
        self._checkpoint = CheckpointFile(folder / "checkpoint.pt")
        self.trainer = self._make_trainer()

    @classmethod
    def resume(cls, folder: Path, **options: Any) -> "Run":
        """The run of a folder, where its last good checkpoint stands.

        Raises:
            FileNotFoundError: if there is no run in the folder.
            ValueError: if its files cannot be read.
        """
        path = folder / "run.json"
        if not path.is_file():
            raise FileNotFoundError(f"no run in {folder}: it has no run.json; --resume wants a folder that a run made.")
        return cls(RunConfig.from_json(path.read_text()), folder, **options)

    @property
    def stop_code(self) -> int:
        """The exit code that a stop asks for: 130 after Ctrl-C, 0 after SIGTERM."""
        return self._stop.exit_code

    # ---- making

    def _make_trainer(self) -> Trainer:
        config, task = self.config, self.task
        torch.manual_seed(config.seed)
        model = task.make_model().to(config.device).train()
        optimizer = make_optimizer(config.optimizer, model.parameters(), config.lr, config.optimizer_options)
        schedule, learns = self._schedule()
        batches = task.batches("train", batch_size=config.batch_size, seed=config.seed, device=config.device)
        lr = LearnedLR(
            optimizer,
            schedule,
            num_classes=task.num_classes,
            total_steps=config.total_steps,
            warmup_steps=config.warmup_steps,
            initial_loss=None if schedule.relative or self._checkpoint.exists() else self._training_loss(model),
            measure_loss=lambda: self._training_loss(model),
        )
        learner, validation = None, None
        if learns:
            learner, validation = self._learner(lr, model)
        meta = config.meta
        return Trainer(
            model=model,
            optimizer=optimizer,
            lr=lr,
            loss=task.loss,
            batches=batches,
            learner=learner,
            validation_batches=validation,
            learns_at=None if meta is None else meta.learns_at,
            clip_norm=config.clip_norm,
        )

    def _schedule(self) -> tuple[Schedule, bool]:
        """The configured schedule; one from files is copied into the folder, so that a resume does not need them."""
        config, kept = self.config, self.folder / "schedule-used.safetensors"
        if kept.exists():
            return load_schedule(kept), False
        meta = config.meta
        if config.schedule == "mlr-snet" and meta is not None:
            schedule, learns = make_schedule(config.schedule, config.total_steps, text=self.task.text)
            assert isinstance(schedule, MLRSNet)
            return MLRSNet(meta.hidden_size, meta.num_layers, scale=schedule.scale), learns
        schedule, learns = make_schedule(config.schedule, config.total_steps, text=self.task.text)
        if not schedule.relative and not learns:
            save_schedule(schedule, kept)
        return schedule, learns

    def _learner(self, lr: LearnedLR, model: nn.Module) -> tuple[MetaLearner, Any]:
        config, task = self.config, self.task
        if task.splits["inner_valid"] == 0:
            raise ValueError(f"inner_valid must be > 0 to learn a schedule on {task.name}; it is the validation data.")
        meta = config.meta
        size = None if meta is None else meta.batch_size
        validation = task.batches(
            "inner_valid", batch_size=size or config.batch_size, seed=config.seed + 1, device=config.device
        )
        every, meta_lr = (300, 1e-3) if meta is None else (meta.every, meta.meta_lr)
        return MetaLearner(lr, lambda: task.loss(model, next(validation)), every=every, meta_lr=meta_lr), validation

    def _training_loss(self, model: nn.Module) -> float:
        """Mean training loss of the network as it is, in eval mode."""
        return self.task.evaluate(
            model,
            "train",
            batch_size=self.config.batch_size,
            max_batches=_SCALE_BATCHES,
            device=self.config.device,
        )["loss"]

    # ---- running

    def execute(self) -> dict[str, Any]:
        """Run to the end, or to a stop signal; return the record.

        SIGINT and SIGTERM end it after the current step, with a checkpoint; status is then "stopped".
        """
        if (done := self.folder / "record.json").exists():  # the test split is read once
            record: dict[str, Any] = json.loads(done.read_text())
            self.status = record["status"]
            return record
        write_atomically(self.folder / "run.json", self.config.to_json())
        self._restore()
        trainer, config = self.trainer, self.config
        log = CurveLog(self.folder, after=trainer.steps, tensorboard=self._tensorboard)
        try:
            with self._stop:
                while self.status == "running":
                    if trainer.steps >= config.total_steps:
                        self.status = "finished"
                    elif self._stop.received:
                        self.status = "stopped"
                    else:
                        self._interval(log)
            log.sync()
            self._save()
            return self._finish(log)
        finally:
            log.close()

    def _interval(self, log: CurveLog) -> None:
        """Train to the next entry of the curve, then look, keep and evaluate what is due."""
        trainer, config = self.trainer, self.config
        started, total = time.perf_counter(), torch.zeros((), device=config.device)
        first = trainer.steps
        events = [config.log_every, config.checkpoint_every, config.eval_every or config.total_steps]
        until = min(
            config.total_steps, *(_next_multiple(first, every) for every in events), *self._snapshots_after(first)
        )
        while trainer.steps < until and not self._stop.received:
            total += trainer.advance()
        if trainer.steps == first:
            return
        loss = float(total) / (trainer.steps - first)  # waits for the device: the clock is honest
        self._train_seconds += time.perf_counter() - started
        step, lr = trainer.steps, trainer.lr.get_last_lr()[0]
        log.write("train", step, {"loss": loss, "lr": lr, "seconds": self._train_seconds})
        learner = trainer.learner
        meta_loss = None if learner is None else learner.last_meta_loss
        if meta_loss is not None:
            log.write("meta", step, {"loss": meta_loss, "seconds": self._train_seconds})
        if not math.isfinite(loss):
            self.status = "diverged"
        elif config.eval_every is not None and (step % config.eval_every == 0 or step == config.total_steps):
            self._evaluate(log)
        if self._on_progress is not None:
            self._on_progress(Progress(step, config.total_steps, loss, lr, self._valid, meta_loss))
        if step in self._snapshots():
            save_schedule(trainer.lr.schedule, self._snapshot(step))
        if step % config.checkpoint_every == 0 and step < config.total_steps:
            log.sync()
            self._save()

    def _evaluate(self, log: CurveLog) -> None:
        if self.task.splits["outer_valid"] == 0:
            return
        started = time.perf_counter()
        self._valid = self.task.evaluate(self.trainer.model, "outer_valid", device=self.config.device)
        self._eval_seconds += time.perf_counter() - started
        log.write("valid", self.trainer.steps, {**self._valid, "seconds": self._train_seconds})

    def _finish(self, log: CurveLog) -> dict[str, Any]:
        test: dict[str, float] = {}
        if self.status == "finished":
            if self.trainer.learner is not None:
                self._save_learned()
            if self.config.test:
                started = time.perf_counter()
                test = self.task.evaluate(self.trainer.model, "test", device=self.config.device)
                self._eval_seconds += time.perf_counter() - started
        log.sync()
        record = make_record(
            self.config,
            self.task,
            status=self.status,
            entries=log.path,
            final=test,
            train_seconds=self._train_seconds,
            eval_seconds=self._eval_seconds,
            scale=self.trainer.lr.scale,
            learned=any(isinstance(part, MLRSNet) for part in self.trainer.lr.schedule.modules()),
        )
        if self.status != "stopped":
            write_record(record, self.folder / "record.json")
        return record

    # ---- what is kept

    def _restore(self) -> None:
        if not self._checkpoint.exists():
            return
        state, self.note = self._checkpoint.load()
        self.trainer.load_state_dict(state["trainer"])
        self._train_seconds, self._eval_seconds = state["train_seconds"], state["eval_seconds"]
        self._valid = state["valid"]
        self.status = "diverged" if state["status"] == "diverged" else "running"

    def _save(self) -> None:
        self._checkpoint.save(
            {
                "trainer": self.trainer.state_dict(),
                "train_seconds": self._train_seconds,
                "eval_seconds": self._eval_seconds,
                "valid": self._valid,
                "status": self.status,
            }
        )

    def _snapshots(self) -> tuple[int, ...]:
        meta = self.config.meta
        return () if meta is None or self.trainer.learner is None else meta.snapshots

    def _snapshots_after(self, step: int) -> list[int]:
        return [snapshot for snapshot in self._snapshots() if snapshot > step]

    def _snapshot(self, step: int) -> Path:
        return self.folder / "snapshots" / f"step-{step:07d}.safetensors"

    def _save_learned(self) -> None:
        """Write ``schedule.safetensors``: the snapshots as one schedule of phases, or the last weights alone."""
        files = [self._snapshot(step) for step in self._snapshots()]
        learned: Schedule = self.trainer.lr.schedule
        if len(files) > 1:
            learned = Phased([load_schedule(file) for file in files])
        save_schedule(learned, self.folder / "schedule.safetensors")


def _next_multiple(step: int, every: int) -> int:
    return (step // every + 1) * every
