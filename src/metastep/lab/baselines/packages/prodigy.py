"""Prodigy (arXiv 2306.06101): Adam whose rate is an estimate d of the distance to the solution."""

import math
from collections.abc import Callable
from typing import Any

from metastep.lab.baselines.packages import quiet_import, silence

with quiet_import():
    import prodigyopt  # type: ignore[import-untyped]


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
