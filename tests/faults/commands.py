"""The commands that faults happen to, how long to wait, and all that they leave but clocks."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.lab.bench.running import Child, outcome, timeless

from metastep.lab.records import read_records

STEPS, EVERY = 400, 5
SMALL = ("--steps", str(STEPS), "--batch-size", "8", "--set", "train_size=200", "--set", f"checkpoint_every={EVERY}")
QUIET = ("--set", "log_every=5", "--set", "eval_every=200", "--set", "threads=1")
COMMANDS = {
    "train": ("train", "digits/mlp", "--momentum", "0.9", *SMALL, *QUIET),
    "meta-train": ("meta-train", "digits/mlp", "--every", "4", "--hidden-size", "4", *SMALL, *QUIET),
    "compare": ("compare", "digits/mlp", "--schedules", "cosine,constant", "--seeds", "2", *SMALL, *QUIET),
}


def checkpoints(out: Path) -> Iterator[Path]:
    """Every run's checkpoint below a folder."""
    return out.rglob("checkpoint.pt")


def wait_for(child: Child, condition: Callable[[], bool]) -> None:
    """Until something is so, or the child has ended."""
    while child.process.is_alive() and not condition():
        time.sleep(0.002)


def descendants(process: int) -> list[int]:
    """The processes that a process started, and those that they did."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def begun(child: Child) -> None:
    """Until two checkpoints are there."""
    wait_for(child, lambda: any(child.folder.rglob("checkpoint.previous.pt")))


def weights_and_records(command: str, out: Path) -> list[object]:
    """All that a command leaves, but clocks."""
    if command != "compare":
        return [outcome(out)]
    runs = [outcome(path.parent) for path in sorted(checkpoints(out))]
    return [*runs, *(timeless(one.as_dict()) for _, one in read_records(out / "records.jsonl"))]
