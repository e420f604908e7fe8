"""metastep meta-train under torchrun: the run of one process, in one folder, whoever is killed on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed import killed

from metastep.lab.runtime.folder import CheckpointFile
from metastep.schedules import load_schedule

#: 33 rows are 16 and 17 for two processes, and the last batch of an epoch is smaller.
RUN = ["meta-train", "digits/mlp", "--steps", "24", "--batch-size", "33", "--every", "4", "--set", "checkpoint_every=5"]


def torchrun(*arguments: str, processes: int = 2, restarts: int = 0, **environment: str) -> Any:
    """Run the command line in processes of torchrun; what ``subprocess.run`` returns."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*launch, f"--max-restarts={restarts}", killed.__file__, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def metastep(*arguments: str) -> Any:
    """The command line in one process."""
    command = [sys.executable, "-m", "metastep", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def result(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trainer's last state, and the record."""
    state, note = CheckpointFile(folder / "checkpoint.pt").load()
    assert note is None
    return state["trainer"], json.loads((folder / "record.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = torchrun(*RUN, "--out", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("folder:") == 1  # one process speaks for all
    return folder


def test_two_processes_take_the_steps_of_one(undisturbed: Path, tmp_path: Path) -> None:
    done = metastep(*RUN, "--out", str(tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    (two, two_record), (one, one_record) = result(undisturbed), result(tmp_path / "one")
    assert (two_record["machine"]["processes"], one_record["machine"]["processes"]) == (2, 1)
    for curve, values in (("train", ("loss", "lr")), ("meta", ("loss",)), ("valid", ("loss", "accuracy"))):
        for value in values:
            assert two_record[curve][value] == pytest.approx(one_record[curve][value], rel=1e-5)
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=1e-4, atol=1e-5)


def test_a_run_restarted_after_a_kill_ends_as_an_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    kill = {"KILL_RANK": "1", "KILL_STEP": "13", "KILL_MARK": str(tmp_path / "mark")}
    done = torchrun(*RUN, "--out", str(folder), restarts=2, **kill)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").exists()
    (found, record), (expected, expected_record) = result(folder), result(undisturbed)
    for name, weight in expected["model"].items():
        assert torch.equal(found["model"][name], weight)
    for name, weight in expected["lr"]["weights"].items():
        assert torch.equal(found["lr"]["weights"][name], weight)
    assert record["train"]["loss"] == expected_record["train"]["loss"]
    assert record["final"] == expected_record["final"]


def test_another_number_of_processes_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    kill = {"KILL_RANK": "0", "KILL_STEP": "8", "KILL_MARK": str(tmp_path / "mark")}
    assert torchrun(*RUN, "--out", str(folder), **kill).returncode != 0
    assert (tmp_path / "mark").exists()
    done = metastep("meta-train", "--resume", str(folder))
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: the checkpoint is of a run on 2 processes, this is one on 1; resume with torchrun")


def test_torchrun_without_a_folder_is_refused() -> None:
    done = torchrun("train", "digits/mlp", "--steps", "2", processes=1)
    assert done.returncode != 0
    assert "error: --out must be given under torchrun" in done.stderr


TASKS = [
    *("meta-train", "wine/mlp", "digits/mlp", "--steps", "24", "--batch-size", "8", "--every", "4"),
    *("--hidden-size", "4"),
    *(f"--set={setting}" for setting in ("train_size=60", "inner_valid=20", "outer_valid=20", "checkpoint_every=5")),
]


def test_two_tasks_restarted_after_a_kill_learn_what_local_ranks_learn(tmp_path: Path) -> None:
    kill = {"KILL_RANK": "1", "KILL_STEP": "13", "KILL_MARK": str(tmp_path / "mark")}
    done = torchrun(*TASKS, "--out", str(tmp_path / "there"), restarts=2, **kill)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").exists()
    assert done.stdout.count("folder:") == 1
    here = metastep(*TASKS, "--set", "threads=1", "--out", str(tmp_path / "here"))
    assert here.returncode == 0, here.stderr
    learned = [load_schedule(tmp_path / name / "schedule.safetensors").state_dict() for name in ("there", "here")]
    assert all(torch.equal(weight, learned[1][name]) for name, weight in learned[0].items())


def test_another_number_of_ranks_than_of_tasks_is_refused_in_one_line(tmp_path: Path) -> None:
    done = torchrun(*TASKS, "--out", str(tmp_path / "out"), processes=1)
    assert done.returncode != 0
    assert "error: ranks must be as many as tasks, got 1 for 2; run torchrun --nproc-per-node 2" in done.stderr
    assert not (tmp_path / "out" / "tasks.json").exists()
