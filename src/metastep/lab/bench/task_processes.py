"""The workers of a population as processes of this machine."""

import contextlib
import pickle
from multiprocessing.connection import wait
from typing import Any, cast

from metastep.lab.bench.task_messages import Assignment, Message, is_last
from metastep.lab.bench.task_worker import train_task
from metastep.lab.runtime.executor import leave_signals_to_parent, process_context

#: What a line says when nobody is at its other end.
_LOST = (EOFError, OSError, pickle.UnpicklingError)


class LocalWorkers:
    """A process for each task, forked from a server that has imported torch; they die with this process.

    ``processes`` has the living ones by the number of their task.
    """

    def __init__(self) -> None:
        self._context = process_context([__name__, "torch._dynamo"])
        self.processes: dict[int, Any] = {}
        self._lines: dict[int, Any] = {}
        self._stops: dict[int, Any] = {}

    def start(self, number: int, assignment: Assignment) -> None:
        """Give a task to a new process."""
        self._let_go(number)
        here, there = self._context.Pipe()
        stop = self._context.RawValue("b", 0)
        process = self._context.Process(target=_work, args=(assignment, there, stop), daemon=True)
        process.start()
        there.close()  # so that a dead worker ends the line
        self.processes[number], self._lines[number], self._stops[number] = process, here, stop

    def answer(self, number: int, answer: object) -> None:
        """Answer a worker."""
        with contextlib.suppress(*_LOST):  # what it says next is then that it is lost
            self._lines[number].send_bytes(pickle.dumps(answer))

    def stop(self, number: int) -> None:
        """Ask a task to stop after its step."""
        self._stops[number].value = 1

    def receive(self, seconds: float) -> tuple[int, Message | None] | None:
        """The next message, None for a lost worker."""
        ready = cast("list[Any]", wait(list(self._lines.values()), timeout=seconds))
        for number, line in sorted(self._lines.items()):
            if line in ready:
                try:
                    message: Message = pickle.loads(line.recv_bytes())  # of our own process
                except _LOST:
                    self._let_go(number)
                    return number, None
                if is_last(message):
                    self._let_go(number)
                return number, message
        return None

    def close(self) -> None:
        """End all workers."""
        for number in list(self.processes):
            self._let_go(number, kill=True)

    def _let_go(self, number: int, *, kill: bool = False) -> None:
        process = self.processes.pop(number, None)
        if process is None:
            return
        self._lines.pop(number).close()
        self._stops.pop(number)
        process.join(0 if kill else 5)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


class _Line:
    """The worker's end."""

    def __init__(self, line: Any, stop: Any) -> None:
        self._line, self._stop = line, stop

    def send(self, message: Message) -> None:
        self._line.send_bytes(pickle.dumps(message))

    def receive(self) -> Any:
        return pickle.loads(self._line.recv_bytes())  # of our own process

    def asked_to_stop(self) -> bool:
        return bool(self._stop.value)


def _work(assignment: Assignment, line: Any, stop: Any) -> None:
    leave_signals_to_parent()
    train_task(assignment, _Line(line, stop))
