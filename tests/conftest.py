"""For all tests: one cache of decoded images and compiled kernels for the whole session, and which tests are slow."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Files and folders of slow tests, below tests/: `make test-slow` runs them, and `make test` leaves them out. Those
#: that only take long are run side by side; those that start many processes, or kill them, one at a time.
OF_PROCESSES = (
    "cli/test_ray.py",
    "distributed",
    "faults/test_fifty_kills.py",
    "faults/test_full_disk.py",
    "faults/test_stopping.py",
    "lab/bench/test_kills.py",
    "lab/bench/test_ray.py",
    "lab/bench/test_shared_run.py",
    "lab/runtime/test_ray_executor.py",
)
LONG = ("faults/test_damage.py", "faults/test_damaged_runs.py", "faults/test_soak.py", "one_line", "packaging")


def pytest_configure() -> None:
    """Hear a closed connection as usual, where the tests run under ``nohup``: what they start inherits it."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and those of them that are run one at a time."""
    root = Path(__file__).parent
    for places in (OF_PROCESSES, LONG):
        assert all((root / place).exists() for place in places), f"these must be there: {places}"
        for item in items:
            if any(root / place in (item.path, *item.path.parents) for place in places):
                item.add_marker(pytest.mark.slow)
                if places is OF_PROCESSES:
                    item.add_marker(pytest.mark.processes)


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is decoded or compiled once serves all tests, in all processes of pytest-xdist; it is never the user's."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METASTEP_CACHE", str(root / "cache"))
        yield
