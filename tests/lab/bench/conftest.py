from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.lab.bench.running import Child


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[type[Child]]:
    """Start ``metastep ARGUMENTS`` in tmp_path, in a process that does not outlive the test."""
    children = []

    def start_child(*arguments: str, **options: int) -> Child:
        children.append(Child(tmp_path, *arguments, **options))
        return children[-1]

    yield start_child
    for child in children:
        if child.process.is_alive():
            child.process.kill()
        child.process.join()
