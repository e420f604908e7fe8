"""One process at a time in a folder, and signals that are noted."""

import os
import signal
from pathlib import Path

import pytest

from metastep.lab.runtime import locks
from metastep.lab.runtime.locks import FolderInUse, FolderLock
from metastep.lab.runtime.stop_signals import StopSignal


def test_a_folder_has_one_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "new"), pytest.raises(FolderInUse, match=f"new is in use by process {os.getpid()}"):
        FolderLock(tmp_path / "new").__enter__()
    with FolderLock(tmp_path / "new"):
        assert (tmp_path / "new" / ".lock").read_text() == str(os.getpid())


def test_where_there_are_no_locks_nothing_is_locked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with FolderLock(tmp_path), FolderLock(tmp_path):
        assert not (tmp_path / ".lock").exists()


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), FolderLock(tmp_path):
        raise KeyError
    with FolderLock(tmp_path):
        pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_first_signal_is_noted_and_the_second_obeyed(number: int, code: int) -> None:
    before = []
    handler = signal.signal(number, lambda *_: before.append(number))
    told = []
    try:
        with StopSignal(lambda: told.append("stopping")) as stop:
            assert not stop()
            signal.raise_signal(number)
            assert stop()
            assert (stop.exit_code, told, before) == (code, ["stopping"], [])
            signal.raise_signal(number)
            assert before == [number]
        signal.raise_signal(number)
        assert before == [number, number]
        assert told == ["stopping"]
    finally:
        signal.signal(number, handler)
