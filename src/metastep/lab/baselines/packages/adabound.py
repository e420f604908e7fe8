"""AdaBound (arXiv 1902.09843): Adam whose rates are bounded ever more closely by that of SGD."""

from typing import Any

from metastep.lab.baselines.packages.silence import quiet_import

with quiet_import():
    import pytorch_optimizer


class AdaBound(pytorch_optimizer.AdaBound):
    """AdaBound of the package ``pytorch_optimizer``."""

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
