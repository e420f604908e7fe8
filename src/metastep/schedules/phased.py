"""Several schedules for consecutive parts of one run, and the staircase that they have to beat."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

from torch import nn

from metastep.schedules.base import LearnedSchedule, Loss, Rate, State
from metastep.schedules.scale import ScaleRule


class FixedOutput(LearnedSchedule):
    """The control for a learned schedule: the same output in (0, 1) whatever the loss, under the same scale rule.

    Args:
        alpha: the output, in (0, 1).
        scale: how :class:`metastep.LearnedLR` turns alpha into a rate.

    The state is passed on untouched, whatever it is.

    Raises:
        ValueError: if alpha is not in (0, 1).

    Example:
        >>> FixedOutput(0.7).query(2.3, None)
        (0.7, None)
    """

    relative: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = True

    def __init__(self, alpha: float, scale: ScaleRule | None = None) -> None:
        super().__init__()
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {alpha}; the scale rule makes it a rate.")
        self.alpha = float(alpha)
        self.scale = ScaleRule() if scale is None else scale

    def init_state(self) -> None:
        """Nothing to remember."""

    def forward(self, loss: Loss, state: State) -> tuple[float, State]:
        """Return alpha and the same state."""
        return self.alpha, state

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types."""
        return {"alpha": self.alpha, "scale": self.scale.config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The schedule of this configuration."""
        return cls(**{**config, "scale": ScaleRule(**config["scale"])})


class Phased(LearnedSchedule):
    """Snapshots of a learned schedule, one after another over a run: the published transfer to a new task.

    Each snapshot drives an equal share of the run; at a switch the recurrent state is kept and the scale of the rate is
    measured again (:class:`metastep.LearnedLR`, ``measure_loss``).

    Args:
        schedules: the snapshots in order; all learned, of one kind, size and scale rule.
        total_steps: optimizer steps of the run; shares are T // n steps each and the last takes the rest.
        boundaries: instead: the steps at which the next snapshot takes over, strictly increasing, each >= 1.

    The state is (steps done, state of the running snapshot). Beyond the horizon the last snapshot goes on.

    Raises:
        ValueError: for no schedules, unlike ones, or boundaries that do not fit.

    Source: arXiv 2007.14546 (three snapshots, of the first, the middle and the last epoch of meta-training).

    Example:
        >>> stairs = Phased([FixedOutput(0.7), FixedOutput(0.04)], total_steps=10)
        >>> [stairs.query(2.3, (step, None))[0] for step in (0, 4, 5, 9)]
        [0.7, 0.7, 0.04, 0.04]
    """

    relative: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = True

    def __init__(
        self,
        schedules: Sequence[LearnedSchedule],
        total_steps: int | None = None,
        boundaries: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not schedules:
            raise ValueError("schedules must hold at least one schedule, got none.")
        first = schedules[0]
        learned = [_kind(schedule) for schedule in schedules if not isinstance(schedule, FixedOutput)]
        if first.relative or any(kind != _kind(first) for kind in learned):
            raise ValueError(
                "schedules must be learned ones of equal kind, size and scale rule, got "
                f"{[type(s).__name__ for s in schedules]}; their recurrent state is handed on at each switch."
            )
        if total_steps is not None and total_steps < len(schedules):
            raise ValueError(f"total_steps must be >= {len(schedules)}, one step a schedule, got {total_steps}.")
        if boundaries is None and total_steps is not None:
            boundaries = [total_steps // len(schedules) * k for k in range(1, len(schedules))]
        if boundaries is not None and (
            len(boundaries) != len(schedules) - 1
            or any(b < 1 for b in boundaries)
            or any(a >= b for a, b in pairwise(boundaries))
        ):
            raise ValueError(
                f"boundaries must be {len(schedules) - 1} increasing steps >= 1 for {len(schedules)} schedules, "
                f"got {list(boundaries)}."
            )
        self.schedules = nn.ModuleList(schedules)
        self.boundaries = None if boundaries is None else tuple(boundaries)
        self.scale = first.scale
        bases = {base: None for schedule in schedules for base in (schedule.trained_for or "").split(", ") if base}
        self.trained_for = ", ".join(bases) or None

    def init_state(self) -> tuple[int, State]:
        """Step 0 and the first snapshot's initial state."""
        return 0, self._member(0).init_state()

    def forward(self, loss: Loss, state: State) -> tuple[Rate, State]:
        """Ask the snapshot of this phase."""
        step, inner = state
        alpha, inner = self._running(step)(loss, inner)
        return alpha, (step + 1, inner)

    def query(self, loss: float, state: State) -> tuple[float, State]:
        """Ask the snapshot of this phase the fast way."""
        step, inner = state
        alpha, inner = self._running(step).query(loss, inner)
        return alpha, (step + 1, inner)

    def remeasures(self, step: int) -> bool:
        """True at the first step of each phase but the first."""
        return self.boundaries is not None and step in self.boundaries

    def weights_changed(self) -> None:
        """Tell every snapshot."""
        for phase in range(len(self.schedules)):
            self._member(phase).weights_changed()

    def learned_for(self, base: str) -> None:
        """Note it of every snapshot."""
        super().learned_for(base)
        for phase in range(len(self.schedules)):
            self._member(phase).learned_for(base)

    def with_total_steps(self, total_steps: int) -> Self:
        """These snapshots (the same modules) over ``total_steps``; itself if the boundaries are known already."""
        if self.boundaries is not None:
            return self
        return type(self)([self._member(k) for k in range(len(self.schedules))], total_steps=total_steps)

    def staircase(self, loss: float = 1.0, queries: int = 200) -> "Phased":
        """The control: each snapshot replaced by the output at which it settles when fed a constant loss."""
        heights = [settled_output(self._member(phase), loss, queries) for phase in range(len(self.schedules))]
        return Phased([FixedOutput(height, self.scale) for height in heights], boundaries=self.boundaries)

    def _member(self, phase: int) -> LearnedSchedule:
        schedule = self.schedules[phase]
        assert isinstance(schedule, LearnedSchedule)
        return schedule

    def _running(self, step: int) -> LearnedSchedule:
        if self.boundaries is None:
            raise RuntimeError(
                "this schedule of several phases has no horizon; pass total_steps to LearnedLR, or to Phased."
            )
        return self._member(bisect_right(self.boundaries, step))

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types, with those of every member."""
        snapshots = [self._member(phase) for phase in range(len(self.schedules))]
        members = [{"class": type(snapshot).__name__, "config": snapshot.config()} for snapshot in snapshots]
        return {"schedules": members, "boundaries": None if self.boundaries is None else list(self.boundaries)}


def _kind(schedule: LearnedSchedule) -> tuple[type, dict[str, Any]]:
    """What snapshots of one network have in common."""
    return type(schedule), {name: value for name, value in schedule.config().items() if name != "trained_for"}


def settled_output(schedule: LearnedSchedule, loss: float, queries: int = 200) -> float:
    """The output of a schedule after so many queries with one and the same loss, from its initial state."""
    state, alpha = schedule.init_state(), math.nan
    for _ in range(queries):
        alpha, state = schedule.query(loss, state)
    return alpha
