"""The process group of a command: of the processes that torchrun started, or of some that it starts itself."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def under_torchrun() -> bool:
    """True in a process that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted() -> bool:
    """True if torchrun started it again, after another had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_rank_zero() -> bool:
    """True on rank 0, which writes; can be asked before the process group is initialised."""
    return os.environ.get("RANK", "0") == "0" if under_torchrun() else True


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Within, the processes of torchrun form one process group, each with the device of its local rank.

    Args:
        device: "cuda" for NCCL beside gloo; anything else, gloo alone.
    """
    if not under_torchrun() or os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    import torch

    from metastep.core.distributed import destroy_process_group, init_process_group

    on_cuda = device == "cuda" and torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", f"attempt-{attempt}")
    try:
        yield
    finally:
        destroy_process_group()


@contextmanager
def local_ranks(count: int, work: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Within, this process is rank 0 of a process group on this machine; the other ranks do a work.

    They end when this process does. An error within ends them at once.

    Args:
        count: how many ranks.
        work: what every other rank calls, a function of a module; an error that all ranks raise is said here alone.
        arguments: of ``work``.

    Raises:
        ChildProcessError: if another rank does not start.
    """
    from metastep.core.distributed import destroy_process_group, init_local_process_group
    from metastep.lab.runtime.executor import process_context

    context = process_context(["metastep.lab.bench.shared_run"])
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        others, pipes = [], []
        for rank in range(1, count):
            here, there = context.Pipe(duplex=False)
            others.append(
                context.Process(target=_local_rank, args=(there, store, rank, count, work, arguments), daemon=True)
            )
            others[-1].start()
            there.close()  # so that a dead rank ends the pipe
            pipes.append(here)
        try:
            for here in pipes:
                try:
                    here.recv_bytes()
                except EOFError:
                    raise ChildProcessError("another rank of this run did not start; see above.") from None
            init_local_process_group("gloo", store, 0, count)
            try:
                yield
            finally:
                destroy_process_group()
        except BaseException:
            for process in others:
                process.kill()
            raise
        finally:
            for process in others:
                process.join()


def _local_rank(
    started: Any, store: str, rank: int, count: int, work: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    from metastep.core.distributed import destroy_process_group, init_local_process_group
    from metastep.lab.runtime.executor import leave_signals_to_parent

    leave_signals_to_parent()
    started.send_bytes(b"started")
    init_local_process_group("gloo", store, rank, count)
    try:
        work(*arguments)
    finally:
        destroy_process_group()
