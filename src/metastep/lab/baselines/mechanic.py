"""Mechanic: learns by what the displacement of another optimizer, here AdamW, is to be multiplied."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from metastep.core.inner import inner_product
from metastep.lab.baselines.adaptive_step import (
    APPLIED,
    AdaptiveStepOptimizer,
    adam_directions,
    all_finite,
    check_betas,
    count,
    positive,
    recomputed,
)
from metastep.optim.options import Group, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim.optimizer import ParamsT

#: Of a tensor: where it started, and AdamW's displacement since. Of the first group: what is learned, a number a decay.
REFERENCE, DELTA = "reference", "delta"
LARGEST, SQUARES, REWARD, SCALES = "largest", "squares", "reward", "scales"


class Mechanic(AdaptiveStepOptimizer):
    r"""Mechanic over AdamW: parameters are their start plus a learned multiple of AdamW's displacement.

    .. math:: h_t = \Bigl\langle g_t + \lambda S_t \frac{\lVert g_t \rVert}{\lVert \theta_t \rVert} \theta_t,
        \Delta_t \Bigr\rangle, \qquad \Delta_{t+1} = \Delta_t - \eta_t u_t, \qquad
        \theta_{t+1} = \theta_1 + S_{t+1} \Delta_{t+1}

    with AdamW's direction u and the sum :math:`S = \sum_i s_i` over decays :math:`\beta_i = 1 - 10^{-i}`, each with

    .. math:: r \leftarrow \beta r - s \, \mathrm{clip}(h, -m, m), \quad m \leftarrow \max(\beta m, |h|), \quad
        v \leftarrow \beta^2 v + h^2, \quad s \leftarrow \frac{s_0 m / n + \max(0, r)}{\sqrt v}

    Args:
        params: Parameters or groups; what is learned is learned for all of them together.
        lr: eta, >= 0: what a schedule changes, as its multiple is learned. A group at 0 stands still.
        betas: Decays of AdamW's moments, each in [0, 1).
        eps: Added to the root of AdamW's second moment, and to the divisors above, > 0.
        weight_decay: Of AdamW, >= 0.
        s_init: s_0, the multiple at the start, > 0.
        decay: lambda, which draws to the start, >= 0.
        num_betas: n, >= 1.

    Raises:
        ValueError: For an argument out of its range.

    Source: arXiv 2306.00144, algorithm 1, with the values and the clipping of its authors' ``optax.contrib.mechanize``.
    *Differs from the code:* the displacement is kept instead of recomputed, which in float32 loses it while S is small.
    A step with a gradient that is not finite is not taken, and counted in ``rejected``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = Mechanic([w])
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     _ = optimizer.step()
        >>> abs(w.item()) < 1.0
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        s_init: float = 1e-6,
        decay: float = 1e-2,
        num_betas: int = 6,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "s_init": s_init, "decay": decay,
            "num_betas": num_betas, LARGEST: None, SQUARES: None, REWARD: None, SCALES: None,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        check_betas(group)
        positive("eps", group["eps"])
        number("weight_decay", group["weight_decay"])
        positive("s_init", group["s_init"])
        number("decay", group["decay"])
        count("num_betas", group["num_betas"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Learn the multiple, advance AdamW's displacement, and go to that multiple of it.

        Args:
            closure: Recomputes the loss and the gradients, once; run with gradients enabled.

        Returns:
            What the closure returned, or None.
        """
        loss = recomputed(closure)
        works = self.moving()
        if not works:
            return loss
        parameters = [p for _, own, _ in works for p in own]
        gradients = [g for _, _, part in works for g in part]
        for p in parameters:
            if DELTA not in self.state[p]:
                self.state[p].update({REFERENCE: p.clone(), DELTA: torch.zeros_like(p)})
        if not self._learn(parameters, gradients):
            self.reject()
            return loss
        scale = math.fsum(self.param_groups[0][SCALES])
        for group, own, part in works:
            rate, states = float(group["lr"]), [self.state[p] for p in own]
            directions = adam_directions(states, part, group["betas"], group["eps"])
            if group["weight_decay"]:
                torch._foreach_add_(directions, own, alpha=group["weight_decay"])
            deltas = [state[DELTA] for state in states]
            torch._foreach_add_(deltas, directions, alpha=-rate)
            torch._foreach_copy_(own, [state[REFERENCE] for state in states])
            torch._foreach_add_(own, deltas, alpha=scale)
            group[APPLIED] = rate * scale
        return loss

    def _learn(self, parameters: list[Tensor], gradients: list[Tensor]) -> bool:
        """Advance the multiples; False, and nothing is changed, if the gradients are not finite."""
        first, deltas = self.param_groups[0], [self.state[p][DELTA] for p in parameters]
        n, eps, start = first["num_betas"], first["eps"], first["s_init"]
        scales = first[SCALES] or [start] * n
        square, along = inner_product(gradients, gradients), inner_product(gradients, deltas)
        size, pull = inner_product(parameters, parameters), inner_product(parameters, deltas)
        norm = math.sqrt(float(square)) / (math.sqrt(float(size)) + eps)
        h = float(along) + first["decay"] * math.fsum(scales) * norm * float(pull)
        if not all_finite(h, norm):
            return False
        zeros = [0.0] * n
        learned = []
        for i, (s, m, v, r) in enumerate(
            zip(scales, first[LARGEST] or zeros, first[SQUARES] or zeros, first[REWARD] or zeros, strict=True)
        ):
            beta = 1 - 10.0 ** -(i + 1)
            r = beta * r - s * min(max(h, -m), m)
            m, v = max(beta * m, abs(h) + eps), beta**2 * v + h**2
            learned.append(((start / n * m + max(0.0, r)) / (math.sqrt(v) + eps), m, v, r))
        for key, values in zip((SCALES, LARGEST, SQUARES, REWARD), zip(*learned, strict=True), strict=True):
            first[key] = list(values)
        return True
