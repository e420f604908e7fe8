"""Several tasks learn one schedule: as one task alone would, resumable to the bit, and whatever workers die."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.lab.bench.running import Child, differences, learning_config, without

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.curves import read_entries
from metastep.lab.bench.many_tasks import ManyTasks
from metastep.lab.bench.run import Progress, Run
from metastep.lab.bench.task_folder import read_tasks
from metastep.lab.bench.task_processes import LocalWorkers
from metastep.lab.bench.task_ray import RayWorkers
from metastep.lab.runtime.folder import CheckpointFile, Folder, FolderInUse
from metastep.schedules import load_schedule
from metastep.schedules.files import learned_on

TASKS = (
    learning_config(task="digits/mlp", threads=1),
    learning_config(task="wine/mlp", train_size=60, inner_valid=20, outer_valid=20, seed=1, threads=1),
)
SHORT = (
    *(
        "--steps",
        "160",
        "--batch-size",
        "16",
        "--set",
        "train_size=60",
        "--set",
        "inner_valid=20",
        "--set",
        "outer_valid=20",
    ),
    *("--every", "4", "--hidden-size", "4", "--set", "checkpoint_every=8", "--set", "threads=1"),
)


def lead(folder: Path, tasks: tuple[RunConfig, ...] = TASKS, **options: object) -> ManyTasks:
    """A population with workers on this machine."""
    return ManyTasks(tasks, folder, workers=options.pop("workers", LocalWorkers), **options)


def what_came_out(folder: Path) -> dict[str, object]:
    """Schedules, curves and records, without clocks."""
    schedules = {path.name: dict(load_schedule(path).state_dict()) for path in folder.rglob("*.safetensors")}
    curves = {
        path.parent.name: [without(entry, "seconds") for entry in read_entries(path)]
        for path in sorted(folder.rglob("metrics.jsonl"))
    }
    result = without(json.loads((folder / "population.json").read_text()), "command")
    return {"schedules": schedules, "curves": curves, "result": result}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a population to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert lead(folder).execute()["status"] == "finished"
    return folder


def test_one_task_is_learned_on_as_in_a_run_alone_to_the_last_bit(tmp_path: Path) -> None:
    config = learning_config(task="digits/convnet", threads=1)
    alone = Run(config, tmp_path / "alone", tensorboard=False).execute()
    result = lead(tmp_path / "many", (config,)).execute()
    assert (result["rounds"], result["lost_workers"]) == (8, 0)
    one, many = (load_schedule(tmp_path / folder / "schedule.safetensors") for folder in ("alone", "many"))
    assert one.config() == many.config()
    assert differences(dict(one.state_dict()), dict(many.state_dict())) == []
    (record,) = (json.loads(line) for line in (tmp_path / "many" / "records.jsonl").read_text().splitlines())
    assert differences(alone["final"], record["final"]) == []
    curves = [tmp_path / "alone", tmp_path / "many" / "tasks" / "00-digits-convnet"]
    first, second = ([without(e, "seconds") for e in read_entries(path / "metrics.jsonl")] for path in curves)
    assert differences(first, second) == []


def test_several_tasks_learn_one_schedule_which_says_so(undisturbed: Path) -> None:
    found = what_came_out(undisturbed)["result"]
    assert found["rounds"] == 8
    assert [task["status"] for task in found["tasks"]] == ["finished", "finished"]
    assert learned_on(undisturbed / "schedule.safetensors") == ("digits/mlp", "wine/mlp")
    first, last = (
        load_schedule(undisturbed / "snapshots" / f"round-{rounds}.safetensors") for rounds in ("00000", "00008")
    )
    assert differences(dict(first.state_dict()), dict(last.state_dict())) != []
    assert len(read_tasks(undisturbed)) == 2


def test_what_is_done_is_not_done_again(undisturbed: Path) -> None:
    def no_workers() -> LocalWorkers:
        raise AssertionError

    assert lead(undisturbed, workers=no_workers).execute() == json.loads((undisturbed / "population.json").read_text())


def test_killed_with_its_workers_and_resumed_it_ends_as_if_it_were_not(
    start: Callable[..., Child], tmp_path: Path
) -> None:
    child = start("meta-train", "wine/mlp", "wine/mlp", *SHORT, "--out", "killed")
    while child.process.is_alive() and not (tmp_path / "killed" / "checkpoint.previous.pt").exists():
        time.sleep(0.002)
    child.signal(signal.SIGKILL)
    assert child.end() == -signal.SIGKILL, child.err
    tasks = tuple(read_tasks(tmp_path / "killed"))
    for folder in ("killed", "undisturbed"):
        assert lead(tmp_path / folder, tasks).execute()["rounds"] == 40
    found, expected = (what_came_out(tmp_path / name) for name in ("killed", "undisturbed"))
    assert differences(found, expected) == []


class Mortal(LocalWorkers):
    """Kills the worker of a task when it has said so many things."""

    left: dict[int, list[int]]  # by task: after how many messages its workers die, one after the other

    def receive(self, seconds: float):
        found = super().receive(seconds)
        if found is not None and self.left.get(found[0]) and found[0] in self.processes:
            deaths = self.left[found[0]]
            deaths[0] -= 1
            if deaths[0] <= 0:
                deaths.pop(0)
                os.kill(self.processes[found[0]].pid, signal.SIGKILL)
        return found


@pytest.mark.parametrize("message", [1, 7])  # ready; in a meta-step
def test_a_killed_worker_costs_its_task_some_steps_and_the_others_nothing(tmp_path: Path, message: int) -> None:
    notes: list[str] = []
    workers = Mortal()
    workers.left = {1: [message]}
    result = lead(tmp_path, workers=lambda: workers, on_note=notes.append).execute()
    assert [task["lost_workers"] for task in result["tasks"]] == [0, 1]
    assert result["tasks"][0]["status"] == "finished"
    assert result["tasks"][1]["status"] in ("finished", "cut short")
    assert result["rounds"] == 8
    (note,) = notes
    assert note.startswith("01-wine-mlp lost its worker; it ")
    assert load_schedule(tmp_path / "schedule.safetensors") is not None


def test_a_task_that_loses_worker_after_worker_is_dropped_and_counted(tmp_path: Path) -> None:
    notes: list[str] = []
    workers = Mortal()
    workers.left = {0: [1, 1, 1]}
    result = lead(tmp_path, workers=lambda: workers, on_note=notes.append).execute()
    assert [task["status"] for task in result["tasks"]] == ["dropped", "finished"]
    assert (result["lost_workers"], result["learned_on"]) == (3, ["wine/mlp"])
    assert notes[-1] == "00-digits-mlp lost its worker 3 times and is dropped; the others go on."
    assert learned_on(tmp_path / "schedule.safetensors") == ("wine/mlp",)


class Dead:
    """Workers that are lost as soon as they are started."""

    def start(self, number: int, assignment: object) -> None:
        self.number = number

    def receive(self, seconds: float) -> tuple[int, None]:
        return self.number, None

    def close(self) -> None:
        pass


def test_a_population_all_of_whose_workers_die_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ChildProcessError, match="workers died 3 times in every task"):
        lead(tmp_path, TASKS[:1], workers=Dead).execute()
    assert not (tmp_path / "schedule.safetensors").exists()


def test_stopped_and_resumed_from_the_checkpoint_before_a_damaged_one_it_ends_as_if_it_were_not(
    undisturbed: Path, tmp_path: Path
) -> None:
    rounds: list[Progress] = []
    assert lead(tmp_path, should_stop=lambda: len(rounds) >= 5, on_progress=rounds.append).execute() is None
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:-3])
    notes: list[str] = []
    assert lead(tmp_path, on_note=notes.append).execute() is not None
    assert [note.partition(" is ")[0] for note in notes] == ["checkpoint.pt"]
    assert notes[0].endswith("went back to checkpoint.previous.pt.")
    assert differences(what_came_out(tmp_path), what_came_out(undisturbed)) == []


def test_what_cannot_be_is_refused(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(ValueError, match="tasks must name at least one task"):
        lead(tmp_path, ())
    with pytest.raises(ValueError, match="meta must be given for every task, got None for digits/mlp"):
        lead(tmp_path, (TASKS[1], replace(TASKS[0], schedule="cosine", meta=None)))
    with pytest.raises(ValueError, match="tasks must be those of the population"):
        lead(undisturbed, TASKS[::-1])
    with Folder(tmp_path / "held"), pytest.raises(FolderInUse, match="in use by process"):
        lead(tmp_path / "held").execute()


def test_a_task_that_cannot_be_run_ends_all_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"00-wine-mlp: .*inner_valid"):
        lead(tmp_path / "a", (replace(TASKS[1], inner_valid=0),)).execute()
    wider = replace(TASKS[1], meta=replace(TASKS[1].meta, hidden_size=7))
    with pytest.raises(ValueError, match=r"tasks must learn schedules of one shape, 01-wine-mlp wants another"):
        lead(tmp_path / "b", (TASKS[0], wider)).execute()
    assert not CheckpointFile(tmp_path / "b" / "checkpoint.pt").exists()


# ---- on a Ray cluster


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray, with a cluster of this machine alone."""
    module = pytest.importorskip("ray", reason="Ray is not installed: the extra [ray]")
    module.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False, address="local")
    yield module
    module.shutdown()


