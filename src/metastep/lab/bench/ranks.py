"""A run on several ranks: rank 0 writes the folder, and each rank trains on its rows of every batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metastep.core.distributed import broadcast_object, current_rank, gather_objects, mean_over_ranks, rank_count
from metastep.lab.bench.trainer import Stream
from metastep.lab.tasks.batches import Batch


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
            f"{rank_count()}; go on with torchrun --nproc-per-node {len(parts)} (or as many on several machines)."
        )
    return {**state, **parts[current_rank()]}


def on_cpu(value: Any) -> Any:
    """A state with its tensors on the CPU, to be sent."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: on_cpu(part) for key, part in value.items()}
    return [on_cpu(part) for part in value] if isinstance(value, list) else value


class Rows:
    """This rank's rows of every batch of a stream that all ranks read alike.

    The rows are dealt out as evenly as they go. ``weight`` times their mean loss, averaged over the ranks, is the
    mean loss of the whole batch, whatever its size.
    """

    def __init__(self, stream: Stream[Batch]) -> None:
        self._stream = stream
        self.weight = 1.0  # of the batch given last

    def __next__(self) -> Batch:
        batch = next(self._stream)
        count, rank, rows = rank_count(), current_rank(), len(batch.inputs)
        begin, end = rank * rows // count, (rank + 1) * rows // count
        self.weight = (end - begin) * count / rows
        here = slice(begin, max(end, begin + 1))  # a row of no weight, where there are fewer rows than ranks
        return replace(batch, inputs=batch.inputs[here], targets=batch.targets[here])

    def weighted(self, loss: Tensor) -> Tensor:
        """The loss with the weight of the batch given last."""
        return loss if self.weight == 1.0 else loss * self.weight

    def state_dict(self) -> dict[str, Any]:
        """The stream's."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from :meth:`state_dict`."""
        self._stream.load_state_dict(state)


def rows_here(stream: Stream[Batch]) -> Stream[Batch]:
    """This rank's rows of a stream; with one rank, the stream itself."""
    return stream if rank_count() == 1 else Rows(stream)
