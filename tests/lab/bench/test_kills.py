"""Runs and comparisons that are killed or interrupted in processes of their own end as if they were not."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.lab.bench.running import Child, differences, outcome, timeless

from metastep.lab.records import read_records
from metastep.lab.runtime.folder import CheckpointFile

Start = Callable[..., Child]

LEARNING = (
    *("meta-train", "digits/convnet", "--steps", "60", "--batch-size", "16", "--set", "train_size=200", "--every", "5"),
    *(
        "--hidden-size",
        "6",
        "--set",
        "log_every=4",
        "--set",
        "eval_every=15",
        "--set",
        "checkpoint_every=7",
        "--set",
        "threads=1",
    ),
)
COMPARE = (
    *("compare", "digits/mlp", "--schedules", "cosine,constant", "--lrs", "0.05,0.1", "--seeds", "2", "--steps", "60"),
    *("--set", "train_size=300", "--set", "checkpoint_every=5", "--set", "log_every=5", "--set", "threads=1"),
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run "run" and the comparison "cmp", to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for arguments in ((*LEARNING, "--out", "run"), (*COMPARE, "--out", "cmp")):
        child = Child(folder, *arguments)
        assert child.end() == 0, child.err
    return folder


def wait_for(child: Child, condition: Callable[[], bool]) -> None:
    """Until something is so, or the child has ended."""
    while child.process.is_alive() and not condition():
        time.sleep(0.005)


def steps_kept(folder: Path) -> int:
    """Where the last checkpoint stands."""
    return CheckpointFile(folder / "checkpoint.pt").load()[0]["trainer"]["steps"]


def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(start: Start, undisturbed: Path, tmp_path: Path):
    draw = random.Random(0)
    child = start(*LEARNING, "--out", "run")
    wait_for(child, (tmp_path / "run" / "checkpoint.pt").exists)
    kept = []
    for _ in range(4):
        time.sleep(draw.uniform(0, 0.05))
        child.signal(signal.SIGKILL)
        assert child.end() == -signal.SIGKILL, child.err
        kept.append(steps_kept(tmp_path / "run"))
        stamp = (tmp_path / "run" / "checkpoint.pt").stat().st_mtime_ns
        child = start("meta-train", "--resume", "run")
        wait_for(child, lambda stamp=stamp: (tmp_path / "run" / "checkpoint.pt").stat().st_mtime_ns != stamp)
    assert child.end() == 0, child.err
    assert kept == sorted(kept)
    assert kept[0] < 60
    assert differences(outcome(tmp_path / "run"), outcome(undisturbed / "run")) == []


# The operations of the first two checkpoints: what each writes, syncs, links and renames.
@pytest.mark.parametrize("operation", [1, 5, 8, 10, 12, 13, 14])
def test_a_run_killed_between_two_file_operations_loses_nothing(start: Start, undisturbed, tmp_path, operation: int):
    assert start(*LEARNING, "--out", "run", dies_at=operation).end() == 77
    begun = (tmp_path / "run" / "run.json").exists()
    resume = ("meta-train", "--resume", "run") if begun else (*LEARNING, "--out", "run")
    child = start(*resume)
    assert child.end() == 0, child.err
    assert "note:" not in child.err
    assert differences(outcome(tmp_path / "run"), outcome(undisturbed / "run")) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_stops_a_run_cleanly_and_says_how_to_go_on(start, undisturbed, tmp_path, number, code) -> None:
    child = start(*LEARNING, "--out", "run")
    wait_for(child, (tmp_path / "run" / "checkpoint.pt").exists)
    child.signal(number)
    assert child.end() == code, child.err
    assert child.err.splitlines()[-1] == "stopped; resume with: metastep meta-train --resume run"
    assert child.out == ""
    assert 7 <= steps_kept(tmp_path / "run") < 60
    assert start("meta-train", "--resume", "run").end() == 0
    assert differences(outcome(tmp_path / "run"), outcome(undisturbed / "run")) == []


def test_a_folder_in_use_is_refused_in_one_line(start: Start, tmp_path: Path) -> None:
    child = start(*LEARNING[:2], "--steps", "100000", "--set", "checkpoint_every=5", "--out", "run")
    wait_for(child, (tmp_path / "run" / "checkpoint.pt").exists)
    live = child.process.pid
    second = start("meta-train", "--resume", "run")
    assert second.end() == 2
    assert second.err == f"error: run is in use by process {live}; wait for it, or stop it first.\n"


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGKILL, 1), (signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 2)],
)
def test_an_interrupted_comparison_ends_like_one_that_was_not(start, undisturbed, tmp_path, number, workers) -> None:
    child = start(*COMPARE, "--workers", str(workers), "--out", "cmp")
    runs = tmp_path / "cmp" / "runs"
    wait_for(child, lambda: len(list(runs.glob("*/*/checkpoint.pt"))) >= 2)
    child.signal(number)
    code = child.end()
    if number != signal.SIGKILL:
        assert code == (130 if number == signal.SIGINT else 0), child.err
        assert child.err.splitlines()[-1] == "stopped; resume with: metastep compare --resume cmp"
    finished = {path: path.stat().st_mtime_ns for path in runs.glob("*/*/record.json")}
    resumed = start("compare", "--resume", "cmp", "--workers", str(workers))
    while resumed.end() == 2 and "in use" in resumed.err:  # workers of the killed one are still going down
        resumed = start("compare", "--resume", "cmp", "--workers", str(workers))
    assert resumed.process.exitcode == 0, resumed.err
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    records, expected = (
        [timeless(one.as_dict()) for _, one in read_records(f / "cmp" / "records.jsonl")]
        for f in (tmp_path, undisturbed)
    )
    assert differences(records, expected) == []
