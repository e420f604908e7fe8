"""What a process knows of the torchrun that started it, and the process group of its ranks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


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
    """Within, the processes of torchrun form one process group, each with the device of its local rank."""
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
