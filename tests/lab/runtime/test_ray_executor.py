"""The executor of a Ray cluster keeps the promises of the local one."""

import os
import time
from functools import partial
from pathlib import Path

import pytest
from tests.lab.runtime.test_executor import Counting, Dying, mapped, raising, square

from metastep.lab.runtime.executor import RayExecutor


@pytest.mark.filterwarnings("ignore")
def test_ray_keeps_the_same_promises(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}}
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=environment
    )  # fmt: skip
    try:
        executor = RayExecutor()
        assert mapped(executor, square, range(5)) == [0, 1, 4, 9, 16]
        with pytest.raises(OSError, match="a full disk"):
            mapped(executor, partial(raising, error=OSError), range(3))
        assert dict(executor.run(Dying(tmp_path, 1).work, ["weak", "strong"])) == {0: 1, 1: 0}
        with pytest.raises(ChildProcessError, match=r"the process of 'weak' was lost 3 times"):
            list(executor.run(Dying(tmp_path, 9).work, ["weak"], describe=repr))
        told: list[int] = []
        until = time.monotonic() + 60
        ended = executor.run(
            Counting(tmp_path, 10**9).count,
            ["a", "b"],
            should_stop=lambda: bool(told) or time.monotonic() > until,
            on_progress=lambda number, at: told.append(at),
        )
        assert {status for _, status in ended} == {"stopped"}
        assert told
    finally:
        ray.shutdown()
