"""Learn an optimizer: unroll it on problems, and descend on the losses along the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from metastep.lab.baselines.learned import UpdateNetwork


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What an optimizer is unrolled on.

    Attributes:
        start: parameters at the first step, of any shapes.
        loss: of parameters of these shapes, a 0-d tensor with a graph; draws a new batch at every call if it has any.
    """

    start: Sequence[Tensor]
    loss: Callable[[Sequence[Tensor]], Tensor]


def randomly_scaled(problem: Problem, spread: float, generator: torch.Generator) -> Problem:
    """The same problem in coordinates of random scales: theta = c (.) theta', c = exp(U[-spread, spread]).

    Args:
        problem: any.
        spread: >= 0.
        generator: draws c, for each coordinate.
    """
    scales = [(spread * (2 * torch.rand(p.shape, generator=generator) - 1)).exp() for p in problem.start]

    def loss(parameters: Sequence[Tensor]) -> Tensor:
        return problem.loss([scale * p for scale, p in zip(scales, parameters, strict=True)])

    return Problem(start=[p / scale for scale, p in zip(scales, problem.start, strict=True)], loss=loss)


def with_convex_helper(problem: Problem, generator: torch.Generator) -> Problem:
    """The problem beside a convex one of as many coordinates: + |x - v|^2 / n with x and v from U[-1, 1].

    Args:
        problem: any.
        generator: draws x and v.
    """
    n = sum(p.numel() for p in problem.start)
    x, v = (2 * torch.rand(n, generator=generator) - 1 for _ in range(2))

    def loss(parameters: Sequence[Tensor]) -> Tensor:
        return problem.loss(parameters[:-1]) + (parameters[-1] - v).square().mean()

    return Problem(start=[*problem.start, x], loss=loss)


def learn_optimizer(
    network: UpdateNetwork,
    sample: Callable[[torch.Generator], Problem],
    *,
    lr: float,
    problems: int,
    horizon: int = 100,
    unroll: int = 20,
    meta_lr: float = 1e-3,
    scaling: float = 0.0,
    convex_helper: bool = False,
    clip: float = 1.0,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
) -> list[float]:
    r"""Learn the weights of an update network in place, by truncated backpropagation through its own steps.

    .. math:: \phi \leftarrow \text{Adam}\Bigl(\phi, \nabla_\phi \tfrac1K \sum_{k=1}^{K} f(\theta_{t+k}(\phi))\Bigr),
        \qquad \theta_{t+1} = \theta_t - \text{lr} \cdot u(g_t; \phi)

    The gradients g are inputs: no second derivative is taken.

    Args:
        network: An ``L2LNetwork`` or ``RNNPropNetwork``.
        sample: Draws a problem.
        lr: What multiplies the network's output, > 0.
        problems: How many problems to unroll on, >= 1.
        horizon: Steps on each, a multiple of ``unroll``.
        unroll: K, steps between two updates of the network.
        meta_lr: Adam's rate, > 0.
        scaling: Spread of the random scales of coordinates, >= 0; RNNProp uses it.
        convex_helper: Whether a convex problem stands beside each; RNNProp uses it.
        clip: Largest norm of the meta-gradient, > 0.
        seed: Of the problems.
        watch: Called with the number of a problem and its loss after the last step.

    Returns:
        The loss after the last step of every problem.

    Raises:
        ValueError: For an argument out of its range.

    Source: arXiv 1606.04474, arXiv 1703.03633 (scaling, convex helper).
    *Differs from the papers:* a meta-gradient is clipped, and left out where it is not finite.
    """
    if unroll < 1 or horizon < unroll or horizon % unroll:
        raise ValueError(f"horizon must be a multiple of unroll, got {horizon} and {unroll}; e.g. 100 and 20.")
    if not all(0 < value < math.inf for value in (lr, meta_lr, clip, problems)):
        raise ValueError(f"lr, meta_lr, clip and problems must be > 0, got {(lr, meta_lr, clip, problems)}.")
    generator = torch.Generator().manual_seed(seed)
    meta_optimizer = torch.optim.Adam(network.parameters(), lr=meta_lr)
    ends = []
    for number in range(problems):
        problem = sample(generator)
        if scaling:
            problem = randomly_scaled(problem, scaling, generator)
        if convex_helper:
            problem = with_convex_helper(problem, generator)
        run = _Run(network, problem, lr)
        for _ in range(horizon // unroll):
            meta_optimizer.zero_grad()
            torch.autograd.backward(torch.stack([run.step() for _ in range(unroll)]).mean())
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            if norm.isfinite():
                meta_optimizer.step()
            run.cut()
        ends.append(run.last)
        if watch is not None:
            watch(number, run.last)
    return ends


class _Run:
    """An optimizer on its way along one problem, with a graph to the network's weights since the last cut."""

    def __init__(self, network: UpdateNetwork, problem: Problem, lr: float) -> None:
        self.network, self.problem, self.lr = network, problem, lr
        self.shapes = [p.shape for p in problem.start]
        self.theta = torch.cat([p.reshape(-1) for p in problem.start])
        self.state = network.init_state(len(self.theta))
        self.steps, self.last = 0, math.nan

    def step(self) -> Tensor:
        """One step; return the loss after it, whose graph reaches the network."""
        here = self.theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.problem.loss(self._parts(here)), here)
        self.steps += 1
        direction, self.state = self.network(gradient, self.state, self.steps)
        self.theta = self.theta - self.lr * direction
        loss = self.problem.loss(self._parts(self.theta))
        self.last = float(loss.detach())
        return loss

    def cut(self) -> None:
        """Let go of the graph."""
        self.theta = self.theta.detach()
        self.state = {name: value.detach() for name, value in self.state.items()}

    def _parts(self, theta: Tensor) -> list[Tensor]:
        pieces = torch.split(theta, [math.prod(shape) for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
