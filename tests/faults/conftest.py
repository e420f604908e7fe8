"""The commands in processes of their own, as in tests/bench."""

from tests.bench.conftest import _one_thread, start

__all__ = ["_one_thread", "start"]
