"""One rate for the network, many parameter groups: their ratios are kept, and rates are written where they live."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer


class GroupRates:
    """Writes a rate into an optimizer's groups, each times its ratio to the reference group.

    The reference is the first group whose initial rate is not zero; a group that joins later keeps the ratio of the
    rate it came with. Tensor rates are written in place, numbers are replaced.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.bases: list[float] = []
        self._ratios: list[float] = []
        self.adopt_new_groups()

    @property
    def reference(self) -> float:
        """Initial rate of the reference group (0 if every group's is)."""
        return next((base for base in self.bases if base != 0), 0.0)

    def adopt_new_groups(self) -> None:
        """Take the rates of groups that were added since the last call as their initial ones."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self.bases):
            self.set_bases(self.bases + [float(group["lr"]) for group in groups[len(self.bases) :]])

    def set_bases(self, bases: Sequence[float]) -> None:
        """Set the groups' initial rates."""
        self.bases = list(bases)
        reference = self.reference
        self._ratios = [base / reference if reference else 1.0 for base in self.bases]

    def device(self) -> torch.device:
        """Where rates are computed: the accelerator on which a tensor rate lives, otherwise the CPU."""
        rates = (group["lr"] for group in self.optimizer.param_groups)
        on_device = (lr.device for lr in rates if isinstance(lr, Tensor) and lr.device.type != "cpu")
        return next(on_device, torch.device("cpu"))

    def write(self, rate: float | Tensor) -> None:
        """Give each group ``rate`` (of the reference group; not negative) times its ratio."""
        self.adopt_new_groups()
        for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
            value, lr = rate * ratio, group["lr"]
            if not isinstance(lr, Tensor):
                group["lr"] = float(value)
            elif isinstance(value, Tensor):
                lr.copy_(value)
            else:
                lr.fill_(value)

    def read(self) -> list[float]:
        """The groups' rates as they are now, as fresh numbers (reads the device, if tensors are there)."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def all_zero(self) -> bool:
        """True if every group's rate is a zero on the host; tensors on an accelerator are not looked at."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return all((lr.device.type == "cpu" if isinstance(lr, Tensor) else True) and lr == 0 for lr in rates)
