"""Meta-training on several tasks: each rank trains its own, and all learn one schedule by the mean meta-gradient."""

import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from metastep.core.distributed import Ranks, broadcast_tensors, check_ranks, rank_count, sum_over_ranks
from metastep.schedules.base import LearnedSchedule, Schedule

#: The gradient of a validation loss with respect to a schedule: a tensor for each of its weights that learn, None for
#: one on which the rates did not depend.
MetaGradient = Sequence[Tensor | None]


class SharedSchedule:
    r"""One schedule on several ranks, each of which trains a task of its own.

    In every outer step the ranks average their meta-gradients in one all-reduce,

    .. math:: \frac{dL}{d\phi} = \frac1T \sum_{t=1}^{T} \frac{dL_t}{d\phi},

    with :math:`L_t` the validation loss of task t after its own step at its own rate. Each rank then takes the same
    step of its own copy of the meta-optimizer, so the weights stay the same on all ranks to the last bit. A task whose
    meta-gradient is not finite is not counted in T; if none is, nothing is learned.

    Give it to the :class:`metastep.MetaLearner` of every rank as ``shared``. All ranks must come to the same number of
    outer steps: the same ``every``, and as many steps. The :class:`metastep.LearnedLR` needs ``process_group=False``,
    because the losses of different tasks are not averaged.

    Args:
        schedule: this rank's; it gets rank 0's weights and buffers.
        ranks: the process group; None: all ranks.
        should_stop: asked in every outer step. If it is True on one rank, :attr:`stopping` is True on all of them after
            that step, so that all can stop at the same one.

    Attributes:
        outer_steps: how many outer steps this rank has taken part in.
        stopping: whether a rank has asked all to stop.

    Raises:
        ValueError: if ``ranks`` is no process group, or the schedules of the ranks differ in shape.

    Example:
        >>> from metastep.schedules import MLRSNet
        >>> shared = SharedSchedule(MLRSNet(hidden_size=2))
        >>> gradient = [torch.ones_like(weight) for weight in shared.schedule.parameters()]
        >>> torch.equal(shared.mean(gradient)[0], gradient[0])  # one rank: its own
        True
    """

    def __init__(
        self, schedule: Schedule, ranks: Ranks = None, *, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        check_ranks("ranks", ranks)
        self.ranks, self.should_stop = ranks, should_stop
        self.outer_steps, self.stopping = 0, False
        self.schedule = schedule
        self._check_shapes()
        broadcast_tensors([*schedule.parameters(), *schedule.buffers()], ranks)
        if isinstance(schedule, LearnedSchedule):
            schedule.weights_changed()

    def _check_shapes(self) -> None:
        """Raise on all ranks unless all have the same number of weights, of the same shapes in the same order."""
        shapes = [tuple(weight.shape) for weight in self._weights()]
        code = zlib.crc32(repr(shapes).encode()) % (1 << 20)  # whose square float64 holds exactly
        total, squares = sum_over_ranks(torch.tensor([code, code**2], dtype=torch.float64), self.ranks).tolist()
        if total**2 != rank_count(self.ranks) * squares:  # equal only if all codes are
            raise ValueError(
                "tasks must learn schedules of one shape, the ranks have different ones; the published networks for "
                "text and for images differ: learn them apart, or give all the same configuration."
            )

    def mean(self, gradient: MetaGradient | None, *, stop: bool = False) -> list[Tensor | None] | None:
        """Average this outer step's meta-gradients over the ranks: one all-reduce, summed in float64.

        Args:
            gradient: this task's; None if it has none that is finite.
            stop: ask all ranks to stop, whatever ``should_stop`` says.

        Returns:
            The mean, the same on all ranks to the last bit; None if no task had one.

        Raises:
            ConnectionError: if another rank is lost.
        """
        weights = self._weights()
        parts = [None] * len(weights) if gradient is None else gradient
        like = [torch.zeros_like(weight) if part is None else part for part, weight in zip(parts, weights, strict=True)]
        flat = torch.cat([part.detach().reshape(-1).double() for part in like])
        message = torch.cat([flat, flat.new_tensor([gradient is not None, stop or self.should_stop()])])
        try:
            total = sum_over_ranks(message, self.ranks).to(message.device)
        except RuntimeError as error:
            raise ConnectionError("another rank of this run is lost (killed, or out of memory?).") from error
        self.outer_steps += 1
        count, stopping = total[-2:].tolist()
        self.stopping = self.stopping or stopping > 0
        if count == 0:
            return None
        means = torch.split(total[:-2] / count, [weight.numel() for weight in weights])
        return [mean.reshape(weight.shape).to(weight.dtype) for mean, weight in zip(means, weights, strict=True)]

    def _weights(self) -> list[nn.Parameter]:
        return [weight for weight in self.schedule.parameters() if weight.requires_grad]
