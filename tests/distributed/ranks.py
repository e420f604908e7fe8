"""Several processes on this machine, and what they send each other."""

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a module's function returns (tensors, numbers) in each of ``count`` processes of a gloo group."""
    multiprocessing.set_forkserver_preload(["torch.distributed.checkpoint", "metastep.optim", "metastep.meta"])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank, (count, folder, function, arguments), nprocs=count, start_method="forkserver"
        )
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(count)]


def _rank(rank: int, count: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count, timeout=timedelta(seconds=100)
    )
    try:
        torch.save(function(*arguments), Path(folder, f"{rank}.pt"))
        dist.barrier()
    finally:
        dist.destroy_process_group()


class Traffic(TorchDispatchMode):
    """Within, notes the name and the bytes of every collective that this rank takes part in."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name.startswith(("c10d.", "_c10d_functional.")) and "wait" not in name:
            tensors = [arg for arg in torch.utils._pytree.tree_leaves(args) if isinstance(arg, torch.Tensor)]
            self.messages.append((name.split(".")[1].strip("_"), sum(t.numel() * t.element_size() for t in tensors)))
        return func(*args, **(kwargs or {}))
