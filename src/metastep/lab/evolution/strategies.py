r"""Evolution strategies: the gradient of a smoothed objective, from what a perturbed population achieved.

.. math:: \nabla \approx \frac{1}{n \sigma^2}
    \sum_{i=1}^{n} \xi_i\, \frac{F(\phi + \epsilon_i) - F(\phi - \epsilon_i)}{2}

Over whole runs :math:`\xi = \epsilon`. Over a run that is cut into unrolls, with a fresh :math:`\epsilon` in each,
persistent evolution strategies take for :math:`\xi` the sum of all perturbations so far: the estimate of an unroll
then holds what the earlier ones did to it, and the sum is unbiased (Vicol, Metz and Sohl-Dickstein, 2021,
arXiv 2112.13835).
"""

from typing import Any

import torch
from torch import Tensor

#: A difference of log losses below this is noise, not a reason to go anywhere.
_NOISE = 0.05
_LARGEST = 3.0


class Perturbations:
    """The perturbations of P = 2n members: n of them, and their mirror images.

    Args:
        pairs: n.
        size: N, the number of weights.
        sigma: their standard deviation.
        seed: of the source of chance.
        persistent: whether to add them up, for unrolls of one run.
    """

    def __init__(self, pairs: int, size: int, sigma: float, seed: int, *, persistent: bool = False) -> None:
        self.sigma, self.persistent = sigma, persistent
        self._shape = pairs, size
        self._chance = torch.Generator().manual_seed(seed)
        self.total = torch.zeros(pairs, size)

    def around(self, center: Tensor) -> Tensor:
        """Draw anew; return the weights of all members, (2n, N): first the n perturbed ones, then the mirrored."""
        drawn = torch.randn(self._shape, generator=self._chance) * self.sigma
        self.total = self.total + drawn if self.persistent else drawn
        drawn = drawn.to(center)
        return torch.cat((center + drawn, center - drawn))

    def gradient(self, fitness: Tensor, *, robust: bool = True) -> Tensor:
        """Estimate the gradient of the fitness, (N,), from that of all members, (2n,).

        Args:
            fitness: of the members in the order of :meth:`around`; less is better.
            robust: whether to bring differences to unit size and clip them. Tasks then count alike; without it the
                estimate is unbiased.
        """
        above, below = fitness.cpu().chunk(2)
        difference = (above - below) / 2
        if robust:
            scale = difference.abs().mean() + _NOISE
            difference = (difference / scale).clamp(-_LARGEST, _LARGEST) * self.sigma
        return difference @ self.total / (len(self.total) * self.sigma**2)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"total": self.total, "chance": self._chance.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.total = state["total"]
        self._chance.set_state(state["chance"])
