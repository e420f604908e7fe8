"""A schedule is one new file and one line: shown by adding one to a copy of the package."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEW_FILE = '''"""A rate that halves at equal distances."""

from metastep.schedules.base import whole
from metastep.schedules.closed_form import OverHorizon


class Halving(OverHorizon):
    """Halves the rate a few times over the run: factor_t = 2^-floor(times t / total_steps)."""

    def __init__(self, total_steps: int | None = None, times: int = 4) -> None:
        super().__init__(total_steps)
        self.times = whole("times", times, 1)

    def factor_within(self, step: int, total_steps: int) -> float:
        """The equation above."""
        return 2.0 ** -(self.times * step // total_steps)
'''
NEW_LINE = "from metastep.schedules.halving import Halving as Halving\n"
NEXT_LINE = "from metastep.schedules.mlrsnet import MLRSNet as MLRSNet\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run Python with a copy of the package in which the schedule was added."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "src" / "metastep", folder / "metastep", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "metastep" / "schedules" / "halving.py").write_text(NEW_FILE)
    registry = folder / "metastep" / "schedules" / "registry.py"
    assert registry.read_text().count(NEXT_LINE) == 1
    registry.write_text(registry.read_text().replace(NEXT_LINE, NEW_LINE + NEXT_LINE))

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_it_is_public_saved_loaded_and_a_row_of_the_documents(python: Callable[..., str]) -> None:
    python(
        "-c",
        """
import metastep as ms
from metastep.schedules.registry import table
assert "Halving" in ms.__all__ and "Halving" in dir(ms)
ms.save_schedule(ms.Halving(8, times=2), "halving.safetensors")
loaded = ms.load_schedule("halving.safetensors")
assert [loaded.factor_at(step) for step in range(8)] == [1.0] * 4 + [0.5] * 4
assert "| `Halving` | `halving` | Halves the rate a few times over the run" in table()
""",
    )


def test_the_command_line_and_the_benchmark_can_name_it(python: Callable[..., str]) -> None:
    assert "halving" in python("-m", "metastep", "list", "schedules")
    python(
        "-c",
        """
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.schedules import make_schedule
assert "adamw/halving" in METHODS
schedule, learns = make_schedule("halving", 8, text=False)
assert schedule.factor_at(7) == 0.125 and not learns
""",
    )


def test_it_inherits_the_contract_tests(python: Callable[..., str]) -> None:
    file = str(ROOT / "tests" / "schedules" / "test_contract.py")
    found = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), file, "-k", "Halving"
    )
    assert "7 passed" in found
