"""Small runs, what must agree between two of them, and the command line in processes that can be killed."""

import contextlib
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metastep.lab.bench.config import MetaConfig, RunConfig
from metastep.lab.records import Record, read_record
from metastep.lab.runtime.folder import CheckpointFile, read_lines
from metastep.schedules import load_schedule

#: Clocks and the circumstances of a process; everything else of a record must agree.
CIRCUMSTANCES = ("train_seconds", "eval_seconds", "machine", "command", "created", "git_revision")


def run_config(**changes: Any) -> RunConfig:
    """40 steps on digits/mlp, looked at often."""
    values: dict[str, Any] = {
        "task": "digits/mlp",
        "schedule": "cosine",
        "optimizer": "sgd",
        "optimizer_options": {"momentum": 0.9},
        "lr": 0.1,
        "batch_size": 16,
        "total_steps": 40,
        "log_every": 4,
        "eval_every": 10,
        "checkpoint_every": 7,
        "train_size": 300,
        **changes,
    }
    return RunConfig(**values)


def learning_config(**changes: Any) -> RunConfig:
    """The same, learning its schedule, on a network with batch norm."""
    meta = MetaConfig(every=5, snapshots=(3, 20, 40), hidden_size=6)
    return run_config(**{"task": "digits/convnet", "schedule": "mlr-snet", "meta": meta, "train_size": 200, **changes})


def outcome(folder: Path) -> dict[str, Any]:
    """Everything of a run but its clocks."""
    state, note = CheckpointFile(folder / "checkpoint.pt").load()
    assert note is None
    return {
        "trainer": state["trainer"],
        "valid": state["valid"],
        "metrics": [without(entry, "seconds") for entry in read_lines(folder / "metrics.jsonl")[0]],
        "record": timeless(read_record(folder / "record.json")),
        "schedules": {path.name: _contents(path) for path in sorted(folder.rglob("*.safetensors"))},
    }


def _contents(file: Path) -> tuple[Any, dict[str, Tensor]]:
    schedule = load_schedule(file)
    return schedule.config(), dict(schedule.state_dict())


def timeless(record: Record | dict[str, Any]) -> dict[str, Any]:
    """A record without clocks and circumstances."""
    bare = without(record if isinstance(record, dict) else record.as_dict(), *CIRCUMSTANCES)
    for curve in ("train", "valid", "meta"):
        bare[curve] = without(bare.get(curve) or {}, "seconds")
    return bare


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """A dict without some keys."""
    return {name: value for name, value in values.items() if name not in names}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested values differ in a single bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for k, pair in enumerate(zip(a, b, strict=True)) for found in differences(*pair, f"{where}/{k}")]
    return [] if type(a) is type(b) and (a == b or (a != a and b != b)) else [f"{where}: {a!r} {b!r}"]


# ---- other processes: forked from a server that has imported torch already, so that one costs little

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        *("tests.lab.bench.running", "metastep.lab.bench.runner", "metastep.cli", "metastep.lab.report"),
        *("torch.utils.tensorboard", "torch._dynamo", "sklearn.datasets"),  # torch.optim asks for the second
    ]
)


class Child:
    """``metastep ARGUMENTS`` in a process of its own, in a folder; killed when the test ends."""

    def __init__(self, folder: Path, *arguments: str, dies_at: int | None = None) -> None:
        self.folder = folder
        self.process = _server.Process(target=_metastep, args=(str(folder), arguments, dies_at), daemon=False)
        self.process.start()

    def end(self) -> int:
        """Wait for the end; return the exit code (negative: the signal that killed it)."""
        self.process.join(120)
        assert self.process.exitcode is not None, "the process hangs"
        return self.process.exitcode

    def signal(self, number: int) -> None:
        """Send a signal."""
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, number)

    @property
    def out(self) -> str:
        """What it wrote to standard output."""
        return (self.folder / "stdout").read_text()

    @property
    def err(self) -> str:
        """What it wrote to standard error."""
        return (self.folder / "stderr").read_text()


def _metastep(folder: str, arguments: tuple[str, ...], dies_at: int | None) -> None:
    os.chdir(folder)
    with open("stdout", "w") as out, open("stderr", "w") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    torch.set_num_threads(1)
    if dies_at is not None:
        _die_at_file_operation(dies_at)
    sys.argv = ["metastep", *arguments]
    from metastep.cli import main

    with contextlib.redirect_stdout(os.fdopen(1, "w")), contextlib.redirect_stderr(os.fdopen(2, "w")):
        main()


def _die_at_file_operation(number: int) -> None:
    """Die as by SIGKILL just before the so-many-th rename, link or sync."""
    left = number

    def mortal(operation: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(77)
            return operation(*args, **kwargs)

        return call

    for name in ("replace", "link", "fsync"):
        setattr(os, name, mortal(getattr(os, name)))


def die(*args: object) -> None:
    """What a worker does that is out of memory."""
    os._exit(9)
