"""A worker of a population: trains one task's network with the schedule that all tasks share."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from metastep.lab.bench.protocols import load_run_task
from metastep.lab.bench.ranks import on_cpu
from metastep.lab.bench.run import LossSum, applied_rate
from metastep.lab.bench.task_messages import (
    Arrived,
    Assignment,
    Channel,
    Ended,
    Entry,
    Facts,
    Failed,
    Given,
    Learned,
    Ready,
    Saved,
)
from metastep.lab.bench.training import make_trainer
from metastep.meta.averaging import HandsOver, Lesson, learned_weights, set_weights


def train_task(assignment: Assignment, channel: Channel) -> None:
    """Train the task to its end, or until it is asked to stop; whatever goes wrong is said over the channel."""
    torch.set_num_threads(assignment.config.threads or assignment.threads)
    try:
        SharedRun(assignment, channel).execute()
    except (BrokenPipeError, EOFError, ConnectionResetError):
        return  # nobody is left to tell
    except Exception as error:
        refused = isinstance(error, ValueError | OSError | ImportError)
        text = str(error) if refused else f"{type(error).__name__}: {error}"
        channel.send(Failed(text=f"{assignment.label}: {text}", refused=refused))


class SharedRun:
    """One task's run: like :class:`~.run.Run`, but what is learned and what is kept is decided elsewhere.

    Raises:
        ValueError: for a configuration that cannot be run.
        OSError: for data that are not there.
    """

    def __init__(self, assignment: Assignment, channel: Channel) -> None:
        self.config, self._channel = assignment.config, channel
        if self.config.meta is None:
            raise ValueError("meta must be given to learn a schedule, got None.")
        self.task = load_run_task(self.config)
        state = assignment.state
        self.trainer = make_trainer(self.config, self.task, fresh=state is None)
        assert self.trainer.learner is not None
        self.learner, self.schedule = self.trainer.learner, self.trainer.lr.schedule
        meta_optimizer = self.learner.meta_optimizer
        self._weights = learned_weights(self.schedule)
        self._hand_over = HandsOver(self._weights, self._exchange)
        self.learner.meta_optimizer = self._hand_over
        self._entries: list[Entry] = []
        self._open, self._losses = LossSum(), list[Tensor]()  # of the curve; of the steps that are not yet in it
        self._train_seconds, self._eval_seconds = 0.0, 0.0
        self._last_loss = math.nan  # the mean since the last entry of the curve, or that entry's
        self._status, self._save = "running", False
        if state is not None:
            self._load_state_dict(state)
        facts = Facts(metric=self.task.metric, notes=self.task.notes, splits=dict(self.task.splits))
        channel.send(Ready(schedule=self.schedule, meta_optimizer=meta_optimizer, facts=facts))
        self._take(channel.receive())

    def execute(self) -> None:
        """Run; the channel hears of it."""
        config, trainer = self.config, self.trainer
        assert config.meta is not None
        while trainer.steps < config.total_steps and self._status == "running":
            learns = config.meta.learns_at(trainer.steps)
            if self._channel.asked_to_stop() or (learns and not self._may_learn()):
                self._channel.send(Saved(state=self.state_dict(), entries=self._new_entries(), stopped=True))
                return
            self._step(learns=learns)
            if self._save:
                self._save = False
                self._channel.send(Saved(state=self.state_dict(), entries=self._new_entries(), stopped=False))
        self._end()

    def _may_learn(self) -> bool:
        entry = self._open_entry()
        if entry.count:
            self._last_loss = entry.total / entry.count
        rate, entries = applied_rate(self.trainer.optimizer, self.trainer.lr), self._new_entries()
        self._channel.send(Arrived(step=self.trainer.steps, entries=entries, loss=self._last_loss, lr=rate))
        return bool(self._channel.receive())

    def _step(self, *, learns: bool) -> None:
        started, before = time.perf_counter(), self._hand_over.handed_over
        self._losses.append(self.trainer.advance())
        if learns and self._hand_over.handed_over == before:  # the learner found nothing that is finite
            self._take(self._exchange(None))
        self._train_seconds += time.perf_counter() - started
        config = self.config
        if self._due(config.log_every):
            self._log_training()
        if self._status == "running" and config.eval_every is not None and self._due(config.eval_every):
            self._evaluate()

    def _due(self, every: int) -> bool:
        return self.trainer.steps % every == 0 or self.trainer.steps == self.config.total_steps

    def _log_training(self) -> None:
        started = time.perf_counter()
        entry = self._open_entry()  # waits for the device: the clock is honest
        loss = entry.total / entry.count
        self._train_seconds += time.perf_counter() - started
        self._last_loss = loss
        if not math.isfinite(loss):
            self._status = "diverged"
        self._log("train", {"loss": loss, "lr": applied_rate(self.trainer.optimizer, self.trainer.lr)})
        if self.learner.last_meta_loss is not None:
            self._log("meta", {"loss": self.learner.last_meta_loss})
        self._open = LossSum()

    def _open_entry(self) -> LossSum:
        self._open.add(self._losses)
        self._losses.clear()
        return self._open

    def _log(self, split: str, values: dict[str, float]) -> None:
        self._entries.append((split, self.trainer.steps, {**values, "seconds": self._train_seconds}))

    def _evaluate(self) -> None:
        if self.task.splits["outer_valid"] > 0:
            self._log("valid", self._measured("outer_valid"))

    def _measured(self, split: str) -> dict[str, float]:
        started = time.perf_counter()
        found = self.task.evaluate(self.trainer.network, split, device=self.config.device)
        self._eval_seconds += time.perf_counter() - started
        return found

    def _end(self) -> None:
        final: dict[str, float] = {}
        if self._status == "running":
            self._status = "finished"
            final = self._measured("test") if self.config.test else {}
        self._channel.send(
            Ended(
                status=self._status,
                entries=self._new_entries(),
                final=final,
                train_seconds=self._train_seconds,
                eval_seconds=self._eval_seconds,
                scale=self.trainer.lr.scale,
            )
        )

    # ---- the shared schedule

    def _exchange(self, lesson: Lesson) -> list[Tensor]:
        """Give this task's meta-gradient; return the weights that all tasks go on with."""
        on_host = None if lesson is None else [part.cpu() for part in lesson]
        self._channel.send(Given(lesson=on_host, validation_loss=self.learner.last_meta_loss))
        answer: Learned = self._channel.receive()
        self._save = answer.save
        return answer.weights

    def _take(self, weights: list[Tensor]) -> None:
        set_weights(self._weights, weights)
        self.schedule.weights_changed()

    # ---- what is kept

    def _new_entries(self) -> list[Entry]:
        entries, self._entries = self._entries, []
        return entries

    def state_dict(self) -> dict[str, Any]:
        """Everything that the task needs to go on."""
        state: dict[str, Any] = on_cpu(self.trainer.state_dict())
        entry = self._open_entry()
        return {
            "trainer": state,
            "open_entry": (entry.total, entry.count),
            "seconds": (self._train_seconds, self._eval_seconds),
        }

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self._open = LossSum(*state["open_entry"])
        self._train_seconds, self._eval_seconds = state["seconds"]
