"""``metastep meta-train`` on a Ray cluster, as typed, and addresses at which there is none."""

from pathlib import Path

import pytest
from tests.lab.bench.running import differences
from tests.lab.bench.test_ray import cluster

from metastep.schedules import load_schedule

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

__all__ = ["cluster"]

SIZES = ("--steps", "20", "--every", "5", "--batch-size", "8", "--set", "train_size=60", "--set", "threads=1")
TASKS = ("meta-train", "wine/mlp", "wine/mlp", "--set", "inner_valid=20", "--set", "outer_valid=20", *SIZES)


def test_tasks_learn_on_a_cluster_what_they_learn_in_local_processes(metastep, cluster, tmp_path: Path) -> None:
    there = metastep(*TASKS, "--engine", "ray", "--address", cluster.address, "--out", "there", "--json")
    assert there.code == 0, there.err
    here = metastep(*TASKS, "--out", "here", "--json")
    assert here.code == 0, here.err
    assert (there.json["rounds"], there.json["lost_workers"]) == (here.json["rounds"], 0)
    first, second = (
        dict(load_schedule(tmp_path / name / "schedule.safetensors").state_dict()) for name in ("there", "here")
    )
    assert differences(first, second) == []
    again = metastep("meta-train", "--resume", "there", "--engine", "ray", "--address", cluster.address, "--json")
    assert again.json == there.json


@pytest.mark.parametrize(
    "address", ["auto", "nonsense", "127.0.0.1:notaport", "http://127.0.0.1:6379", "127.0.0.1:1", "ray://127.0.0.1:1"]
)
def test_an_address_without_a_cluster_is_one_line(metastep, address: str) -> None:
    result = metastep(*TASKS, "--engine", "ray", "--address", address, "--out", "out")
    assert result.code == 2
    line = result.err.strip().splitlines()[-1]
    assert line.startswith(f"error: no Ray cluster at '{address}' (")
    assert line.endswith("; start one: ray start --head.")
    assert "Traceback" not in result.err


def test_a_comparison_does_not_wait_where_nobody_listens(metastep) -> None:
    result = metastep(
        "experiment", "paper/hierarchy", "--tasks", "mnist/mlp", "--engine", "ray", "--address", "127.0.0.1:1"
    )
    assert result.code == 2
    assert result.err.strip().splitlines()[-1].startswith("error: no Ray cluster at '127.0.0.1:1' (")


def test_an_address_is_for_ray(metastep) -> None:
    result = metastep(*TASKS, "--address", "auto", "--out", "out")
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert line == "error: address must be left out for the engine local, got auto; it is for --engine ray."