@pytest.mark.filterwarnings("ignore")  # of ray's own
def test_begun_by_actors_of_a_cluster_and_ended_by_processes_it_is_the_same(
    ray: Any, undisturbed: Path, tmp_path: Path
) -> None:
    rounds: list[int] = []
    begun = lead(
        tmp_path,
        workers=lambda: RayWorkers(len(TASKS)),
        should_stop=lambda: len(rounds) >= 4,
        on_progress=lambda progress: rounds.append(progress.step),
    )
    assert begun.execute() is None
    assert lead(tmp_path).execute() is not None
    assert differences(what_came_out(tmp_path), what_came_out(undisturbed)) == []


@pytest.mark.filterwarnings("ignore")
def test_an_actor_that_is_killed_is_replaced_by_another(ray: Any, tmp_path: Path) -> None:
    class MortalActors(RayWorkers):
        left = 5

        def receive(self, seconds: float) -> Any:
            found = super().receive(seconds)
            if found is not None:
                self.left -= 1
                if self.left == 0:
                    ray.kill(self.actors[0])
            return found

    notes: list[str] = []
    result = lead(tmp_path, TASKS[1:], workers=lambda: MortalActors(1), on_note=notes.append).execute()
    assert (result["tasks"][0]["lost_workers"], result["tasks"][0]["status"]) == (1, "cut short")
    assert result["rounds"] == 8
    assert notes == ["00-wine-mlp lost its worker; it begins again."]


def test_gpus_that_a_cluster_lacks_are_refused(ray: Any) -> None:
    with pytest.raises(ValueError, match="device must be one that the cluster has, got cuda"):
        RayWorkers(2, cuda=True)
