"""Prodigy (arXiv 2306.06101): Adam whose rate is an estimate d of the distance to the solution; and Schedule-Free."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from metastep.lab.baselines.packages import quiet_import, restored, silence

with quiet_import():
    import prodigyopt  # type: ignore[import-untyped]
    import schedulefree  # type: ignore[import-untyped]


class Prodigy(prodigyopt.Prodigy):  # type: ignore[misc]
    """Prodigy of the package ``prodigyopt``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        with silence():
            super().__init__(*args, **options)
        self.param_groups[0]["applied_rate"] = 0.0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; its rate is that of the estimate before it."""
        group = self.param_groups[0]
        rate = float(group["d"]) * float(group["lr"])
        if group["use_bias_correction"]:
            (beta1, beta2), step = group["betas"], group["k"] + 1
            rate *= math.sqrt(1 - beta2**step) / (1 - beta1**step)
        loss = super().step(closure)
        group["applied_rate"] = rate
        return loss

    def applied_rate(self) -> float:
        """The rate of the last step: d times lr."""
        return float(self.param_groups[0]["applied_rate"])


class ScheduleFreeProdigy(Prodigy):
    """Prodigy without momentum within the wrapper of the package ``schedulefree``.

    The values are those of the authors' AlgoPerf entry. The weights of the average grow as step ** r and, unlike there,
    as the square of the largest d times lr.

    Args:
        params: parameters.
        lr: multiplies d.
        beta: share of the average x in the point y at which the gradient is taken, in (0, 1).
        beta2: decay of Prodigy's second moment, in [0, 1).
        r: power of the step, >= 0.
        options: of Prodigy.

    Source: arXiv 2405.15682 and its authors' code; arXiv 2306.06101.
    """

    def __init__(
        self, params: Any, lr: float = 1.0, *, beta: float = 0.9, beta2: float = 0.9955, r: float = 0.75, **options: Any
    ) -> None:
        super().__init__(params, lr=lr, betas=(0.0, beta2), **options)
        self._wrapper = schedulefree.ScheduleFreeWrapper(_Base(self), momentum=beta, r=r)
        self._wrapper.train()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step: Prodigy's, from z with the gradient at y."""
        return self._wrapper.step(closure)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters are the average x."""
        with restored(self):
            self._wrapper.eval()
            try:
                yield
            finally:
                self._wrapper.train_mode = True


class _Base:
    """What the wrapper takes for its base: the state of an optimizer, whose step is the one of Prodigy."""

    def __init__(self, optimizer: ScheduleFreeProdigy) -> None:
        self._optimizer = optimizer

    param_groups = property(lambda self: self._optimizer.param_groups)
    state = property(lambda self: self._optimizer.state)

    def step(self) -> None:
        """Move the parameters, which are z while this runs."""
        Prodigy.step(self._optimizer)
