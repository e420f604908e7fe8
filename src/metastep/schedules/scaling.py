"""The scale of one run: gamma is measured from its initial loss, and again where the schedule asks for it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metastep.schedules.base import Loss, Schedule

#: Share of the newest window in the running mean of the loss, from which a scale is measured again.
_RECENT = 0.02


class RunScale:
    """Measures gamma by the schedule's :class:`metastep.ScaleRule`, and prepares the losses that the schedule reads.

    Args:
        schedule: a schedule; only one that is not relative has a gamma.
        initial_loss: mean loss (nats) of the fresh network; None: the first observed.
        num_classes: classes, or vocabulary size; None: guessed from the initial loss.
        measure_loss: the mean training loss of the network as it is; None: the running mean of the observed ones.

    Attributes:
        gamma: the scale, None before it is measured.
        mean_over_ranks: makes ranks agree on what ``measure_loss`` says; by default there is one rank.
    """

    mean_over_ranks: Callable[[float], float] = staticmethod(float)

    def __init__(
        self,
        schedule: Schedule,
        initial_loss: float | None,
        num_classes: int | None,
        measure_loss: Callable[[], float | Tensor] | None,
    ) -> None:
        self.schedule = schedule
        self.initial_loss = None if initial_loss is None else float(initial_loss)
        self.num_classes = num_classes
        self.measure_loss = measure_loss
        self.gamma: float | None = None
        self._first: float | None = None
        self._recent: Loss | None = None
        if self.initial_loss is not None and not schedule.relative:
            self._measure(self.initial_loss)
        self._keeps_recent = measure_loss is None and type(schedule).remeasures is not Schedule.remeasures

    def read(self, loss: Loss, step: int) -> Loss | None:
        """Return what the schedule is to read for the mean loss of step ``step``; None if no loss was ever finite."""
        if self.gamma is None and not self._measure(loss):
            return None
        if self._keeps_recent:
            recent = loss if self._recent is None else self._recent
            self._recent = recent + _RECENT * (loss - recent)
        if self.schedule.remeasures(step):
            self._measure_again()
        assert self.num_classes is not None
        return self.schedule.scale.normalize(loss, self.num_classes)

    def _measure(self, loss: Loss) -> bool:
        if self.initial_loss is None:
            initial = float(loss)
            if not math.isfinite(initial):
                return False
            self.initial_loss = initial
        rule = self.schedule.scale
        if self.num_classes is None:
            self.num_classes = rule.guess_num_classes(self.initial_loss)
        self.gamma = self._first = rule.gamma(self.initial_loss, self.num_classes)
        return True

    @torch.no_grad()
    def _measure_again(self) -> None:
        assert self.num_classes is not None
        if self.measure_loss is not None:
            loss = self.mean_over_ranks(float(self.measure_loss()))
        else:
            assert self._recent is not None
            loss = float(self._recent)
        if math.isfinite(loss):
            self.gamma = self.schedule.scale.gamma(loss, self.num_classes, first=self._first)

    def share(self, from_first: Callable[[list[float]], list[float]]) -> None:
        """Take over the first rank's measurements.

        Args:
            from_first: turns numbers of this rank into those of the first; NaN stands for what is not known.
        """
        mine = [self.initial_loss, self.num_classes, self.gamma, self._first]
        first = from_first([math.nan if value is None else value for value in mine])
        initial, classes, gamma, start = (None if math.isnan(value) else value for value in first)
        self.initial_loss, self.num_classes = initial, None if classes is None else int(classes)
        self.gamma, self._first = gamma, start

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; reads the device, if a running mean is there."""
        return {
            "initial_loss": self.initial_loss,
            "num_classes": self.num_classes,
            "scale": self.gamma,
            "first_scale": self._first,
            "recent_loss": None if self._recent is None else float(self._recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; other keys are ignored."""
        self.initial_loss, self.num_classes = state["initial_loss"], state["num_classes"]
        self.gamma, self._first, self._recent = state["scale"], state["first_scale"], state["recent_loss"]
