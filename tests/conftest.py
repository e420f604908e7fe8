"""For all tests: one cache of decoded images and compiled kernels for the whole session, and which tests are slow."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Files and folders whose tests start many processes, kill them, or run for long: `make test-slow` runs them, one at a
#: time, and `make test` leaves them out. Below tests/.
SLOW = (
    "cli/test_ray.py",
    "distributed",
    "faults/test_damage.py",
    "faults/test_damaged_runs.py",
    "faults/test_fifty_kills.py",
    "faults/test_full_disk.py",
    "faults/test_soak.py",
    "faults/test_stopping.py",
    "lab/bench/test_kills.py",
    "lab/bench/test_ray.py",
    "lab/bench/test_shared_run.py",
    "lab/runtime/test_ray_executor.py",
    "one_line",
    "packaging",
)


def pytest_configure() -> None:
    """Hear a closed connection as usual, where the tests run under ``nohup``: what they start inherits it."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests."""
    root = Path(__file__).parent
    slow = [root / place for place in SLOW]
    assert all(place.exists() for place in slow), f"SLOW must name what is there, got {SLOW}"
    for item in items:
        if any(place == item.path or place in item.path.parents for place in slow):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is decoded or compiled once serves all tests, in all processes of pytest-xdist; it is never the user's."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METASTEP_CACHE", str(root / "cache"))
        yield
