"""A copy of the package with something added to it, in which a process of its own runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Copy:
    """The package, copied into a folder, with one new file and one new line.

    Args:
        folder: empty.
        new: where the new file goes in the package, and what it holds.
        line: the file of the package that gets a line, a line that it has, and the one that is to stand before it.
    """

    def __init__(self, folder: Path, new: tuple[str, str], line: tuple[str, str, str]) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "src" / "metastep", folder / "metastep", ignore=shutil.ignore_patterns("__pycache__"))
        place, text = new
        assert not (folder / "metastep" / place).exists()
        (folder / "metastep" / place).write_text(text)
        changed, before, added = line
        registry = folder / "metastep" / changed
        found = registry.read_text()
        assert found.count(before) == 1
        registry.write_text(found.replace(before, f"{added}\n{before}"))

    def run(self, *arguments: str) -> str:
        """Run Python with these arguments on the copy; return what it prints."""
        paths = os.pathsep.join((str(self.folder), str(ROOT)))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout
