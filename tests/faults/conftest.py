"""The commands in processes of their own, as in tests/lab/bench, and what they leave when nothing happens to them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.commands import COMMANDS
from tests.lab.bench.conftest import _one_thread, start
from tests.lab.bench.running import Child

__all__ = ["_one_thread", "start", "undisturbed"]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a command's run to which nothing happened; each is run once."""
    folders: dict[str, Path] = {}

    def folder_of(command: str) -> Path:
        if command not in folders:
            folder = tmp_path_factory.mktemp("undisturbed")
            child = Child(folder, *COMMANDS[command], "--out", "out")
            assert child.end() == 0, child.err
            folders[command] = folder / "out"
        return folders[command]

    return folder_of
