"""What the tasks of a population and whoever leads it say to each other."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from metastep.lab.bench.config import RunConfig
from metastep.meta.averaging import Lesson
from metastep.schedules import Schedule

#: An entry of a task's log: split, step, values.
Entry = tuple[str, int, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One task for one worker.

    Args:
        label: what to call it.
        config: its run.
        threads: CPU threads, where the run does not say.
        state: of the task, to go on from; None: it begins.
    """

    label: str
    config: RunConfig
    threads: int
    state: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a record says of a task's data."""

    metric: str
    notes: str
    splits: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Ready:
    """From a worker: data are read, the network is made. Answered by the weights of the schedule."""

    schedule: Schedule
    meta_optimizer: Optimizer
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """From a worker that is about to take a meta-step. Answered by True to take it, False to stop here."""

    step: int
    entries: list[Entry] = field(default_factory=list)
    loss: float
    lr: float


@dataclass(frozen=True, kw_only=True)
class Given:
    """From a worker in a meta-step: its meta-gradient. Answered by :class:`Learned`."""

    lesson: Lesson
    validation_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Learned:
    """To a worker: the schedule's new weights, and whether to send the task's state after this step."""

    weights: list[Tensor]
    save: bool


@dataclass(frozen=True, kw_only=True)
class Saved:
    """From a worker: the task's state, as asked for; ``stopped`` if it has ended by that. Not answered."""

    state: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)
    stopped: bool


@dataclass(frozen=True, kw_only=True)
class Ended:
    """From a worker: the task has come to its end, and this is what came out. Not answered."""

    status: str
    entries: list[Entry] = field(default_factory=list)
    final: dict[str, float]
    train_seconds: float
    eval_seconds: float
    scale: float | None


@dataclass(frozen=True, kw_only=True)
class Failed:
    """From a worker: an error; ``refused`` if a user can cause and mend it. Not answered."""

    text: str
    refused: bool


Message = Ready | Arrived | Given | Saved | Ended | Failed


def is_last(message: Message) -> bool:
    """Whether a worker says no more after it."""
    return isinstance(message, Ended | Failed) or (isinstance(message, Saved) and message.stopped)


class Channel(Protocol):
    """A worker's end of the line."""

    def send(self, message: Message) -> None:
        """To whoever leads."""

    def receive(self) -> Any:
        """The answer, when it comes."""

    def asked_to_stop(self) -> bool:
        """Whether the task is to stop after its step."""


class Workers(Protocol):
    """Processes that train tasks, by the number of the task."""

    def start(self, number: int, assignment: Assignment) -> None:
        """Give a task to a worker of its own; one that had it is let go."""

    def answer(self, number: int, answer: object) -> None:
        """Answer the last message of a worker; of one that is lost it is told later."""

    def stop(self, number: int) -> None:
        """Ask a task to stop after its step."""

    def receive(self, seconds: float) -> tuple[int, Message | None] | None:
        """The next message and the task's number, None for the message if the worker is lost; None if none came."""

    def close(self) -> None:
        """End all workers."""
