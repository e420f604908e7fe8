"""A schedule that lowers the rate when the training loss has stopped falling."""

import inspect
import math
from typing import Any, ClassVar, Literal

from metastep.schedules.arguments import between, one_of, whole
from metastep.schedules.base import Loss, Rate, Schedule

#: Factor now; sum and number of the window's losses so far; best mean; windows since; windows still to rest.
PlateauState = tuple[float, Any, int, float, int, int]


class ReduceOnPlateau(Schedule):
    """Multiplies the rate by ``factor`` when the training loss has not improved for ``patience`` windows.

        m_k = mean of the losses of steps k every ... (k + 1) every - 1
        m_k is better than b, the best so far:   m_k < (1 - threshold) b  ("rel"),   m_k < b - threshold  ("abs")
        more than ``patience`` windows in a row without a better mean:  factor_t <- max(factor factor_t, min_factor)

    The rate of a step depends on the windows that are complete before it. After a reduction ``cooldown`` windows are
    not counted.

    Args:
        every: steps in a window, >= 1; those of an epoch make it what torch's does with the training loss.
        factor: in (0, 1).
        patience: windows >= 0.
        threshold: >= 0.
        threshold_mode: "rel" or "abs".
        cooldown: windows >= 0.
        min_factor: lower bound, a fraction in [0, 1] of the base rate.

    Raises:
        ValueError: for an argument out of its range.

    Source: ``torch.optim.lr_scheduler.ReduceLROnPlateau``, the same values, on means of the training loss.
    *Differs from torch's:* it reads every step's training loss instead of one number an epoch; ``min_factor`` is
    relative where ``min_lr`` is a rate; there is no ``eps`` below which a reduction is left out.

    Example:
        >>> plateau = ReduceOnPlateau(every=2, patience=1, factor=0.5)
        >>> state, factors = plateau.init_state(), []
        >>> for loss in [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]:
        ...     factor, state = plateau.query(loss, state)
        ...     factors.append(factor)
        >>> factors
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    """

    relative: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = True

    def __init__(
        self,
        every: int = 100,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.every = whole("every", every, 1)
        self.factor = between("factor", factor, 0.0, 1.0, "it lowers the rate", open_below=True)
        self.patience = whole("patience", patience, 0, "count in windows")
        self.threshold = between("threshold", threshold, 0.0, math.inf, "0 takes any lower loss for better")
        self.threshold_mode = one_of("threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown = whole("cooldown", cooldown, 0, "count in windows")
        self.min_factor = between("min_factor", min_factor, 0.0, 1.0, "give a fraction of the base rate, not a rate")

    def init_state(self) -> PlateauState:
        """The full rate, and no loss seen."""
        return 1.0, 0.0, 0, math.inf, 0, 0

    def forward(self, loss: Loss, state: PlateauState) -> tuple[Rate, PlateauState]:
        """Return the factor before this step's loss, and the state with it; a device is read once a window."""
        current, total, count, best, bad, resting = state
        total, count = total + loss, count + 1
        if count < self.every:
            return current, (current, total, count, best, bad, resting)
        return current, self._after_window(float(total) / count, current, best, bad, resting)

    def query(self, loss: float, state: PlateauState) -> tuple[float, PlateauState]:
        """:meth:`forward` without the cost of a module call."""
        factor, state = self.forward(loss, state)
        return float(factor), state

    def _after_window(self, mean: float, current: float, best: float, bad: int, resting: int) -> PlateauState:
        if self._better(mean, best):
            best, bad = mean, 0
        else:
            bad += 1
        if resting > 0:
            bad, resting = 0, resting - 1
        if bad > self.patience:
            current, bad, resting = max(current * self.factor, self.min_factor), 0, self.cooldown
        return current, 0.0, 0, best, bad, resting

    def _better(self, mean: float, best: float) -> bool:
        if self.threshold_mode == "rel":
            return mean < best * (1.0 - self.threshold)
        return mean < best - self.threshold

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types, that construct this schedule again."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config().items())
