"""SIGTERM ends a command after its step, saved, with exit code 0; a folder serves one command at a time."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.commands import COMMANDS, begun, checkpoints, descendants, wait_for, weights_and_records
from tests.lab.bench.running import Child, differences, run_config

from metastep.lab.bench.run import Run
from metastep.lab.runtime.folder import CheckpointFile, Folder, read_lines
from metastep.lab.runtime.stop_signals import StopSignal

TWO_TASKS = (
    "meta-train",
    "wine/mlp",
    "wine/mlp",
    "--set",
    "train_size=60",
    "--set",
    "inner_valid=20",
    "--set",
    "outer_valid=20",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_sigterm_saves_and_exits_0_and_the_rest_is_as_ever(
    command: str, undisturbed: Callable[[str], Path], start: Callable[..., Child], tmp_path: Path
) -> None:
    child, out = start(*COMMANDS[command], "--out", "out"), tmp_path / "out"
    begun(child)
    child.signal(signal.SIGTERM)
    assert child.end() == 0, child.err
    assert child.err.splitlines()[-1] == f"stopped; resume with: metastep {command} --resume out"
    for path in checkpoints(out):  # nothing that was logged is lost
        logged = max((entry["step"] for entry in read_lines(path.with_name("metrics.jsonl"))[0]), default=0)
        assert CheckpointFile(path).load()[0]["trainer"]["steps"] >= logged
    assert start(command, "--resume", "out").end() == 0
    assert differences(weights_and_records(command, out), weights_and_records(command, undisturbed(command))) == []


def test_a_connection_that_closes_stops_a_run_like_sigterm(
    undisturbed: Callable[[str], Path], start: Callable[..., Child], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    child = start(*COMMANDS["train"], "--out", "out")
    begun(child)
    child.signal(signal.SIGHUP)
    assert child.end() == 0, child.err
    assert child.err.splitlines()[-1].startswith("stopped; ")
    assert start("train", "--resume", "out").end() == 0
    assert differences(weights_and_records("train", out), weights_and_records("train", undisturbed("train"))) == []


def test_a_terminal_that_closes_leaves_a_run_saved(tmp_path: Path) -> None:
    """With the terminal goes everything that the run could write to."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "metastep", *COMMANDS["train"], "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**os.environ, "METASTEP_CACHE": str(tmp_path / "cache")},
    )
    os.close(theirs)
    try:
        os.set_blocking(ours, False)
        while process.poll() is None and not any(tmp_path.rglob("checkpoint.previous.pt")):
            select.select([ours], [], [], 0.05)
            with contextlib.suppress(BlockingIOError):
                os.read(ours, 65536)
        os.close(ours)
        assert process.wait(120) == 0
    finally:
        process.kill()
    state, note = CheckpointFile(tmp_path / "out" / "checkpoint.pt").load()
    logged = max(entry["step"] for entry in read_lines(tmp_path / "out" / "metrics.jsonl")[0])
    assert note is None
    assert state["trainer"]["steps"] >= logged
    assert not (tmp_path / "out" / "record.json").exists()


JOBS = {
    "compare": (*COMMANDS["compare"], "--workers", "2"),
    "meta-train": (*TWO_TASKS, "--steps", "400", "--every", "5", "--batch-size", "8", "--set", "checkpoint_every=20"),
}


@pytest.mark.parametrize("command", JOBS)
def test_sigterm_to_all_processes_of_a_job_does_the_same(
    command: str, undisturbed: Callable[[str], Path], start: Callable[..., Child], tmp_path: Path
) -> None:
    child, out = start(*JOBS[command], "--out", "out"), tmp_path / "out"
    wait_for(child, lambda: any(out.rglob("*.previous.pt")))
    assert child.process.pid is not None
    workers = descendants(child.process.pid)
    assert len(workers) >= 2
    for process in (child.process.pid, *workers):
        os.kill(process, signal.SIGTERM)
    assert child.end() == 0, child.err
    assert child.err.splitlines()[-1] == f"stopped; resume with: metastep {command} --resume out"
    assert start(command, "--resume", "out").end() == 0
    if command == "compare":
        assert differences(weights_and_records(command, out), weights_and_records(command, undisturbed(command))) == []


def test_what_a_signal_sets_off_may_need_what_the_interrupted_code_holds() -> None:
    """As a line above a progress bar does, which is drawn under a lock."""
    lock, told = threading.Lock(), []
    with StopSignal(lambda: told.append(lock.acquire(timeout=20))) as stop:
        with lock:
            signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert told == [True]  # it was free when somebody asked for it


@pytest.mark.parametrize("at", [1, 8, 10, 27])
def test_a_signal_during_a_step_ends_the_run_with_that_step_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    with StopSignal() as stop:
        run = Run(run_config(), tmp_path, should_stop=stop, tensorboard=False)
        advance, evaluated = run.trainer.advance, []

        def advance_until_told() -> object:
            if run.trainer.steps == at - 1:
                signal.raise_signal(signal.SIGTERM)
            return advance()

        evaluate = type(run.task).evaluate

        def noted(task: object, network: object, split: str, **options: object) -> object:
            evaluated.append((run.trainer.steps, split))
            return evaluate(task, network, split, **options)

        run.trainer.advance = advance_until_told
        monkeypatch.setattr(type(run.task), "evaluate", noted)
        record = run.execute()
    assert (record.status, stop.exit_code) == ("stopped", 0)
    assert run.trainer.steps == at
    assert CheckpointFile(tmp_path / "checkpoint.pt").load()[0]["trainer"]["steps"] == at
    assert all(split != "test" for _, split in evaluated)
    assert all(step < at or step % 10 == 0 for step, _ in evaluated)


@pytest.mark.parametrize("arguments", [*COMMANDS.values(), TWO_TASKS], ids=[*COMMANDS, "two-tasks"])
def test_a_folder_that_another_command_holds_is_refused_and_nothing_changes(
    arguments: tuple[str, ...], start: Callable[..., Child], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with Folder(out):
        (out / "something").write_text("of the other's")
        before = {path: path.read_bytes() for path in out.rglob("*")}
        child = start(*arguments, "--out", "out")
        assert child.end() == 2
        (line,) = child.err.strip().splitlines()
        assert line.startswith("error: out is in use by process ")
        assert line.endswith("; wait for it, or stop it first.")
        assert {path: path.read_bytes() for path in out.rglob("*")} == before
