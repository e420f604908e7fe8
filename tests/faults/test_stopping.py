"""SIGTERM ends a command after its step, saved, with exit code 0; a folder serves one command at a time."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.bench.running import Child, differences, run_config
from tests.faults.commands import COMMANDS, begun, checkpoints, weights_and_records

from metastep.bench.curves import read_entries
from metastep.bench.locks import FolderLock
from metastep.bench.run import Run
from metastep.bench.stopping import StopSignal
from metastep.meta.checkpoints import CheckpointFile

TWO_TASKS = ("meta-train", "wine/mlp", "wine/mlp", "--train-size", "60", "--inner-valid", "20", "--outer-valid", "20")


@pytest.mark.parametrize("command", ["train", "meta-train"])  # compare: tests/bench/test_kills.py
def test_sigterm_saves_and_exits_0_and_the_rest_is_as_ever(
    command: str, undisturbed: Callable[[str], Path], start: Callable[..., Child], tmp_path: Path
) -> None:
    child, out = start(*COMMANDS[command], "--out", "out"), tmp_path / "out"
    begun(child)
    child.signal(signal.SIGTERM)
    assert child.end() == 0, child.err
    assert child.err.splitlines()[-1] == f"stopped; go on with: metastep {command} --resume out"
    for path in checkpoints(out):  # nothing that was logged is lost
        logged = max((entry["step"] for entry in read_entries(path.with_name("metrics.jsonl"))), default=0)
        assert CheckpointFile(path).load()[0]["trainer"]["steps"] >= logged
    assert start(command, "--resume", "out").end() == 0
    assert differences(weights_and_records(command, out), weights_and_records(command, undisturbed(command))) == []


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
    assert (record["status"], stop.exit_code) == ("stopped", 0)
    assert run.trainer.steps == at
    assert CheckpointFile(tmp_path / "checkpoint.pt").load()[0]["trainer"]["steps"] == at
    assert all(split != "test" for _, split in evaluated)
    assert all(step < at or step % 10 == 0 for step, _ in evaluated)


@pytest.mark.parametrize("arguments", [*COMMANDS.values(), TWO_TASKS], ids=[*COMMANDS, "two-tasks"])
def test_a_folder_that_another_command_holds_is_refused_and_nothing_changes(
    arguments: tuple[str, ...], start: Callable[..., Child], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with FolderLock(out):
        (out / "something").write_text("of the other's")
        before = {path: path.read_bytes() for path in out.rglob("*")}
        child = start(*arguments, "--out", "out")
        assert child.end() == 2
        (line,) = child.err.strip().splitlines()
        assert line.startswith("error: out is in use by process ")
        assert line.endswith("; wait for it, or stop it first.")
        assert {path: path.read_bytes() for path in out.rglob("*")} == before
