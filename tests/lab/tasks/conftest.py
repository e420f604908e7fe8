from functools import cache

import pytest

from metastep.lab.tasks import MissingData, load_task


@pytest.fixture(scope="session")
def load():
    """`load_task` that skips the test, naming the task, where its files are absent; it reads each task once."""
    read = cache(load_task)

    def load_or_skip(name, **options):
        try:
            return read(name, **options)
        except MissingData as missing:
            pytest.skip(f"{name}: {missing}")

    return load_or_skip
