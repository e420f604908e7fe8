"""How runs share GPUs by fractions on a Ray cluster that says it has one, and devices that are not here."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.lab.bench.experiments import plan

from metastep.lab.bench.runner import ExperimentRun
from metastep.lab.runtime.executor import Executor, LocalExecutor, RayExecutor

#: For an item to see another begin: a worker of Ray imports torch first.
PATIENCE = 60.0


@dataclass(frozen=True)
class Meeting:
    """An item that looks how many others are at work; told to, it waits until there are two."""

    folder: Path
    label: str
    waits: bool = False


def meet(item: Meeting, should_stop: Callable[[], bool], report: Callable[[Any], None]) -> dict[str, Any]:
    """Give the most that were at work at once, and the GPUs that are to be seen."""
    mine, most, until = item.folder / item.label, 0, time.monotonic() + PATIENCE
    mine.touch()
    looks = 0
    while looks < 2000 or (item.waits and most < 2 and time.monotonic() < until):
        looks += 1
        most = max(most, len(os.listdir(item.folder)))
    mine.unlink()
    return {"most": most, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A machine that says it has four cores and one GPU."""
    found = pytest.importorskip("ray", reason="Ray is not installed")
    found.init(
        num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}},
    )  # fmt: skip
    yield found
    found.shutdown()


def results(folder: Path, share: float, *, waits: bool) -> list[dict[str, Any]]:
    """What six items give, each on such a share of a GPU."""
    folder.mkdir()
    items = [Meeting(folder, str(number), waits=waits and number < 2) for number in range(6)]
    ended = dict(RayExecutor(gpus=share).run(meet, items))
    assert len(ended) == len(items)
    return list(ended.values())


@pytest.mark.filterwarnings("ignore")
def test_half_a_gpu_each_is_two_runs_at_once_and_a_whole_one_is_one(ray, tmp_path):
    halves = results(tmp_path / "halves", 0.5, waits=True)
    assert max(one["most"] for one in halves) == 2
    wholes = results(tmp_path / "wholes", 1, waits=False)
    assert [one["most"] for one in wholes] == [1] * 6
    assert {one["gpus"] for one in halves + wholes} == {"0"}


@pytest.mark.filterwarnings("ignore")
def test_more_gpus_than_a_machine_has_are_refused_rather_than_waited_for(ray, tmp_path):
    with pytest.raises(ValueError, match="gpus_per_run must be at most what one machine of the cluster has, got 2"):
        results(tmp_path / "none", 2, waits=False)


def test_a_share_that_ray_cannot_give_is_refused_at_once():
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(ValueError, match=r"gpus_per_run must be whole above 1, got 1\.5"):
        RayExecutor(gpus=1.5)


def test_without_ray_a_share_is_refused_by_name(start):
    child = start("experiment", "field/small", "--gpus-per-run", "0.5")
    assert child.end() == 2
    assert child.err == "error: gpus-per-run must be given with --engine ray only, got it with the local engine.\n"


def test_the_device_need_not_be_on_the_machine_that_asks_a_cluster(tmp_path):
    base = replace(plan().bases["digits/mlp"], device="cuda:77")
    one = ExperimentRun(replace(plan(), bases={"digits/mlp": base}, methods=("sgd/constant",)), tmp_path)
    with pytest.raises(ValueError, match=r"device must be one that torch finds here \(.*\), got 'cuda:77'"):
        one.execute(LocalExecutor())
    assert list(tmp_path.iterdir()) == []
    given = []

    class Elsewhere(Executor):
        local = False

        def run(self, function, items, **options):
            given.extend(item.base.device for item in items)
            return iter(())

        def close(self) -> None:
            pass

    assert one.execute(Elsewhere()) is None
    assert set(given) == {"cuda:77"}
