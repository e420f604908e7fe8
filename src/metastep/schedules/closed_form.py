"""Closed-form schedules: a factor on the base rate that depends on the step alone.

Steps count from 0: ``factor_at(0)`` is the factor of the very first optimizer step, which is the rate a torch
scheduler gives before its first ``step()``. Everything is a Python float; no tensor is made.
"""

import inspect
import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

from metastep.schedules.arguments import between, require, whole
from metastep.schedules.base import Loss, Schedule

#: What to do instead of a gamma above 1.
_GROWTH = "for a rate that grows use OneCycle or WarmupStableDecay"


class ClosedForm(Schedule):
    """Multiplies each parameter group's own initial rate by a factor that depends on the step alone.

        rate_t = initial rate of the group * factor_at(t),        t = 0, 1, 2, ...

    The state is the number of steps done, an int: a resumed run continues as if it had never stopped.
    The arguments can be read as attributes and are fixed at construction.
    """

    relative = True
    needs_loss = False

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def factor_at(self, step: int) -> float:
        """The factor of optimizer step ``step``; the first one is step 0."""

    def init_state(self) -> int:
        """No step is done: 0."""
        return 0

    def forward(self, loss: Loss, state: int) -> tuple[float, int]:
        """Return ``(factor_at(state), state + 1)``; the loss is not looked at."""
        return self.factor_at(state), state + 1

    def query(self, loss: float, state: int) -> tuple[float, int]:
        """:meth:`forward` without the cost of a module call."""
        return self.factor_at(state), state + 1

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types, that construct this schedule again."""
        arguments = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}

    def extra_repr(self) -> str:
        """The constructor's arguments, so that the repr can be typed in again."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config().items())

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ and name in inspect.signature(type(self)).parameters:
            raise AttributeError(f"{name} is fixed at construction; build a new {type(self).__name__}.")
        super().__setattr__(name, value)


class OverHorizon(ClosedForm):
    """A closed form over ``total_steps`` steps, 0 ... total_steps - 1; afterwards the last factor stays."""

    total_steps: int | None

    def __init__(self, total_steps: int | None) -> None:
        super().__init__()
        self.total_steps = None if total_steps is None else whole("total_steps", total_steps, 1)

    @abstractmethod
    def factor_within(self, step: int, total_steps: int) -> float:
        """The factor of ``step``, 0 <= step < total_steps."""

    def factor_at(self, step: int) -> float:
        """The factor of optimizer step ``step``; from step ``total_steps`` on, that of the last step.

        Raises:
            ValueError: if no horizon was given.
        """
        if self.total_steps is None:
            raise ValueError(
                f"total_steps must be known before {type(self).__name__} is used, got None; "
                "give it at construction, or use with_total_steps(n)."
            )
        return self.factor_within(min(step, self.total_steps - 1), self.total_steps)

    def with_total_steps(self, total_steps: int) -> Self:
        """A copy over ``total_steps`` steps; this schedule itself if it has a horizon already."""
        if self.total_steps is not None:
            return self
        return self.extended(total_steps)

    def extended(self, total_steps: int) -> Self:
        """A copy over ``total_steps`` steps, whatever the horizon was."""
        return type(self)(**{**self.config(), "total_steps": total_steps})


class Constant(ClosedForm):
    """Keeps the base rate: factor_t = 1.

    Example:
        >>> Constant().factor_at(10)
        1.0
    """

    def factor_at(self, step: int) -> float:
        """1, at every step."""
        return 1.0


class MultiStep(ClosedForm):
    """Multiplies the rate by ``gamma`` at every milestone.

        factor_t = gamma ** (number of milestones <= t)

    Args:
        milestones: steps, increasing, each >= 1.
        gamma: in (0, 1].

    Raises:
        ValueError: for an argument out of its range.

    Source: ``torch.optim.lr_scheduler.MultiStepLR``, the same values.

    Example:
        >>> drops = MultiStep([100, 150], gamma=0.5)
        >>> [drops.factor_at(step) for step in (0, 99, 100, 150)]
        [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(self, milestones: Sequence[int], gamma: float = 0.1) -> None:
        super().__init__()
        self.milestones = tuple(whole("milestones", milestone, 1) for milestone in milestones)
        increasing = all(earlier < later for earlier, later in pairwise(self.milestones))
        require(increasing, "milestones", "increasing", list(milestones), "list each step once, in order")
        self.gamma = between("gamma", gamma, 0.0, 1.0, _GROWTH, open_below=True)

    def factor_at(self, step: int) -> float:
        """``gamma`` to the power of the milestones reached."""
        return self.gamma ** bisect_right(self.milestones, step)


class Exponential(ClosedForm):
    """Multiplies the rate by ``gamma`` at every step: factor_t = gamma ** t.

    Args:
        gamma: in (0, 1].

    Raises:
        ValueError: for an argument out of its range.

    Source: ``torch.optim.lr_scheduler.ExponentialLR``, the same values.

    Example:
        >>> Exponential(gamma=0.5).factor_at(3)
        0.125
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = between("gamma", gamma, 0.0, 1.0, _GROWTH, open_below=True)

    def factor_at(self, step: int) -> float:
        """``gamma ** step``."""
        return self.gamma**step


class Staircase(OverHorizon):
    """Keeps one height per stretch of the run; the heights may go up and down.

        factor_t = factors[number of k with round(boundaries[k] T) <= t],        T = total_steps

    The published MLR-SNet snapshots behave like the staircase (0.729, 0.036, 0.018) over equal thirds: it is
    the control that a learned schedule has to beat.

    Args:
        factors: heights, multiples > 0 of the base rate, at least one.
        boundaries: where the next height begins, as fractions of the run: increasing, in (0, 1), one fewer
            than ``factors``; None: equal stretches.
        total_steps: length T of the run in optimizer steps; None: bound later.

    Raises:
        ValueError: for an argument out of its range.

    Example:
        >>> stairs = Staircase((1.0, 0.1, 0.01), boundaries=(0.5, 0.75), total_steps=200)
        >>> [stairs.factor_at(step) for step in (0, 99, 100, 150, 1000)]
        [1.0, 1.0, 0.1, 0.01, 0.01]
    """

    def __init__(
        self,
        factors: Sequence[float],
        boundaries: Sequence[float] | None = None,
        total_steps: int | None = None,
    ) -> None:
        super().__init__(total_steps)
        positive = len(factors) > 0 and all(0.0 < factor < math.inf for factor in factors)
        require(positive, "factors", "one or more finite numbers > 0", factors, "they multiply the base rate")
        if boundaries is None:
            boundaries = [k / len(factors) for k in range(1, len(factors))]
        edges = (0.0, *boundaries, 1.0)
        fits = len(boundaries) == len(factors) - 1 and all(low < high for low, high in pairwise(edges))
        allowed = f"{len(factors) - 1} increasing fractions in (0, 1)"
        require(fits, "boundaries", allowed, boundaries, "one lies between each two factors")
        self.factors = tuple(float(factor) for factor in factors)
        self.boundaries = tuple(float(boundary) for boundary in boundaries)

    def factor_within(self, step: int, total_steps: int) -> float:
        """The height of the stretch that ``step`` lies in."""
        return self.factors[sum(round(boundary * total_steps) <= step for boundary in self.boundaries)]
