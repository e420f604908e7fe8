"""Several tasks learn one schedule: as one task alone would, the same on all ranks, and resumable to the bit."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.ranks import on_ranks
from tests.lab.bench.running import Child, differences, learning_config, outcome

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.run import Run
from metastep.lab.bench.shared_run import check_alike, read_tasks, train_tasks
from metastep.lab.runtime.folder import CheckpointFile, Folder
from metastep.schedules import load_schedule
from metastep.schedules.files import learned_on

TASKS = (
    learning_config(task="digits/mlp", threads=1),
    learning_config(task="wine/mlp", train_size=60, inner_valid=20, outer_valid=20, seed=1, threads=1),
)
SHORT = (
    *("--steps", "160", "--batch-size", "16", "--every", "4", "--hidden-size", "4", "--set", "checkpoint_every=8"),
    *("--set", "train_size=60", "--set", "inner_valid=20", "--set", "outer_valid=20", "--set", "threads=1"),
)


def train(folder: Path, configs: tuple[RunConfig, ...], stop_after: int | None = None) -> dict[str, Any]:
    """What each rank of a process group does: what came out, or what was refused, or that it was stopped."""
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return stop_after is not None and asked > stop_after

    notes: list[str] = []
    try:
        result = train_tasks(folder, configs, should_stop=should_stop, on_note=notes.append)
    except ValueError as error:
        return {"error": str(error)}
    return {"result": result, "notes": notes}


def outcomes(folder: Path) -> dict[str, Any]:
    """Everything but the clocks of all runs, and the schedule that they learned."""
    runs = {name: outcome(folder / name) for name, _ in read_tasks(folder)}
    return {**runs, "learned": dict(load_schedule(folder / "schedule.safetensors").state_dict())}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of two tasks to which nothing happened, and what each rank says."""
    folder = tmp_path_factory.mktemp("tasks") / "undisturbed"
    return folder, on_ranks(2, train, folder, TASKS)


