"""Many tasks at once: each trains its own network, and all learn one schedule from the mean of their meta-gradients."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.run import Progress
from metastep.lab.bench.task_folder import Member, TasksFolder
from metastep.lab.bench.task_messages import (
    Arrived,
    Assignment,
    Ended,
    Failed,
    Given,
    Learned,
    Message,
    Ready,
    Saved,
    Workers,
)
from metastep.lab.runtime.folder import Folder
from metastep.lab.runtime.stop_signals import never
from metastep.meta.averaging import SharedSchedule, learned_weights

#: Workers that a task may lose before it is dropped.
LOSSES = 3
#: Without ``checkpoint_every``: seconds between checkpoints, or so many times what saving one takes if that is more.
_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE = 30.0, 20.0
_POLL_SECONDS = 0.2


class ManyTasks:
    """Meta-training over several tasks at once, in a folder that can be resumed.

    Each task has a worker, which trains the task's network with the shared schedule. All meet in every meta-step: the
    mean of their meta-gradients moves the schedule, whose new weights go to all. The r-th meta-steps of all are round
    r; a task with fewer of them than the others leaves when it has had its own.

    A lost worker costs the steps of its task since the last checkpoint: another worker takes the task from there, and
    the others wait for it. The third loss drops the task.

    Args:
        configs: the tasks' runs; each learns a schedule, of the same shape.
        folder: where; if it holds a population of these runs, that goes on.
        workers: makes the workers when they are needed.
        should_stop: True stops every task after its step, with a checkpoint.
        on_progress: told of every round: its number, and the means over the tasks.
        on_note: told what a person should know: a lost worker, a damaged checkpoint.

    Raises:
        ValueError: for runs that do not learn, or others than those in the folder.
    """

    def __init__(
        self,
        configs: Sequence[RunConfig],
        folder: Path,
        *,
        workers: Callable[[], Workers],
        should_stop: Callable[[], bool] = never,
        on_progress: Callable[[Progress], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self._folder = TasksFolder(folder, configs)
        self._members = self._folder.members
        self._make_workers, self._should_stop = workers, should_stop
        self._on_progress, self._note = on_progress, on_note or (lambda text: None)
        self._round = 0
        self._shared: SharedSchedule | None = None
        self._kept: dict[str, Any] | None = None  # of the schedule, from a checkpoint
        self._stopping = False
        self._saving: list[Member] = []  # whose states are to come for the checkpoint of this round
        self._saved_at, self._saved_step, self._saving_took = time.monotonic(), 0, 0.0
        self._losses: list[float] = []
        self._rates: list[float] = []

    def execute(self) -> dict[str, Any] | None:
        """Run to the end; return what came out, or None if it was stopped.

        Raises:
            FolderInUse: if another process is at it.
            ValueError: if a task cannot be run, its data are missing, or it wants a schedule of another shape.
            OSError: if something cannot be written.
            ChildProcessError: if every task lost its workers again and again.
        """
        with Folder(self._folder.path):
            done = self._folder.result()
            if done is not None:
                return done
            self._folder.begin()
            self._restore()
            if self._active():
                self._workers = self._make_workers()
                try:
                    self._lead()
                finally:
                    self._workers.close()
                    self._folder.close()
            if self._stopping and any(member.status == "running" for member in self._members):
                return None
            if not any(member.status in ("finished", "diverged", "cut short") for member in self._members):
                raise ChildProcessError(
                    f"workers died {LOSSES} times in every task (killed, or out of memory?); use fewer tasks at once."
                )
            return self._folder.finish(self._round)

    # ---- leading

    def _active(self) -> list[Member]:
        return [member for member in self._members if member.status == "running"]

    def _lead(self) -> None:
        for member in self._active():
            self._start(member)
        while any(member.phase != "stopped" for member in self._active()):
            if self._should_stop() and not self._stopping:
                self._stop()
            found = self._workers.receive(_POLL_SECONDS)
            if found is not None:
                number, message = found
                self._hear(self._members[number], message)
                self._move_on()
        if self._stopping and self._active():
            self._write_checkpoint()

    def _start(self, member: Member) -> None:
        config, threads = member.config, self._folder.threads_each
        member.phase = "starting"
        assignment = Assignment(label=member.label, config=config, threads=threads, state=member.state)
        self._folder.open_log(member)
        self._workers.start(member.number, assignment)

    def _stop(self) -> None:
        """Ask all to stop; those that are in a meta-step finish it first."""
        self._stopping = True
        for member in self._active():
            if member.phase == "stopped":
                continue
            self._workers.stop(member.number)
            if member.phase == "arrived":
                self._workers.answer(member.number, False)
                member.phase = "training"

    def _hear(self, member: Member, message: Message | None) -> None:
        if message is None:
            self._lose(member)
        elif isinstance(message, Failed):
            raise (ValueError if message.refused else RuntimeError)(message.text)
        elif isinstance(message, Ready):
            member.ready, member.facts = message, message.facts
            self._welcome()
        elif isinstance(message, Arrived):
            self._folder.log(member, message.entries)
            member.loss, member.lr, member.step = message.loss, message.lr, message.step
            member.phase = "arrived"
            if self._stopping:
                self._workers.answer(member.number, False)
                member.phase = "training"
        elif isinstance(message, Given):
            member.lesson, member.validation_loss, member.phase = message.lesson, message.validation_loss, "waiting"
        elif isinstance(message, Saved):
            self._folder.log(member, message.entries)
            member.state, member.fresh_state = message.state, True
            if message.stopped:
                member.phase = "stopped"
                if not self._stopping:  # all rounds are over, and it had begun again
                    member.status = "cut short"
        elif isinstance(message, Ended):
            self._folder.log(member, message.entries)
            member.status = message.status
            self._folder.keep(member, message)

    def _welcome(self) -> None:
        """Let the ready tasks begin, once there is a schedule: that of the first task, as it was made."""
        if self._shared is None:
            first = self._members[0]
            if self._kept is None and first.status == "running":
                giver = first
            else:
                giver = next((member for member in self._members if member.ready is not None), first)
            if giver.ready is None:
                return
            self._shared = SharedSchedule(giver.ready.schedule, giver.ready.meta_optimizer)
            if self._kept is not None:
                self._shared.load_state_dict(self._kept)
            self._folder.keep_first_schedule(giver.ready.schedule)
            self._folder.take_snapshot(self._round, self._shared.schedule)
        for member in self._members:
            if member.ready is not None:
                self._admit(member, member.ready)
                member.ready = None

    def _admit(self, member: Member, ready: Ready) -> None:
        assert self._shared is not None
        ours = [tuple(weight.shape) for weight in learned_weights(self._shared.schedule)]
        theirs = [tuple(weight.shape) for weight in learned_weights(ready.schedule)]
        if ours != theirs:
            raise ValueError(
                f"tasks must learn schedules of one shape, {member.label} wants another than {self._members[0].label}; "
                "the published networks for text and for images differ: learn them apart."
            )
        self._workers.answer(member.number, self._shared.weights())
        member.phase = "training"

    # ---- rounds

    def _move_on(self) -> None:
        """Whatever all have been waiting for."""
        active = self._active()
        if self._saving and all(member.fresh_state or member.status != "running" for member in self._saving):
            self._saving = []
            if all(member.fresh_state for member in active):
                self._write_checkpoint()
        if not active or self._stopping:
            self._learn_if_all_gave(active)
            return
        if all(member.phase == "arrived" for member in active):
            over = self._round >= self._folder.rounds
            for member in active:
                self._workers.answer(member.number, not over)
                member.phase = "training" if over else "learning"
        self._learn_if_all_gave(active)

    def _learn_if_all_gave(self, active: list[Member]) -> None:
        waiting = [member for member in active if member.phase == "waiting"]
        if not waiting or any(member.phase == "learning" for member in active):
            return
        assert self._shared is not None
        self._shared.learn([member.lesson for member in waiting])
        self._round += 1
        self._folder.take_snapshot(self._round, self._shared.schedule)
        save = not self._stopping and self._checkpoint_is_due(waiting)
        weights = self._shared.weights()
        for member in waiting:
            member.lesson, member.phase, member.fresh_state = None, "training", False
            self._workers.answer(member.number, Learned(weights=weights, save=save))
        if save:
            self._saving, self._saved_step = list(waiting), max(member.step for member in waiting)
        if self._on_progress is not None:
            self._on_progress(self._progress(waiting))

    def _progress(self, members: list[Member]) -> Progress:
        def mean(numbers: list[float]) -> float:
            return sum(numbers) / len(numbers)

        found = [member.validation_loss for member in members if member.validation_loss is not None]
        return Progress(
            step=self._round,
            total_steps=self._folder.rounds,
            loss=mean([member.loss for member in members]),
            lr=mean([member.lr for member in members]),
            valid={},
            meta_loss=mean(found) if found else None,
        )

    # ---- losses

    def _lose(self, member: Member) -> None:
        member.losses += 1
        member.lesson, member.ready = None, None
        if member in self._saving:
            self._saving = []  # the next checkpoint is complete again
        if member.losses >= LOSSES:
            member.status = "dropped"
            self._note(f"{member.label} lost its worker {member.losses} times and is dropped; the others go on.")
            self._welcome()
            return
        member.state = self._folder.state_of(member)
        begins = "begins again" if member.state is None else "goes on from the last checkpoint"
        self._note(f"{member.label} lost its worker; it {begins}.")
        if self._stopping or self._should_stop():  # SIGTERM may go to all processes of a job, and be heard here last
            member.phase, member.fresh_state = "stopped", True
            if not self._stopping:
                self._stop()
        else:
            self._start(member)

    # ---- what is kept

    def _checkpoint_is_due(self, members: list[Member]) -> bool:
        every = members[0].config.checkpoint_every
        if every is not None:
            return max(member.step for member in members) + 1 - self._saved_step >= every
        return time.monotonic() - self._saved_at > max(_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * self._saving_took)

    def _write_checkpoint(self) -> None:
        started = time.monotonic()
        shared = self._kept if self._shared is None else self._shared.state_dict()
        self._folder.save(self._round, shared)
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - started

    def _restore(self) -> None:
        found = self._folder.load()
        if found is None:
            return
        state, note = found
        if note is not None:
            self._note(note)
        self._round, self._kept = state["round"], cast("dict[str, Any] | None", state["shared"])
