"""One rate for the network, many parameter groups: their ratios are kept, and rates are written where they live."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ParamGroups:
    """Writes a rate into an optimizer's groups, each times its ratio to the reference group.

    The reference is the first group whose initial rate is not zero; a group that joins later keeps the ratio of the
    rate it came with. The initial rate is ``lr``, or, where a torch scheduler has changed that, what it started from
    (``initial_lr``; ``max_lr`` of OneCycleLR). Tensor rates are written in place, numbers are replaced.

    Args:
        optimizer: whose groups.
        joins_at_present_rates: whether the rate of a group that joins is to be seen beside the rates that the others
            have then, unless it is the rate that the optimizer was made with.

    Attributes:
        bases: the groups' initial rates.
        reference: that of the reference group (0 if every group's is).
        ratios: of each group's to it.

    Raises:
        ValueError: for a group without a rate: no number >= 0.
    """

    def __init__(self, optimizer: Optimizer, *, joins_at_present_rates: bool = False) -> None:
        self.optimizer, self._joins_at_present_rates = optimizer, joins_at_present_rates
        self.reference = 0.0
        self.set_bases([])

    def adopt_new_groups(self) -> None:
        """Take the rates of groups that were added since the last call as their initial ones."""
        if len(self.bases) != len(self.optimizer.param_groups):
            self.set_bases(self.bases)

    def set_bases(self, bases: Sequence[float]) -> None:
        """Set the initial rates of the first groups; the others' are what they have now."""
        groups = self.optimizer.param_groups
        self.bases = list(bases)
        for place in range(len(bases), len(groups)):
            base = self._initial_rate(groups, place)
            if bases and self._joins_at_present_rates and self.reference:
                base *= self._of_present(groups, base)
            self.bases.append(base)
        self.reference = next((base for base in self.bases if base != 0), 0.0)
        self.ratios = [base / self.reference if self.reference else 1.0 for base in self.bases]

    def _of_present(self, groups: list[dict[str, Any]], rate: float) -> float:
        """What a rate is to be multiplied by, so that its ratio to the others is the present one."""
        made = self.optimizer.defaults.get("lr")
        if isinstance(made, float | int | Tensor) and math.isclose(float(made), rate, rel_tol=1e-6):
            return 1.0
        present = float(groups[self.bases.index(self.reference)]["lr"])
        return self.reference / present if present > 0 else 1.0

    def _initial_rate(self, groups: list[dict[str, Any]], place: int) -> float:
        group = groups[place]
        lr = group.get("lr")
        if isinstance(lr, Tensor):  # torch gives its default tensor to every group without a rate of its own
            for earlier in range(place):
                if groups[earlier]["lr"] is lr:
                    return self.bases[earlier]
        try:
            rate = float(lr)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 <= rate < math.inf:
            raise ValueError(
                f"lr of the optimizer's group {place} must be a number >= 0, got {lr!r}; an optimizer that sets its "
                "rate by itself needs no schedule, any other is to be given lr."
            )
        before = float(group.get("max_lr" if {"max_lr", "min_lr"} <= group.keys() else "initial_lr") or rate)
        if not math.isclose(before, rate, rel_tol=1e-6):
            warnings.warn(
                f"lr of the optimizer's group {place} is {rate:g}, which a scheduler has set: {before:g}, from where "
                "it started, is taken for the initial rate; make LearnedLR without a scheduler.",
                stacklevel=2,
            )
        return before

    def device(self) -> torch.device:
        """Where rates are computed: the accelerator on which a tensor rate lives, otherwise the CPU."""
        rates = (group["lr"] for group in self.optimizer.param_groups)
        on_device = (lr.device for lr in rates if isinstance(lr, Tensor) and lr.device.type != "cpu")
        return next(on_device, torch.device("cpu"))

    def parameter_device(self) -> torch.device:
        """Where the parameters live: that of the first."""
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        return next((parameter.device for parameter in parameters), torch.device("cpu"))

    def _of_each(self, rate: float | Tensor) -> list[float | Tensor]:
        """The rate of each group: ``rate`` times the group's ratio."""
        self.adopt_new_groups()
        return [rate * ratio for ratio in self.ratios]

    def write(self, rate: float | Tensor) -> None:
        """Give each group ``rate`` (of the reference group; not negative) times its ratio."""
        if not isinstance(rate, Tensor):
            self._write_number(rate)
            return
        values: list[Any] = self._of_each(rate)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if all(isinstance(one, Tensor) for one in (*rates, *values)):
            torch._foreach_copy_(rates, values)  # on a device many copies are one kernel
            return
        for group, lr, value in zip(self.optimizer.param_groups, rates, values, strict=True):
            if not isinstance(lr, Tensor):
                group["lr"] = float(value)
            else:
                lr.fill_(value)

    def _write_number(self, rate: float) -> None:
        """The same for a rate on the host, as in every step of a closed form."""
        self.adopt_new_groups()
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            lr = group["lr"]
            if isinstance(lr, Tensor):
                lr.fill_(rate * ratio)
            else:
                group["lr"] = float(rate * ratio)

    def as_written(self, rate: float | Tensor) -> list[float]:
        """The numbers that :meth:`write` puts into the groups for this rate (reads the device, if it is there)."""
        numbers = []
        for group, value in zip(self.optimizer.param_groups, self._of_each(rate), strict=True):
            lr = group["lr"]
            numbers.append(float(torch.as_tensor(value, dtype=lr.dtype) if isinstance(lr, Tensor) else value))
        return numbers

    def read(self) -> list[float]:
        """The groups' rates as they are now, as fresh numbers (reads the device, if tensors are there)."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def were_decayed(self) -> bool:
        """True if the optimizer has taken steps and its first rate is no longer the one it was made with."""
        made, now = self.optimizer.defaults.get("lr"), self.bases[0] if self.bases else None
        if not self.optimizer.state or now is None or not isinstance(made, float | int | Tensor):
            return False
        return not any(math.isclose(float(made), base, rel_tol=1e-6) for base in self.bases)

    def all_zero(self) -> bool:
        """True if every group's rate is a zero on the host; tensors on an accelerator are not looked at."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return all((lr.device.type == "cpu" if isinstance(lr, Tensor) else True) and lr == 0 for lr in rates)
