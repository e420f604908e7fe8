"""A checkpoint on disk: whole or not there, and never code."""

import errno
import hashlib
import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from metastep.lab.runtime.checkpoints import CheckpointError, CheckpointFile

STATE = {"weights": torch.arange(5.0), "nested": [(1, None), {"rate": 0.5}], "name": "x"}


@pytest.fixture
def file(tmp_path: Path) -> CheckpointFile:
    """A file with two checkpoints: step 2, and step 1 before it."""
    checkpoint = CheckpointFile(tmp_path / "run" / "checkpoint.pt")
    for step in (1, 2):
        checkpoint.save({"step": step, **STATE})
    return checkpoint


def steps(file: CheckpointFile) -> tuple[int, int]:
    """The steps of both files."""
    return tuple(CheckpointFile(path).load()[0]["step"] for path in (file.path, file.previous))


def test_what_was_saved_is_loaded(file: CheckpointFile) -> None:
    state, note = file.load()
    assert note is None
    assert state["step"] == 2
    assert torch.equal(state["weights"], STATE["weights"])
    assert (state["nested"], state["name"]) == (STATE["nested"], STATE["name"])
    assert steps(file) == (2, 1)
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_every_truncation_and_every_flipped_byte_is_noticed(file: CheckpointFile) -> None:
    good = file.path.read_bytes()
    for place in [*range(0, 60), *range(60, len(good), 97), len(good) - 1]:
        for bad in (good[:place], good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]):
            file.path.write_bytes(bad)
            state, note = file.load()
            assert state["step"] == 1
            assert note is not None
            assert note.endswith("went back to checkpoint.previous.pt.")


def test_two_broken_files_are_one_line_that_names_both(file: CheckpointFile) -> None:
    file.path.write_bytes(b"")
    file.previous.write_bytes(file.previous.read_bytes()[:-3])
    with pytest.raises(
        CheckpointError, match=r"checkpoint.pt is no metastep.*; checkpoint.previous.pt is truncated"
    ) as e:
        file.load()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("operation", ["fsync", "replace", "link"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_save_that_fails_leaves_a_good_checkpoint(file, monkeypatch, operation: str, number: int) -> None:
    left, original = number, getattr(os, operation)

    def failing(*args: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args)

    monkeypatch.setattr(os, operation, failing)
    try:
        file.save({"step": 3})
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
    monkeypatch.undo()
    newest, before = steps(file)
    assert (newest, before) in {(2, 1), (2, 2), (3, 2)}
    assert file.load()[1] is None
    file.save({"step": 4})
    assert file.load()[0]["step"] == 4


def test_a_full_disk_touches_neither_file(file: CheckpointFile, monkeypatch) -> None:
    before = [path.read_bytes() for path in (file.path, file.previous)]

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file.save({"step": 3})
    assert [path.read_bytes() for path in (file.path, file.previous)] == before
    assert len(list(file.path.parent.iterdir())) == 2


def test_without_hard_links_the_one_before_is_copied(file: CheckpointFile, monkeypatch) -> None:
    def no_links(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    file.save({"step": 3})
    assert steps(file) == (3, 2)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("sealed", [False, True])
def test_code_in_a_checkpoint_is_not_run(file: CheckpointFile, tmp_path: Path, how: str, sealed: bool) -> None:
    """Not even if its author computed the right checksum."""
    buffer = io.BytesIO()
    bad = {"step": 9, "evil": Malicious(tmp_path / "owned")}
    torch.save(bad, buffer) if how == "torch" else pickle.dump(bad, buffer, protocol=2)
    payload = buffer.getvalue()
    head = b"metastep checkpoint 1\n" + hashlib.sha256(payload).digest() if sealed else b""
    file.path.write_bytes(head + payload)
    state, note = file.load()
    assert state["step"] == 1
    assert note is not None
    assert ("it holds more than tensors and plain values" in note) is sealed
    assert not (tmp_path / "owned").exists()


def test_there_is_nothing_before_the_first_save(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "checkpoint.pt")
    assert not file.exists()
    with pytest.raises(CheckpointError, match=r"checkpoint.pt is missing; checkpoint.previous.pt is missing"):
        file.load()
