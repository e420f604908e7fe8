"""AliG (arXiv 1906.05661): SGD with Polyak's rate for a lowest loss of 0, under a bound."""

from collections.abc import Callable
from typing import Any

from metastep.lab.baselines.packages.silence import quiet_import

with quiet_import():
    import pytorch_optimizer


class AliG(pytorch_optimizer.AliG):
    """AliG of the package ``pytorch_optimizer``; ``lr`` is the bound on its rate."""

    step_style = "loss"

    def __init__(self, params: Any, lr: float = 0.1, *, momentum: float = 0.0, adjusted_momentum: bool = False) -> None:
        # by name: the package swallows whatever it does not know
        super().__init__(params, max_lr=lr, momentum=momentum, adjusted_momentum=adjusted_momentum)
        for group in self.param_groups:
            group["lr"] = lr

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the closure gives the loss of the gradients that are there."""
        if closure is None:
            raise ValueError("closure must be given, got None; it returns the loss of the gradients that are there.")
        for group in self.param_groups:
            group["max_lr"] = float(group["lr"])
        loss: list[Any] = []

        def number() -> float:
            loss.append(closure())
            return float(loss[0])

        super().step(number)
        return loss[0]

    def applied_rate(self) -> float:
        """The rate of the last step; 0 before the first."""
        return float(self.param_groups[0].get("step_size", 0.0))
