"""AdaBound, AliG and Lookahead of the package ``pytorch_optimizer``."""

from collections.abc import Callable
from typing import Any

import torch

from metastep.lab.baselines.packages import quiet_import

with quiet_import():
    import pytorch_optimizer


class AdaBound(pytorch_optimizer.AdaBound):
    """AdaBound (arXiv 1902.09843): Adam whose rates are bounded ever more closely by that of SGD."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        final_lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        gamma: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        # by name: the package swallows whatever it does not know
        super().__init__(params, lr, final_lr, betas, gamma, weight_decay)


class AliG(pytorch_optimizer.AliG):
    """AliG (arXiv 1906.05661): SGD with Polyak's rate for a lowest loss of 0; ``lr`` is the bound on its rate."""

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


class LookaheadSGD(pytorch_optimizer.Lookahead):
    """Lookahead (arXiv 1907.08610) around SGD: every k steps back to a point between their start and their end.

    Args:
        params: parameters.
        lr: of SGD.
        k: steps between two returns, >= 1.
        alpha: how far the point lies on the way, in [0, 1].
        options: of SGD.
    """

    base = torch.optim.SGD

    def __init__(self, params: Any, lr: float, *, k: int = 5, alpha: float = 0.5, **options: Any) -> None:
        super().__init__(self.base(params, lr=lr, **options), k=k, alpha=alpha)


class LookaheadAdam(LookaheadSGD):
    """Lookahead around torch's Adam."""

    base = torch.optim.Adam  # type: ignore[assignment]
