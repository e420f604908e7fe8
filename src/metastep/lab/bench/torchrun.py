"""The processes that torchrun starts: which one this is, and how they meet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def under_torchrun() -> bool:
    """True in a process that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted() -> bool:
    """True if torchrun started it again, after another had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_first_process() -> bool:
    """True in the process that writes; asked before the processes have met as well."""
    return os.environ.get("RANK", "0") == "0" if under_torchrun() else True


@contextmanager
def met(device: str) -> Iterator[None]:
    """Within, the processes of torchrun are one run, each with the device of its place on the machine."""
    if not under_torchrun() or os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    import torch

    from metastep.core.distributed import join, leave

    on_cuda = device == "cuda" and torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    join("cpu:gloo,cuda:nccl" if on_cuda else "gloo", f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")
    try:
        yield
    finally:
        leave()
