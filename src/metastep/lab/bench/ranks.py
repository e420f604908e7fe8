"""A run on several ranks: rank 0 writes the folder, and each rank trains on its rows of every batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metastep.core.distributed import broadcast_object, current_rank, gather_objects, mean_over_ranks, rank_count


def any_rank(flag: bool) -> bool:
    """True on all ranks if it is on one; an all-reduce of 8 bytes."""
    return flag if rank_count() == 1 else mean_of_ranks(float(flag)) > 0


def mean_of_ranks(number: float) -> float:
    """The mean over the ranks."""
    return float(mean_over_ranks(torch.tensor(number, dtype=torch.float64)))


def rank_zero_decides(question: Callable[[], bool]) -> bool:
    """Rank 0's answer, on all ranks."""
    return bool(broadcast_object(question() if current_rank() == 0 else None))


def gather_rank_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a trainer's state that differ between ranks, of all ranks, on rank 0; an empty list elsewhere."""
    return gather_objects(on_cpu({key: state[key] for key in ("batches", "validation_batches", "rng", "device_rng")}))


def with_rank_state(state: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank 0's state of a trainer, with this rank's own part.

    Raises:
        ValueError: if there were more, or fewer, processes.
    """
    if len(parts) != rank_count():
        raise ValueError(
            f"the checkpoint is of a run on {len(parts)} process{'es' * (len(parts) > 1)}, this is one on "
            f"{rank_count()}; resume with torchrun --nproc-per-node {len(parts)} (or as many on several machines)."
        )
    return {**state, **parts[current_rank()]}


def on_cpu(value: Any) -> Any:
    """A state with its tensors on the CPU, to be sent."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: on_cpu(part) for key, part in value.items()}
    return [on_cpu(part) for part in value] if isinstance(value, list) else value
