"""A learned schedule's query on a CUDA device as one graph: some hundred small kernels that are launched together."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastep.schedules.base import Loss, Rate, Schedule, State

#: Calls of one kind before the query is recorded: libraries set themselves up in the first ones.
_EAGER_CALLS = 3


class GraphedQuery:
    """Asks a schedule; on a CUDA device it records what the schedule does and replays that from then on.

    A query is all launches: eager torch takes milliseconds for what the device does in microseconds. The kernels are
    the same ones, so the results are, too. The schedule is asked as usual on other devices, by a loss that is a number,
    while gradients are on, and within a graph that the caller records. A query of another kind (another schedule or
    horizon, or replaced weights) is recorded anew; weights that are written in place are not
    another kind. Recording waits for the device once.
    """

    def __init__(self) -> None:
        self._kind: tuple[Any, ...] = ()
        self._calls = 0
        self._recorded: _Recorded | None = None

    def __call__(self, schedule: Schedule, loss: Loss, state: State) -> tuple[Rate, State]:
        """What ``schedule(loss, state)`` returns."""
        inputs = loss, state
        replays = _all_on_cuda(inputs) and not torch.is_grad_enabled() and not torch.cuda.is_current_stream_capturing()
        weights = [weight.data_ptr() for weight in schedule.parameters()] if replays else []
        if weights:  # without weights it is a closed form, of a few kernels
            forms = [(part.shape, part.dtype) for part in inputs if isinstance(part, Tensor)]
            kind = (schedule, *weights, *forms)  # the schedule is held, so that no other can take its place
            if kind != self._kind:
                self._kind, self._calls, self._recorded = kind, 0, None
            self._calls += 1
            if self._calls > _EAGER_CALLS:
                if self._recorded is None:
                    self._recorded = _Recorded(schedule, torch.as_tensor(loss), state)
                return self._recorded.replay(list(inputs))
        rate, state = schedule(loss, state)
        return rate, state

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a graph belongs to its process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


class _Recorded:
    """The graph of one kind of query, with the tensors that it reads and writes."""

    def __init__(self, schedule: Schedule, loss: Tensor, state: Tensor) -> None:
        self._inputs = [loss.clone(), state.clone()]
        self._graph = torch.cuda.CUDAGraph()
        with (
            _no_collection(),
            torch.cuda.device(state.device),
            torch.cuda.graph(self._graph, capture_error_mode="thread_local"),
        ):
            self._outputs = schedule(*self._inputs)

    def replay(self, inputs: list[Any]) -> tuple[Rate, State]:
        """The outputs for these inputs, as fresh tensors."""
        torch._foreach_copy_(self._inputs, inputs)
        self._graph.replay()
        rate, state = self._outputs
        return rate.clone(), state.clone()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Within, no garbage is collected: a graph that dies while another is recorded spoils the recording."""
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _all_on_cuda(inputs: tuple[Any, ...]) -> bool:
    return all(isinstance(part, Tensor) and part.is_cuda for part in inputs)
