"""Lookahead (arXiv 1907.08610): every k steps, back to a point between where they began and where they led."""

from typing import Any

import torch

from metastep.lab.baselines.packages.silence import quiet_import

with quiet_import():
    import pytorch_optimizer


class LookaheadSGD(pytorch_optimizer.Lookahead):
    """Lookahead of the package ``pytorch_optimizer`` around torch's SGD.

    Args:
        params: parameters.
        lr: of SGD.
        k: steps between two pulls, >= 1.
        alpha: how far back a pull goes, in [0, 1].
        options: of SGD.
    """

    base = torch.optim.SGD

    def __init__(self, params: Any, lr: float, *, k: int = 5, alpha: float = 0.5, **options: Any) -> None:
        super().__init__(self.base(params, lr=lr, **options), k=k, alpha=alpha)


class LookaheadAdam(LookaheadSGD):
    """Lookahead around torch's Adam."""

    base = torch.optim.Adam  # type: ignore[assignment]
