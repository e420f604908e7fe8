"""A run on several processes: the first writes the folder, and each trains on its rows of every batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metastep.core.distributed import from_first, gathered, mean_over_ranks, rank_count, rank_here
from metastep.lab.bench.trainer import Stream
from metastep.lab.tasks.batches import Batch


def any_process(flag: bool) -> bool:
    """True on all processes if it is on one; a message of 8 bytes."""
    return flag if rank_count() == 1 else mean_of_all(float(flag)) > 0


def mean_of_all(number: float) -> float:
    """The mean over the processes."""
    return float(mean_over_ranks(torch.tensor(number, dtype=torch.float64)))


def as_the_first(question: Callable[[], bool]) -> bool:
    """The first process's answer, on all."""
    return bool(from_first(question() if rank_here() == 0 else None))


def own_parts(state: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process has of its own in a trainer's state, of all of them; on others than the first, nothing."""
    return gathered(on_cpu({key: state[key] for key in ("batches", "validation_batches", "rng", "device_rng")}))


def with_own_part(state: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The first process's state of a trainer, with this process's own part.

    Raises:
        ValueError: if there were more, or fewer, processes.
    """
    if len(parts) != rank_count():
        raise ValueError(
            f"the checkpoint is of a run on {len(parts)} process{'es' * (len(parts) > 1)}, this is one on "
            f"{rank_count()}; go on with torchrun --nproc-per-node {len(parts)} (or as many on several machines)."
        )
    return {**state, **parts[rank_here()]}


def on_cpu(value: Any) -> Any:
    """A state with its tensors on the CPU, to be sent."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: on_cpu(part) for key, part in value.items()}
    return [on_cpu(part) for part in value] if isinstance(value, list) else value


class Rows:
    """This process's rows of every batch of a stream that all processes read alike.

    The rows are dealt out as evenly as they go. ``weight`` times their mean loss, averaged over the processes, is the
    mean loss of the whole batch, whatever its size.
    """

    def __init__(self, stream: Stream[Batch]) -> None:
        self._stream = stream
        self.weight = 1.0  # of the batch given last

    def __next__(self) -> Batch:
        batch = next(self._stream)
        count, rank, rows = rank_count(), rank_here(), len(batch.inputs)
        begin, end = rank * rows // count, (rank + 1) * rows // count
        self.weight = (end - begin) * count / rows
        here = slice(begin, max(end, begin + 1))  # a row of no weight, where there are fewer rows than processes
        return replace(batch, inputs=batch.inputs[here], targets=batch.targets[here])

    def weighted(self, loss: Tensor) -> Tensor:
        """The loss with the weight of the batch given last."""
        return loss if self.weight == 1.0 else loss * self.weight

    def state_dict(self) -> dict[str, Any]:
        """The stream's."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from there."""
        self._stream.load_state_dict(state)


def rows_here(stream: Stream[Batch]) -> Stream[Batch]:
    """This process's rows of a stream; the stream itself where there is no other process."""
    return stream if rank_count() == 1 else Rows(stream)
