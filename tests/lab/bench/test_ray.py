"""Cells over a Ray cluster of two nodes, of which one is lost on the way."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lab.bench.experiments import executed, keys, plan, timeless
from tests.lab.bench.running import differences

from metastep.lab.bench.runner import ExperimentRun
from metastep.lab.runtime.executor import RayExecutor

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two nodes on this machine, a core each, that is shut down by its own interface."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    head = {"num_cpus": 1, "include_dashboard": False}
    try:
        made = Cluster(initialize_head=True, connect=False, head_node_args=head)
    except Exception as error:  # what Ray raises; it gives its own processes 15 seconds to start, whatever else runs
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("Ray's node did not start in time: the machine is too busy")
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_node_may_be_lost_and_nothing_is_lost_or_run_twice(cluster, tmp_path: Path) -> None:
    base = replace(plan().bases["digits/mlp"], total_steps=1500, log_every=100, eval_every=500, checkpoint_every=50)
    small = replace(plan(), bases={"digits/mlp": base}, budgets=(1, 2), seeds=2, factors=())
    second = cluster.add_node(num_cpus=1)
    ended: list[str] = []
    lost = []

    def watch(progress) -> None:
        ended.append(progress.label) if progress.run is None else None
        if len(ended) == 2 and not lost:
            lost.append(time.monotonic())
            cluster.remove_node(second, allow_graceful=False)

    records = ExperimentRun(small, tmp_path / "ray").execute(RayExecutor(cluster.address), on_progress=watch)
    assert lost
    assert all(times == 1 for label, times in Counter(ended).items() if label.endswith("search"))
    assert len(records) == len(set(keys(records))) == 8
    here = executed(tmp_path / "here", small)
    assert differences([timeless(r) for r in records], [timeless(r) for r in here]) == []
