"""The package as users get it: built from this checkout, and installed beside nothing but what it requires."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://example.org/someone/metastep"


class Built(NamedTuple):
    """What ``python -m build`` made."""

    wheel: Path
    sdist: Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of this checkout, and the wheel that is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    environment = {**os.environ, "METASTEP_REPOSITORY": REPOSITORY}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(wheel, sdist)


def closure(requirements: list[str]) -> Iterator[Distribution]:
    """The installed distributions that these requirements need, and what those need in turn; no extras."""
    waiting, seen = [Requirement(text) for text in requirements], set()
    while waiting:
        wanted = waiting.pop()
        if wanted.name.lower() in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(wanted.name.lower())
        found = distribution(wanted.name)
        yield found
        waiting += [Requirement(text) for text in found.requires or []]


def top_level(found: Distribution) -> set[str]:
    """The names that a distribution has right in ``site-packages``."""
    return {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python, or a program, of an environment with the wheel and what the wheel requires, and nothing else.

    The wheel is installed by pip. What it requires is linked from this environment instead of downloaded again.
    """
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "venv")], check=True)
    python = place / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(built.wheel)], check=True, capture_output=True)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    target = Path(subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip())
    metadata = next(target.glob("metastep-*.dist-info"))
    requirements = Distribution.at(metadata).requires or []
    for found in closure(requirements):
        for name in top_level(found):
            source = Path(str(found.locate_file(name)))
            if source.exists() and not (target / name).exists():
                (target / name).symlink_to(source)

    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "METASTEP"))}
    clean |= {"METASTEP_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}

    def run(program: str, *arguments: str, folder: Path = place, env: dict[str, str] | None = None):
        command = [str(python.parent / program), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=folder, env={**clean, **(env or {})}
        )

    return run