def test_the_learned_schedule_is_the_same_on_all_ranks_and_says_its_tasks(
    undisturbed: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, ranks = undisturbed
    assert [rank["result"]["status"] for rank in ranks] == ["finished", "finished"]
    assert ranks[0]["result"] == ranks[1]["result"]
    assert ranks[0]["result"]["outer_steps"] == 8
    first, second, joint = (
        dict(load_schedule(path / "schedule.safetensors").state_dict())
        for path in (folder / "00-digits-mlp", folder / "01-wine-mlp", folder)
    )
    assert differences(first, second) == differences(first, joint) == []
    assert learned_on(folder / "schedule.safetensors") == ("digits/mlp", "wine/mlp")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [(record["task"], record["status"]) for record in records] == [
        ("digits/mlp", "finished"),
        ("wine/mlp", "finished"),
    ]
    assert differences(*(dict(load_schedule(path).state_dict()) for path in _first_and_last(folder))) != []


def _first_and_last(folder: Path) -> tuple[Path, Path]:
    snapshots = sorted((folder / "00-digits-mlp" / "snapshots").iterdir())
    return snapshots[0], snapshots[-1]


def test_one_task_is_learned_on_as_in_a_run_alone_to_the_last_bit(tmp_path: Path) -> None:
    config = learning_config(task="digits/convnet", threads=1)
    Run(config, tmp_path / "alone").execute()
    assert train(tmp_path / "shared", (config,))["result"]["outer_steps"] == 8
    assert differences(outcome(tmp_path / "alone"), outcome(tmp_path / "shared" / "00-digits-convnet")) == []


def test_stopped_and_resumed_it_ends_as_if_it_were_not(
    undisturbed: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    assert [rank["result"] for rank in on_ranks(2, train, tmp_path, TASKS, 5)] == [None, None]
    steps = [CheckpointFile(tmp_path / name / "checkpoint.pt").load()[0]["trainer"]["steps"] for name, _ in _tasks()]
    assert steps == [30, 30]
    on_ranks(2, train, tmp_path, TASKS)
    assert differences(outcomes(tmp_path), outcomes(undisturbed[0])) == []


def _tasks() -> list[tuple[str, RunConfig]]:
    return [("00-digits-mlp", TASKS[0]), ("01-wine-mlp", TASKS[1])]


def test_checkpoints_of_different_outer_steps_are_aligned_before_it_goes_on(
    undisturbed: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """As after a kill between the checkpoints of two ranks, or when the newest of one is damaged."""
    on_ranks(2, train, tmp_path, TASKS, 5)
    newest = tmp_path / "01-wine-mlp" / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-3])
    first, second = on_ranks(2, train, tmp_path, TASKS)
    assert first["notes"] == []
    assert second["notes"][0].endswith("went back to checkpoint.previous.pt.")
    assert differences(outcomes(tmp_path), outcomes(undisturbed[0])) == []
    for path in (tmp_path / "00-digits-mlp").glob("checkpoint*"):
        path.unlink()  # no outer step in common
    (tmp_path / "00-digits-mlp" / "record.json").unlink()
    _, second = on_ranks(2, train, tmp_path, TASKS)
    assert second["notes"] == ["01-wine-mlp begins again: the checkpoints of the tasks have no outer step in common."]
    assert differences(outcomes(tmp_path), outcomes(undisturbed[0])) == []


def test_killed_with_all_its_ranks_and_resumed_it_ends_as_if_it_were_not(
    start: Callable[..., Child], tmp_path: Path
) -> None:
    child = start("meta-train", "wine/mlp", "wine/mlp", *SHORT, "--out", "killed")
    while child.process.is_alive() and not any((tmp_path / "killed").rglob("checkpoint.previous.pt")):
        time.sleep(0.002)
    child.signal(signal.SIGKILL)
    assert child.end() == -signal.SIGKILL, child.err
    resumed = start("meta-train", "--resume", "killed")
    assert resumed.end() == 0, resumed.err
    other = start("meta-train", "wine/mlp", "wine/mlp", *SHORT, "--out", "undisturbed")
    assert other.end() == 0, other.err
    assert differences(*(outcomes(tmp_path / name) for name in ("killed", "undisturbed"))) == []


def test_a_lost_rank_ends_all_in_one_line(start: Callable[..., Child], tmp_path: Path) -> None:
    child = start("meta-train", "wine/mlp", "wine/mlp", *SHORT, "--steps", "20000", "--out", "out")
    while child.process.is_alive() and not any((tmp_path / "out").rglob("checkpoint.previous.pt")):
        time.sleep(0.002)
    holder = (tmp_path / "out" / "01-wine-mlp" / ".lock").read_text()
    os.kill(int(holder), signal.SIGKILL)
    assert child.end() == 2
    line = child.err.strip().splitlines()[-1]
    assert line.startswith("error: another rank of this run is lost (killed, or out of memory?).")
    assert line.endswith("resume with: metastep meta-train --resume out")


def test_a_task_that_diverges_ends_all_with_its_name(tmp_path: Path) -> None:
    wild = replace(TASKS[1], scale="lr", lr=1e30)
    for _ in range(2):  # and again when it is resumed
        found = on_ranks(2, train, tmp_path, (TASKS[0], wild))
        assert [rank["error"] for rank in found] == [found[0]["error"]] * 2
        assert found[0]["error"].startswith("01-wine-mlp diverged at step ")
    assert CheckpointFile(tmp_path / "00-digits-mlp" / "checkpoint.pt").exists()


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    learning = TASKS[0]
    for configs, message in (
        ((learning, replace(TASKS[1], schedule="cosine", meta=None)), "meta must be given for every task, got None"),
        ((learning, replace(TASKS[1], total_steps=30)), "tasks must take equally many steps, got 40 of digits/mlp and"),
        ((learning, replace(TASKS[1], meta=replace(TASKS[1].meta, every=4))), "tasks must learn in the same steps"),
    ):
        with pytest.raises(ValueError, match=message):
            check_alike(configs)
    wider = replace(TASKS[1], meta=replace(TASKS[1].meta, hidden_size=7))
    for folder, second, message in (
        ("shapes", wider, "tasks must learn schedules of one shape"),
        ("data", replace(TASKS[1], inner_valid=0), "inner_valid must be > 0"),
    ):
        found = on_ranks(2, train, tmp_path / folder, (learning, second))
        assert all(message in rank["error"] for rank in found)
    with Folder(tmp_path / "held"), pytest.raises(ValueError, match="in use by process"):
        train_tasks(tmp_path / "held", (learning,))
    with pytest.raises(ValueError, match="ranks must be as many as tasks, got 1 for 2; run torchrun"):
        train_tasks(tmp_path / "data")


def test_a_folder_of_an_earlier_version_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text('{"schema": 1, "tasks": []}')
    with pytest.raises(ValueError, match="is of an earlier version, which trained each task in a worker"):
        read_tasks(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tasks in"):
        read_tasks(tmp_path / "elsewhere")
