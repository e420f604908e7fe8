"""The calibrated schedule: how large a rate is, is measured on the optimizer; nothing is left to tune."""

import math
from typing import ClassVar, Self

from metastep.schedules.base import between, whole
from metastep.schedules.calibration import Calibration
from metastep.schedules.closed_form import ClosedForm

#: Without a horizon, the share of the level that a run of t steps would start from; its warm-up takes so many steps.
_OPEN_LEVEL, _OPEN_WARMUP = 0.6, 50
#: No step is planned longer than this part of the parameters: it matters in runs of less than some 50 steps.
_LARGEST_RATIO = 0.3
#: A network that was trained before gets this share of the level; less in runs of less than so many steps, in which
#: there is no time to repair what long steps break.
_TRAINED_SHARE, _TRAINED_STEPS = 1 / 3, 200
#: The bound on what a step promises lowers a rate to this part of itself at most: a loss may be near 0 by accident.
_LEAST_SHARE = 0.1


class Calibrated(ClosedForm):
    r"""Warm-up and linear decay at a measured level: nothing to tune, whatever rate the optimizer was made with.

    .. math:: \eta_t = \eta_1\, c\, T^{-p} \min\Bigl(1, \frac{t + 1}{w T}\Bigr) \Bigl(1 - \frac tT\Bigr)

    with :math:`\eta_1` the *unit rate*, at which a settled step is as long as the parameters
    (:mod:`metastep.schedules.calibration`). So the output of this schedule is a step's planned length over that of the
    parameters. The level c and the power p were chosen once, on 17 tasks; see ``docs/transfer.md``. Where the
    direction of the optimizer grows with the gradient, as in SGD, the unit rate follows the gradient's length.

    A network that looks trained gets a third of the level, less in a run of less than 200 steps. Where losses are
    observed, no step may promise to lower the loss by more than ``promise`` times itself.

    Args:
        total_steps: T; None: unknown, until ``LearnedLR`` is told. Then the rate falls with the steps done,
            :math:`(t+1)^{-p}`, until ``LearnedLR.cool(steps)`` anneals it.
        level: c, > 0.
        power: p, in [0, 1].
        warmup: w, the share of the steps in which the rate rises, in [0, 1).
        promise: the largest share of the first loss that a step at the peak may promise, to first order, > 0.
        pretrained: whether the network was trained before; None: see for yourself.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> net = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=123.0)  # no matter
        >>> lr = LearnedLR(optimizer, Calibrated(), total_steps=100)
        >>> net(torch.ones(3)).square().sum().backward()
        >>> optimizer.step()
        >>> 0 < lr.get_last_lr()[0] < 0.1
        True
    """

    relative: ClassVar[bool] = False
    calibrates: ClassVar[bool] = True
    name: ClassVar[str] = "calibrated"
    summary: ClassVar[str] = "warm-up and linear decay at a level that is measured, whatever the base rate"
    source: ClassVar[str] = "metastep"

    def __init__(
        self,
        total_steps: int | None = None,
        *,
        level: float = 1.4,
        power: float = 0.4,
        warmup: float = 0.05,
        promise: float = 2.0,
        pretrained: bool | None = None,
    ) -> None:
        super().__init__()
        self.total_steps = None if total_steps is None else whole("total_steps", total_steps, 1)
        self.level = between("level", level, 0.0, math.inf, "1.4 is usual", open_below=True)
        self.power = between("power", power, 0.0, 1.0, "0.4 is usual")
        self.warmup = between("warmup", warmup, 0.0, 0.99, "it is a share of the run")
        self.promise = between("promise", promise, 0.0, math.inf, "2 is usual", open_below=True)
        if pretrained not in (None, True, False):
            raise ValueError(f"pretrained must be True, False or None, got {pretrained!r}; None sees for itself.")
        self.pretrained = pretrained

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """Over the whole run."""
        return cls(total_steps)

    def factor_at(self, step: int) -> float:
        """The planned length of step ``step`` (0-based) over that of the parameters; from the end on, the last."""
        if self.total_steps is None:
            rise = min(1.0, (step + 1) / _OPEN_WARMUP)
            return float(self.level * _OPEN_LEVEL * max(step + 1, _OPEN_WARMUP) ** -self.power * rise)
        total = self.total_steps
        step = min(step, total - 1)
        rise = min(1.0, (step + 1) / math.ceil(self.warmup * total)) if self.warmup else 1.0
        return self._peak() * rise * (1 - step / total)

    def _peak(self) -> float:
        """The ratio of the longest step in a run with a horizon."""
        return float(min(self.level * (self.total_steps or _OPEN_WARMUP) ** -self.power, _LARGEST_RATIO))

    def share(self, found: Calibration, loss: float) -> float:
        """Which part of the unit rate is used: less for a network that looks trained, or if steps promise too much.

        Args:
            found: what was measured.
            loss: the first; NaN if none was observed.
        """
        trained = found.trained if self.pretrained is None else self.pretrained
        share = 1.0
        if trained:
            share = _TRAINED_SHARE * min(1.0, (self.total_steps or _TRAINED_STEPS) / _TRAINED_STEPS)
        promised = self._peak() * share * found.decrease
        if loss and math.isfinite(loss) and promised > self.promise * abs(loss):
            share *= max(self.promise * abs(loss) / promised, _LEAST_SHARE)
        return share

    def with_total_steps(self, total_steps: int) -> Self:
        """This schedule over a horizon of ``total_steps``; itself if it has one already."""
        return self if self.total_steps is not None else self.extended(total_steps)

    def extended(self, total_steps: int) -> Self:
        """The same over another horizon."""
        return type(self)(**{**self.config(), "total_steps": total_steps})
