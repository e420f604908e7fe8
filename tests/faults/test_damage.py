"""Truncated and bit-flipped checkpoints: whole commands use the one before, say so, and end as ever."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.commands import COMMANDS, begun, weights_and_records
from tests.lab.bench.running import Child, differences


def truncated(data: bytes, draw: random.Random) -> bytes:
    """The beginning of it."""
    return data[: draw.randrange(len(data))]


def bit_flipped(data: bytes, draw: random.Random) -> bytes:
    """One bit of it is another."""
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def replace(file: Path, data: bytes) -> None:
    """Write a file anew: just after a save its name and that of the one before may stand for the same content."""
    file.unlink()
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("command", "damage"), [("train", truncated), ("meta-train", bit_flipped), ("compare", bit_flipped)]
)
def test_the_checkpoint_before_a_damaged_one_is_used_and_it_is_said(
    command: str, damage: Callable[..., bytes], undisturbed: Callable[[str], Path], start: Callable[..., Child],
    tmp_path: Path,
) -> None:  # fmt: skip
    child, out = start(*COMMANDS[command], "--out", "out"), tmp_path / "out"
    begun(child)
    child.signal(signal.SIGKILL)
    assert child.end() == -signal.SIGKILL, child.err
    (previous,) = out.rglob("checkpoint.previous.pt")
    file = previous.with_name("checkpoint.pt")
    replace(file, damage(file.read_bytes(), random.Random(command)))
    child = start(command, "--resume", "out")
    assert child.end() == 0, child.err
    (note,) = [line for line in child.err.splitlines() if "checkpoint.pt is " in line]
    assert note.endswith("; went back to checkpoint.previous.pt.")
    assert differences(weights_and_records(command, out), weights_and_records(command, undisturbed(command))) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_two_damaged_checkpoints_are_refused_in_a_line_and_left_as_they_are(
    command: str, start: Callable[..., Child], tmp_path: Path
) -> None:
    files, attempt = list[Path](), 0
    while len(files) < 2 or any(file.with_name("record.json").exists() for file in files):  # ended before the kill
        out = tmp_path / f"out{(attempt := attempt + 1)}"
        child = start(*COMMANDS[command], "--out", out.name)
        begun(child)
        child.signal(signal.SIGKILL)
        child.end()
        files = list(out.rglob("checkpoint*.pt"))
    for file in files:
        replace(file, truncated(file.read_bytes(), random.Random(1)))
    damaged = [file.read_bytes() for file in files]
    child = start(command, "--resume", out.name)
    assert child.end() == 2, child.err
    line = child.err.strip().splitlines()[-1]
    assert line.startswith("error: no readable checkpoint in ")
    assert "checkpoint.pt is truncated" in line
    assert [file.read_bytes() for file in files] == damaged
