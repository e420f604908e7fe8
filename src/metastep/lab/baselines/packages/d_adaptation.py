"""D-Adaptation (arXiv 2301.07733): rates from a lower bound d of the distance to the solution."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from metastep.lab.baselines.packages import quiet_import, silence

with quiet_import():
    import dadaptation  # type: ignore[import-untyped]


class _DAdapt(Optimizer):
    """Keeps the rate of the last step, which is that of the bound before it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        with silence():
            super().__init__(*args, **options)
        self.param_groups[0]["applied_rate"] = 0.0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""
        group = self.param_groups[0]
        rate = float(group["d"]) * float(group["lr"])
        loss = super().step(closure)
        group["applied_rate"] = rate / float(group.get("g0_norm", 1.0))
        return loss

    def applied_rate(self) -> float:
        """The rate of the last step: d times lr, for SGD over the norm of the first gradient."""
        return float(self.param_groups[0]["applied_rate"])


class DAdaptSGD(_DAdapt, dadaptation.DAdaptSGD):  # type: ignore[misc]
    """SGD of the package ``dadaptation``."""


class DAdaptAdamW(_DAdapt, dadaptation.DAdaptAdam):  # type: ignore[misc]
    """Adam of the package ``dadaptation`` with decoupled weight decay."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"decouple": True, **options})
