"""What a call of ``optimizer.step`` is: a real step, an empty one, a skipped one, or one that runs a closure first."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metastep.schedules.groups import GroupRates

#: Positional and keyword arguments of ``optimizer.step``; the optimizer itself is the first.
StepArguments = tuple[tuple[Any, ...], dict[str, Any]]


class ObservedClosure:
    """A step's closure that tells of its evaluations: the first sets the rate, later ones (a line search) do not.

    Args:
        closure: computes and returns the loss.
        first: called with the loss of the first evaluation, before the optimizer goes on.
        later: called after every other one.
    """

    def __init__(self, closure: Callable[[], Any], first: Callable[[Any], None], later: Callable[[], None]) -> None:
        self._closure, self._first, self._later = closure, first, later
        self._evaluated = False
        self._ahead: list[Any] = []

    def __call__(self) -> Any:
        """Evaluate the closure, or hand out what was evaluated ahead."""
        if self._ahead:
            return self._ahead.pop()
        loss = self._closure()
        if self._evaluated:
            self._later()
        else:
            self._evaluated = True
            self._first(loss)
        return loss

    def put_into(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepArguments:
        """Return the arguments of the step with this closure in place of its own."""
        if isinstance(optimizer, torch.optim.LBFGS):  # it reads its rate before it calls the closure
            with torch.enable_grad():
                self._ahead.append(self())
        if "closure" in kwargs:
            return args, {**kwargs, "closure": self}
        return (args[0], self, *args[2:]), kwargs


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """The closure that a step was given, if any."""
    return kwargs["closure"] if "closure" in kwargs else args[1] if len(args) > 1 else None


def is_initialisation(groups: GroupRates, last_rate: float | Tensor | None) -> bool:
    """True in the empty step at rate zero by which torch.distributed.checkpoint makes an optimizer create its state.

    Args:
        groups: the optimizer's.
        last_rate: the rate last written; a zero of our own means nothing.
    """
    if not groups.all_zero():
        return False
    if groups.reference == 0:  # the rates were zero from the start: only the gradients tell
        parameters = [p for group in groups.optimizer.param_groups for p in group["params"]]
        return not any(p.grad is not None and p.grad.any() for p in parameters)
    if isinstance(last_rate, Tensor) and last_rate.device.type == "cpu":
        return bool(last_rate.any())
    return isinstance(last_rate, Tensor) or last_rate != 0


def is_skipped_by_scaler(optimizer: Optimizer) -> bool:
    """True if a fused optimizer under GradScaler will skip this step on the device (which is asked)."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and float(found_inf) != 0
