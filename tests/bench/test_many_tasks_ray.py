"""The same on a Ray cluster: the local result to the last bit, and a killed actor costs one task some steps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.bench.running import differences
from tests.bench.test_many_tasks import TASKS, lead, what_came_out

from metastep.bench.task_ray import RayWorkers

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of ray's own


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine alone, for the tests of this file."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False, address="local")
    yield
    ray.shutdown()


class Mortal(RayWorkers):
    """Kills an actor after so many messages of its task."""

    number, left, killed = 1, 5, 0

    def receive(self, seconds: float) -> Any:
        found = super().receive(seconds)
        if found is not None and found[0] == self.number:
            self.left -= 1
            if self.left == 0:
                ray.kill(self.actors[self.number])
                self.killed += 1
        return found


def test_actors_learn_what_processes_learn_and_one_that_is_killed_costs_only_its_task(
    cluster: None, tmp_path: Path
) -> None:
    lead(tmp_path / "local").execute()
    lead(tmp_path / "ray", workers=lambda: RayWorkers(len(TASKS))).execute()
    assert differences(what_came_out(tmp_path / "ray"), what_came_out(tmp_path / "local")) == []

    notes: list[str] = []
    workers = Mortal(len(TASKS))
    result = lead(tmp_path / "killed", workers=lambda: workers, on_note=notes.append).execute()
    assert workers.killed == 1
    assert [task["lost_workers"] for task in result["tasks"]] == [0, 1]
    assert (result["tasks"][0]["status"], result["rounds"]) == ("finished", 8)
    assert notes[0].startswith("01-wine-mlp lost its worker; it ")


def test_a_population_on_ray_stops_and_goes_on_with_processes(cluster: None, tmp_path: Path) -> None:
    rounds: list[int] = []
    many = lead(
        tmp_path / "a",
        workers=lambda: RayWorkers(len(TASKS)),
        should_stop=lambda: len(rounds) >= 3,
        on_progress=lambda progress: rounds.append(progress.step),
    )
    assert many.execute() is None
    lead(tmp_path / "a").execute()
    lead(tmp_path / "b").execute()
    assert differences(what_came_out(tmp_path / "a"), what_came_out(tmp_path / "b")) == []


def test_a_cluster_that_is_not_there_and_gpus_that_it_lacks_are_refused(cluster: None) -> None:
    with pytest.raises(ValueError, match="device must be one that the cluster has, got cuda"):
        RayWorkers(2, cuda=True)
