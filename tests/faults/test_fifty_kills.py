"""Fifty-four kills at random moments of train, meta-train and compare: nothing is lost but the last interval."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.commands import COMMANDS, EVERY, checkpoints, wait_for, weights_and_records
from tests.lab.bench.running import Child, differences

from metastep.lab.runtime.folder import CheckpointFile, read_lines

KILLS = 18  # of each command
assert KILLS * len(COMMANDS) >= 50


def stamps(out: Path) -> dict[Path, int]:
    """When each checkpoint was written."""
    return {path: path.stat().st_mtime_ns for path in checkpoints(out)}


def lost(out: Path) -> list[int]:
    """For each run, how many of its logged steps the newest checkpoint does not have."""
    found = []
    for path in checkpoints(out):
        kept = CheckpointFile(path).load()[0]["trainer"]["steps"]
        logged = max((entry["step"] for entry in read_lines(path.with_name("metrics.jsonl"))[0]), default=0)
        found.append(logged - kept)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_killed_again_and_again_ends_like_one_that_was_not(
    command: str, undisturbed: Callable[[str], Path], start: Callable[..., Child], tmp_path: Path
) -> None:
    draw, out = random.Random(command), tmp_path / "out"
    child, kills = start(*COMMANDS[command], "--out", "out"), 0
    before: dict[Path, int] = {}
    while kills < KILLS:
        wait_for(child, lambda before=before: stamps(out) != before)  # at least one interval forward in each life
        wait_until = time.monotonic() + draw.uniform(0, 0.02)
        wait_for(child, lambda until=wait_until: time.monotonic() >= until)
        child.signal(signal.SIGKILL)
        assert child.end() == -signal.SIGKILL, f"after {kills} kills: {child.err}"
        kills += 1
        assert max(lost(out), default=0) <= EVERY
        before = stamps(out)
        child = start(command, "--resume", "out")
    assert child.end() == 0, child.err
    assert kills == KILLS
    assert differences(weights_and_records(command, out), weights_and_records(command, undisturbed(command))) == []
    assert "note:" not in child.err
    assert not [*out.rglob(".*.part"), *out.rglob("*.complete")]  # nothing half written is left
