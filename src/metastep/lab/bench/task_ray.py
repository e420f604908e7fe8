"""The workers of a population as actors of a Ray cluster."""

import queue
import threading
from typing import Any

from metastep.lab.bench.task_messages import Assignment, Failed, Message, is_last
from metastep.lab.bench.task_worker import train_task
from metastep.lab.runtime.ray_start import ray_started


class RayWorkers:
    """A Ray actor for each task, on whichever machine of the cluster has room; they need the data there, and metastep.

    Each asks for one CPU, or for as much less as it takes for all to find room at once: tasks wait for each other in
    every meta-step. On CUDA devices they share the cluster's GPUs in the same way.

    Args:
        tasks: how many there will be.
        address: of a running cluster ("auto", "ray://host:10001", ...); None starts one on this machine.
        cuda: whether the tasks train on CUDA devices.

    Raises:
        ModuleNotFoundError: without ray.
        ConnectionError: if there is no cluster at the address.
        ValueError: for CUDA devices in a cluster that has none.
    """

    def __init__(self, tasks: int, address: str | None = None, *, cuda: bool = False) -> None:
        self._ray, self._ours = ray_started(address)
        try:
            self._share = self._shares(tasks, cuda=cuda)
        except ValueError:
            self.close()
            raise
        self.actors: dict[int, Any] = {}
        self._waiting: dict[Any, int] = {}  # what is to come, and whose it is

    def start(self, number: int, assignment: Assignment) -> None:
        """Give a task to a new actor."""
        self._let_go(number)
        actor = self._ray.remote(TaskActor).options(max_concurrency=4, max_restarts=0, **self._share).remote()
        self.actors[number] = actor
        actor.begin.remote(assignment)
        self._listen(number)

    def answer(self, number: int, answer: object) -> None:
        """Answer a worker."""
        self.actors[number].answer.remote(answer)

    def stop(self, number: int) -> None:
        """Ask a task to stop after its step."""
        self.actors[number].stop.remote()

    def receive(self, seconds: float) -> tuple[int, Message | None] | None:
        """The next message, None for a lost worker."""
        ready, _ = self._ray.wait(list(self._waiting), timeout=seconds) if self._waiting else ([], [])
        if not ready:
            return None
        number = self._waiting.pop(ready[0])
        try:
            message: Message = self._ray.get(ready[0])
        except self._ray.exceptions.RayActorError:
            self._let_go(number)
            return number, None
        except self._ray.exceptions.RayError as error:  # such as a machine of the cluster without metastep
            self._let_go(number)
            return number, Failed(text=str(error).strip().splitlines()[-1], refused=True)
        if is_last(message):
            self._let_go(number)
        else:
            self._listen(number)
        return number, message

    def close(self) -> None:
        """End all actors, and the cluster if it was started here."""
        for number in list(getattr(self, "actors", {})):
            self._let_go(number)
        if self._ours:
            self._ray.shutdown()

    def _listen(self, number: int) -> None:
        self._waiting[self.actors[number].message.remote()] = number

    def _let_go(self, number: int) -> None:
        actor = self.actors.pop(number, None)
        if actor is not None:
            self._waiting = {ref: owner for ref, owner in self._waiting.items() if owner != number}
            self._ray.kill(actor)

    def _shares(self, tasks: int, *, cuda: bool) -> dict[str, float]:
        total = self._ray.cluster_resources()
        shares = {"num_cpus": _share(total.get("CPU", 0), tasks)}
        if cuda:
            if not total.get("GPU"):
                raise ValueError("device must be one that the cluster has, got cuda; Ray knows of no GPU there.")
            shares["num_gpus"] = _share(total["GPU"], tasks)
        return shares


def _share(total: float, tasks: int) -> float:
    """One for each task, or so much less that all have room: Ray counts in ten-thousandths."""
    return 1.0 if total >= tasks else int(total / tasks * 1000) / 1000


class TaskActor:
    """What runs in an actor: the task in a thread, and a queue each way."""

    def __init__(self) -> None:
        self._said: queue.Queue[Message] = queue.Queue()
        self._answers: queue.Queue[Any] = queue.Queue()
        self._stop = threading.Event()

    def begin(self, assignment: Assignment) -> None:
        """Begin the task; return at once."""
        threading.Thread(target=train_task, args=(assignment, self), daemon=True).start()

    def message(self) -> Message:
        """The next message, when it comes."""
        return self._said.get()

    def answer(self, answer: Any) -> None:
        """Answer the last message."""
        self._answers.put(answer)

    def stop(self) -> None:
        """Ask the task to stop."""
        self._stop.set()

    # ---- the task's side

    def send(self, message: Message) -> None:
        """Say something."""
        self._said.put(message)

    def receive(self) -> Any:
        """The answer."""
        return self._answers.get()

    def asked_to_stop(self) -> bool:
        """Whether to stop."""
        return self._stop.is_set()
