"""Mistakes that only a run shows: another scheduler beside it, another length than was said, a rate never annealed."""

import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from metastep.schedules.base import Schedule
from metastep.schedules.calibrated import Calibrated
from metastep.schedules.closed_form import ClosedForm, OverHorizon

#: A run of fewer steps is a trial; one that ends after this share of its horizon has come to its end.
_TRIAL, _NEARLY = 10, 0.9
#: An end matters, if the rate was to fall further by this share of its peak.
_MATTERS = 0.05
#: So many steps of a schedule are looked at for its peak.
_LOOKED_AT = 1000
#: A rate that was changed once may be a checkpoint's; after so many changes somebody else sets it, too.
_CHANGES = 2


class RunWarnings:
    """Says what is wrong with a run and what to do, each thing once."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._changes = 0

    def _once(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(text, stacklevel=4)

    def forget(self) -> None:
        """The rates may now be anything: a checkpoint has set them."""
        self._changes = 0

    def before_step(self, optimizer: Optimizer, steps: int, *, unknown: bool) -> None:
        """Warn if somebody else sets the rate between the steps; called where it is not the one that was written.

        Args:
            optimizer: whose.
            steps: that are done.
            unknown: whether it is not known which rate was written.
        """
        if unknown:
            rate: Any = optimizer.param_groups[0]["lr"] if steps == 1 and optimizer.param_groups else None
            if not isinstance(rate, Tensor) or not is_wrapped(optimizer):  # of a tensor, which is not read
                return
        else:
            self._changes += 1
            if self._changes < _CHANGES and not is_wrapped(optimizer):
                return
        self._once(
            "scheduler",
            "something else changes the optimizer's rate between the steps, perhaps a torch.optim.lr_scheduler; it has "
            "no effect, because LearnedLR sets the rate in each step: remove the other scheduler and its step().",
        )

    def beyond(self, total_steps: int) -> None:
        """Warn of a step that comes after the horizon."""
        self._once(
            "beyond",
            f"step {total_steps + 1} is beyond total_steps={total_steps:,}: the rate stays at its last; give the real "
            "length, or call extend(total_steps) before a run goes on.",
        )

    def end(self, schedule: Schedule, steps: int, cooled: bool) -> None:
        """Warn if a run ends here, and its rate has not come down."""
        if (text := unfinished(schedule, steps, cooled)) is not None:
            self._once("end", text)


def is_wrapped(optimizer: Optimizer) -> bool:
    """Whether one of torch's schedulers was made for this optimizer."""
    return hasattr(optimizer.step, "_wrapped_by_lr_sched")


def horizon_of(schedule: Schedule) -> int | None:
    """The step after which a schedule's rate stays where it is; None if there is none."""
    return schedule.total_steps if isinstance(schedule, Calibrated | OverHorizon) else None


def ignores_loss(schedule: Schedule) -> bool:
    """Whether a schedule is known not to look at the loss: a closed form, as it is made."""
    kind = type(schedule)
    unchanged = kind.forward is ClosedForm.forward and kind.query is ClosedForm.query
    return isinstance(schedule, ClosedForm) and unchanged


def unfinished(schedule: Schedule, steps: int, cooled: bool) -> str | None:
    """What is wrong with a run that ends after so many steps: its rate is still high; None if nothing is."""
    if steps < _TRIAL or cooled:
        return None
    total = horizon_of(schedule)
    if total is None or not isinstance(schedule, Calibrated | OverHorizon):
        if not isinstance(schedule, Calibrated):
            return None
        return (
            f"the run ended after {steps:,} steps without total_steps and without cool(): its rate never went down to "
            "0, which costs a part of the result; give total_steps, or call lr.cool(steps) before the end."
        )
    if steps >= _NEARLY * total:
        return None
    peak = max(schedule.factor_at(step) for step in range(0, total, max(1, total // _LOOKED_AT)))
    now, last = schedule.factor_at(steps - 1), schedule.factor_at(total - 1)
    if now - last <= _MATTERS * peak:
        return None
    return (
        f"total_steps={total:,}, but the run ended after {steps:,}: the rate was still at {now / peak:.0%} of its "
        "peak; give the real length, or leave total_steps out and call lr.cool(steps) before the end."
    )
