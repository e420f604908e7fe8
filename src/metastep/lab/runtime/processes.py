"""Worker processes on this machine: they inherit no state, leave Ctrl-C to their parent, and end with it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any


def process_context(preload: Sequence[str]) -> Any:
    """Processes that inherit no state of this one: forked from a server that has imported modules, or spawned.

    Args:
        preload: names of the modules that take long to import.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def leave_signals_to_parent() -> None:
    """In a worker: ignore Ctrl-C, which the terminal sends to all, and end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
