"""Schedule-Free+: Schedule-Free AdamW at a Polyak rate of its own."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from metastep.core.inner import inner_product
from metastep.lab.baselines.adaptive_step import (
    APPLIED,
    LossStepOptimizer,
    Work,
    adam_directions,
    check_betas,
    count,
    positive,
)
from metastep.lab.baselines.packages import restored
from metastep.optim.options import Group, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from torch.optim.optimizer import ParamsT

#: Of a tensor: AdamW's iterate, and the average. Of a group: steps, the largest rate so far, the sum of the weights.
ITERATE, AVERAGE = "z", "x"
TAKEN, LARGEST, WEIGHTS = "k", "largest_rate", "weight_sum"


class ScheduleFreePlus(LossStepOptimizer):
    r"""Schedule-Free+: the rate is Polyak's for a lowest loss of 0, in AdamW's norm; the network to be used is x.

    .. math:: \alpha_t = \eta \frac{\max(0, L_t + b_t \langle g_t, z - x \rangle)}
        {\sqrt{\pi / 2} \, \lVert g_t \rVert_1}, \qquad
        z \leftarrow z - \alpha_t^2 \lambda y - \alpha_t u_t, \qquad x \leftarrow (1 - c_t) x + c_t z, \qquad
        y \leftarrow b_t x + (1 - b_t) z

    with the gradient taken at y, Adam's direction u, and weights :math:`c_t = w_t / \sum_s w_s`,
    :math:`w_t = t^r \max_s \alpha_s^2`. In ``anneal_steps`` steps 1 - b goes geometrically to that of ``beta_max``.

    Args:
        params: Parameters or groups; loss, norm and inner product are those of all groups together.
        lr: eta, >= 0, the coefficient of the rate and what a warm-up changes. A group at 0 stands still.
        betas: Decays of Adam's moments, each in [0, 1).
        eps: Added to the root of the second moment, > 0.
        weight_decay: lambda, >= 0; values of 20 to 50 are usual, as the square of the rate multiplies it.
        beta: b at the start, in (0, 1).
        beta_max: b at the end, in (0, 1).
        anneal_steps: In which b goes there, >= 0; 0: it stays.
        average_after: Steps before averaging begins, until when x is z, >= 0.
        r: Power of the step in the weights, >= 0.

    Raises:
        ValueError: For an argument out of its range, and at ``step`` without a loss.

    Source: arXiv 2605.19095, and its author's reference implementation, whose mean of the norm is left out as it is by
    default there.
    *Differs from the code:* a step with a loss or gradient that is not finite is not taken and counted in ``rejected``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = ScheduleFreePlus([w])
        >>> for _ in range(100):
        ...     loss = w.square().sum()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(lambda: loss)
        >>> with optimizer.averaged():
        ...     print(abs(w.item()) < 0.5)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        beta: float = 0.9,
        beta_max: float = 0.965,
        anneal_steps: int = 0,
        average_after: int = 0,
        r: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "beta": beta, "beta_max": beta_max,
            "anneal_steps": anneal_steps, "average_after": average_after, "r": r, TAKEN: 0, LARGEST: 0.0, WEIGHTS: 0.0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        check_betas(group)
        positive("eps", group["eps"])
        number("weight_decay", group["weight_decay"])
        for name in ("beta", "beta_max"):
            positive(name, number(name, group[name], high=1.0, open_high=True))
        count("anneal_steps", group["anneal_steps"], low=0)
        count("average_after", group["average_after"], low=0)
        number("r", group["r"])

    def move(self, works: list[Work], loss: float, square: float) -> None:
        """Find the rate, and move z, x and y."""
        above, below = loss, 0.0
        for group, parameters, gradients in works:
            below += float(torch.stack(torch._foreach_norm(gradients, 1)).sum())
            for p in parameters:
                if ITERATE not in self.state[p]:
                    self.state[p].update({ITERATE: p.clone(), AVERAGE: p.clone()})
            iterates, averages = self._sequences(parameters)
            along = inner_product(gradients, list(torch._foreach_sub(iterates, averages)))
            above += self._beta(group) * float(along)
        unit = max(above, 0.0) / (math.sqrt(math.pi / 2) * below) if below > 0 else 0.0
        for group, parameters, gradients in works:
            if float(group["lr"]) > 0:
                self._move(group, parameters, gradients, float(group["lr"]) * unit)

    def _move(self, group: Group, parameters: list[Tensor], gradients: list[Tensor], rate: float) -> None:
        beta = self._beta(group)
        group[APPLIED], group[LARGEST] = rate, max(rate, group[LARGEST])
        share = 1.0
        if group[TAKEN] >= group["average_after"]:
            weight = (group[TAKEN] + 1) ** group["r"] * group[LARGEST] ** 2
            group[WEIGHTS] += weight
            share = weight / group[WEIGHTS] if group[WEIGHTS] > 0 else 1.0
        group[TAKEN] += 1
        iterates, averages = self._sequences(parameters)
        directions = adam_directions([self.state[p] for p in parameters], gradients, group["betas"], group["eps"])
        if group["weight_decay"]:
            torch._foreach_add_(iterates, parameters, alpha=-(rate**2) * group["weight_decay"])
        torch._foreach_add_(iterates, directions, alpha=-rate)
        torch._foreach_lerp_(averages, iterates, share)
        torch._foreach_copy_(parameters, averages)
        torch._foreach_lerp_(parameters, iterates, 1 - beta)

    def _beta(self, group: Group) -> float:
        """The share b of this step."""
        if group["anneal_steps"] == 0:
            return float(group["beta"])
        progress = min(group[TAKEN] / group["anneal_steps"], 1.0)
        return float(1 - (1 - group["beta"]) ** (1 - progress) * (1 - group["beta_max"]) ** progress)

    def _sequences(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [self.state[p][ITERATE] for p in parameters], [self.state[p][AVERAGE] for p in parameters]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters are the average x; afterwards y again, bit for bit."""
        with restored(self):
            with torch.no_grad():
                for parameter, state in self.state.items():
                    if AVERAGE in state:
                        parameter.copy_(state[AVERAGE])
            yield
