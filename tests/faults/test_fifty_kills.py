"""Fifty-four kills at random moments of train, meta-train and compare: nothing is lost but the last interval."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.bench.running import Child, differences, outcome, timeless

from metastep.bench.curves import read_entries
from metastep.meta.checkpoints import CheckpointFile
from metastep.report import read_records

KILLS = 18
STEPS, EVERY = 400, 5
SMALL = ("--steps", str(STEPS), "--batch-size", "8", "--train-size", "200", "--checkpoint-every", str(EVERY))
QUIET = ("--log-every", "5", "--eval-every", "200", "--threads", "1")
COMMANDS = {
    "train": ("train", "digits/mlp", "--momentum", "0.9", *SMALL, *QUIET),
    "meta-train": ("meta-train", "digits/mlp", "--every", "4", "--hidden-size", "4", *SMALL, *QUIET),
    "compare": ("compare", "digits/mlp", "--schedules", "cosine,constant", "--seeds", "2", *SMALL, *QUIET),
}


@pytest.fixture(scope="module", params=COMMANDS)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A command, and the folder "out" of its run to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    child = Child(folder, *COMMANDS[request.param], "--out", "out")
    assert child.end() == 0, child.err
    return request.param, folder / "out"


def checkpoints(out: Path) -> Iterator[Path]:
    """Every run's checkpoint below a folder."""
    return out.rglob("checkpoint.pt")


def stamps(out: Path) -> dict[Path, int]:
    """When each checkpoint was written."""
    return {path: path.stat().st_mtime_ns for path in checkpoints(out)}


def wait_for(child: Child, condition: Callable[[], bool]) -> None:
    """Until something is so, or the child has ended."""
    while child.process.is_alive() and not condition():
        time.sleep(0.002)


def lost(out: Path) -> list[int]:
    """For each run, how many of its logged steps the newest checkpoint does not have."""
    found = []
    for path in checkpoints(out):
        kept = CheckpointFile(path).load()[0]["trainer"]["steps"]
        logged = max((entry["step"] for entry in read_entries(path.with_name("metrics.jsonl"))), default=0)
        found.append(logged - kept)
    return found


def weights_and_records(command: str, out: Path) -> list[object]:
    """All that a command leaves, but clocks."""
    if command != "compare":
        return [outcome(out)]
    runs = [outcome(path.parent) for path in sorted(checkpoints(out))]
    return [*runs, *(timeless(record) for record in read_records(out / "records.jsonl"))]


def test_a_command_killed_again_and_again_ends_like_one_that_was_not(
    undisturbed: tuple[str, Path], start: Callable[..., Child], tmp_path: Path
) -> None:
    command, expected = undisturbed
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
    assert differences(weights_and_records(command, out), weights_and_records(command, expected)) == []
    assert "note:" not in child.err
