from functools import cache

import pytest

from metastep.lab.tasks import MissingData, load_task


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Decoded images go to a folder of this test run, never to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METASTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def load():
    """`load_task` that skips the test, naming the task, where the task's files are absent; read once, tasks are frozen."""
    read = cache(load_task)

    def load_or_skip(name, **options):
        try:
            return read(name, **options)
        except MissingData as missing:
            pytest.skip(f"{name}: {missing}")

    return load_or_skip
