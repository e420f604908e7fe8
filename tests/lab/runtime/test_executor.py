"""One function over many items, wherever it runs: results once, stops everywhere, killed processes replaced."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metastep.lab.runtime import executor as module
from metastep.lab.runtime.executor import Executor, LocalExecutor
from metastep.lab.runtime.stop_signals import never


@dataclass(frozen=True)
class Plain:
    """A function of the item alone, as an executor calls it."""

    function: Callable[[Any], Any]

    def __call__(self, item: Any, should_stop: Callable[[], bool], report: Callable[[Any], None]) -> Any:
        """What the function gives."""
        return self.function(item)


def mapped(executor: Executor, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What a function gives for each item, in their order."""
    results = dict(executor.run(Plain(function), items))
    return [results[number] for number in range(len(items))]


def square(number: int) -> int:
    """What is computed."""
    return number * number


def process(number: int) -> int:
    """The process that computed it."""
    del number
    return os.getpid()


@dataclass(frozen=True)
class Counting:
    """Counts to a number in a file and goes on from there when it is run again."""

    folder: Path
    until: int

    def count(self, name: str, should_stop: Callable[[], bool], report: Callable[[Any], None]) -> str:
        """Count one further at a time."""
        path = self.folder / name
        at = int(path.read_text()) if path.exists() else 0
        while at < self.until and not should_stop():
            at += 1
            path.write_text(str(at))
            report(at)
        return "finished" if at == self.until else "stopped"


@dataclass(frozen=True)
class Dying:
    """Kills its own process so many times, as the file remembers."""

    folder: Path
    times: int

    def work(self, name: str, should_stop: Callable[[], bool], report: Callable[[Any], None]) -> int:
        """Die, or give how often it died."""
        path = self.folder / name
        died = len(path.read_text()) if path.exists() else 0
        if name == "weak" and died < self.times:
            path.write_text("x" * (died + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return died


class Picky(Exception):
    """Cannot be rebuilt from its arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def raising(number: int, error: type[Exception]) -> int:
    """Raise for one item."""
    if number == 1:
        raise error("a full ", "disk") if error is Picky else error("a full disk")
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_once_with_the_numbers_of_their_items(workers: int) -> None:
    with LocalExecutor(workers) as executor:
        assert mapped(executor, square, range(7)) == [n * n for n in range(7)]
        assert mapped(executor, square, []) == []
        tensor = mapped(executor, partial(torch.add, torch.arange(3.0)), [torch.ones(3)])[0]
        assert torch.equal(tensor, torch.tensor([1.0, 2.0, 3.0]))


def test_workers_are_other_processes_kept_between_calls_and_ended() -> None:
    with LocalExecutor(2) as executor:
        first = set(mapped(executor, process, range(8)))
        assert os.getpid() not in first
        assert set(mapped(executor, process, range(8))) <= first | set(mapped(executor, process, range(8)))
        assert len(first | set(mapped(executor, process, range(8)))) <= 2
    for number in first:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_told_and_a_stop_reaches_every_item(tmp_path: Path, workers: int) -> None:
    told: list[tuple[int, int]] = []
    with LocalExecutor(workers) as executor:
        ended = executor.run(
            Counting(tmp_path, 10**9).count,
            ["a", "b", "c"],
            should_stop=lambda: bool(told),
            on_progress=lambda number, at: told.append((number, at)),
        )
        assert {status for _, status in ended} <= {"stopped"}
        assert told
        assert not (tmp_path / "c").exists()
        rest = executor.run(Counting(tmp_path, 1).count, ["d", "e"], should_stop=never)  # nothing of the stop is left
        assert sorted(rest) == [(0, "finished"), (1, "finished")]


def test_a_killed_process_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    with LocalExecutor(2) as executor:
        ended = dict(executor.run(Dying(tmp_path, 2).work, ["weak", "strong", "strong"]))
    assert ended == {0: 2, 1: 0, 2: 0}


def test_a_process_that_is_killed_while_it_waits_costs_nothing() -> None:
    with LocalExecutor(2) as executor:
        numbers = set(mapped(executor, process, range(8)))
        for number in numbers:
            os.kill(number, signal.SIGKILL)
        assert mapped(executor, square, range(4)) == [0, 1, 4, 9]
        assert not numbers & set(mapped(executor, process, range(8)))


def test_an_item_whose_process_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    with (
        LocalExecutor(2) as executor,
        pytest.raises(ChildProcessError, match=r"the process of 'weak' was lost 3 times .*Use fewer workers"),
    ):
        list(executor.run(Dying(tmp_path, 9).work, ["weak", "strong"], describe=repr))


def test_a_worker_that_gets_sigterm_saves_first_and_its_item_goes_on(tmp_path: Path) -> None:
    sent: list[int] = []

    def watch(number: int, at: int) -> None:
        del number, at
        if not sent:
            (worker, *_) = executor._started
            sent.append(worker.process.pid)
            os.kill(sent[0], signal.SIGTERM)

    with LocalExecutor(2) as executor:
        assert dict(executor.run(Counting(tmp_path, 3_000).count, ["a"], on_progress=watch)) == {0: "finished"}
        assert sent
        assert executor._started[0].process.pid != sent[0]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [OSError, Picky])
def test_what_an_item_raises_is_raised_here(workers: int, error: type[Exception]) -> None:
    if workers == 1 or error is OSError:
        expected: type[Exception] = error
    else:
        expected = RuntimeError
    with LocalExecutor(workers) as executor:
        with pytest.raises(expected, match="a full disk"):
            mapped(executor, partial(raising, error=error), range(4))
        assert mapped(executor, square, [3]) == [9]


def test_an_executor_that_nobody_closes_leaves_no_process(tmp_path: Path) -> None:
    executor = LocalExecutor(2)
    (number, _) = mapped(executor, process, range(2))
    worker = executor._started[0].process
    del executor
    worker.join(30)
    assert not worker.is_alive()
    assert number > 0


def test_fewer_than_one_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="workers must be >= 1, got 0"):
        LocalExecutor(0)


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(module, "leave_signals_to_parent", lambda: None)
    handler = signal.getsignal(signal.SIGTERM)
    for place in range(4):
        ours, theirs = module.connection.Pipe()
        ours.close()
        module._serve(theirs, None, place, 4)
    signal.signal(signal.SIGTERM, handler)
    assert taken == [0, 1, 0, 1]


def test_nobody_at_an_address_is_said_at_once() -> None:
    with pytest.raises(ConnectionError, match=r"no Ray cluster at '127\.0\.0\.1:9'"):
        module.check_reachable("127.0.0.1:9")
    for address in (None, "auto", "local"):
        module.check_reachable(address)
