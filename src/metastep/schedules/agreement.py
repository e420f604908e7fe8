"""How the ranks of a run come to one rate: they start from one schedule and read the mean of all their losses."""

import torch

from metastep.core.distributed import (
    Ranks,
    broadcast_tensors,
    check_ranks,
    mean_over_ranks,
    rank_count,
    sum_over_ranks,
)
from metastep.schedules.base import Schedule
from metastep.schedules.groups import GroupRates
from metastep.schedules.scaling import RunScale
from metastep.schedules.window import LossWindow


class Agreement:
    """What the LearnedLRs of several ranks tell each other; nothing if there is one rank.

    Args:
        process_group: whose ranks; None: all that there are; False: this one alone.
        groups: the optimizer's, on the device of whose parameters messages are sent.

    Raises:
        ValueError: if it is no process group, None or False.
    """

    def __init__(self, process_group: Ranks, groups: GroupRates) -> None:
        check_ranks("process_group", process_group)
        self.process_group = process_group
        self.groups = groups
        self.started = False  # from one schedule, all ranks

    @property
    def ranks(self) -> int:
        """How many."""
        return rank_count(self.process_group)

    def reach(self, schedule: Schedule, scale: RunScale, window: LossWindow) -> None:
        """Put the losses of all ranks into the window; the first time, the first rank's schedule and scale on all."""
        if not schedule.reads_loss or self.ranks == 1:
            return
        if not self.started:
            broadcast_tensors([*schedule.parameters(), *schedule.buffers()], self.process_group)
            schedule.weights_changed()
            scale.share(self._from_first)
            (window.last,) = self._from_first([window.last])
            self.started = True
        home = self.groups.parameter_device()
        window.share(lambda sums: sum_over_ranks(sums, self.process_group, home))

    def mean(self, number: float) -> float:
        """The mean over ranks of a number on the host."""
        mine = torch.tensor(number, dtype=torch.float64)
        return float(mean_over_ranks(mine, self.process_group, self.groups.parameter_device()))

    def _from_first(self, numbers: list[float]) -> list[float]:
        shared = torch.tensor(numbers, dtype=torch.float64)
        broadcast_tensors([shared], self.process_group)
        return [float(number) for number in shared]
