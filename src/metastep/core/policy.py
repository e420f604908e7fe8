r"""The network of a signal schedule, as pure functions: features -> action -> log-multiplier of the rate.

.. math::
    h &= \tanh(x W_1 + b_1), \qquad d = \tanh(h w_2 + b_2) \\
    m' &= \mathrm{clip}\bigl(m + d\, \min(1, a / T)\ \text{or, for}\ d < 0,\ d\, \min(\ln 10, b / T)\bigr)

or, recurrent, with :math:`(z, n) = x W_1 + h U + b_1`, :math:`h' = (1 - \sigma(z))\, h + \sigma(z) \tanh(n)`.

One definition for one schedule and for a population: features, hidden states and weights have any leading dimensions,
which broadcast. With P weight vectors, (P, N), :func:`unpack_weights` gives matrices (P, F, H), and the features
(P, F) of each member meet the weights of that member.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from metastep.core.signals import BACKOFF

if TYPE_CHECKING:
    from collections.abc import Mapping

#: T where no horizon is known.
NOMINAL_STEPS = 1000.0
#: The log-multiplier never moves further in one step than this, up and down.
_LARGEST_INCREASE, _LARGEST_DECREASE = 1.0, math.log(10)


class ActionBounds(NamedTuple):
    """Where the log-multiplier m starts, and how far an action takes it.

    Attributes:
        start: m before the first step.
        max_increase: m rises by at most min(1, max_increase / T) a step.
        max_decrease: m falls by at most min(ln 10, max_decrease / T) a step, but for the spike guard.
        lower: the least m.
        upper: the greatest m.
        initial_update: calibrates the initial step. When the first displacement is known, m jumps, once, to where the
            update-to-weight ratio |u| / |theta| = initial_update / sqrt(T): from there on the rates do not depend on
            the initial one. 0 does not jump.
        anneals: whether, beside the action, the rate falls with what is left of a known horizon, as 1 - t / T.
    """

    start: float = math.log(0.01)
    max_increase: float = 100.0
    max_decrease: float = 400.0
    lower: float = -14.0
    upper: float = 9.2
    initial_update: float = 0.0
    anneals: bool = False


def weight_shapes(features: int, hidden: int, recurrent: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, in the order of the flat vector."""
    gates = 2 if recurrent else 1
    return {
        "input": (features, gates * hidden),
        **({"recurrent": (hidden, gates * hidden)} if recurrent else {}),
        "bias": (gates * hidden,),
        "output": (hidden, 1),
        "output_bias": (1,),
    }


def weight_count(features: int, hidden: int, recurrent: bool) -> int:
    """N, the length of the flat vector of all weights."""
    return sum(math.prod(shape) for shape in weight_shapes(features, hidden, recurrent).values())


def unpack_weights(flat: Tensor, features: int, hidden: int, recurrent: bool) -> dict[str, Tensor]:
    """The weights in flat vectors, (..., N): views, each (..., *shape) of :func:`weight_shapes`."""
    shapes = weight_shapes(features, hidden, recurrent)
    parts = torch.split(flat, [math.prod(shape) for shape in shapes.values()], dim=-1)
    return {
        name: part.reshape(*flat.shape[:-1], *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def init_hidden(shape: tuple[int, ...], hidden: int, recurrent: bool, like: Tensor) -> Tensor:
    """The hidden state before the first step, (*shape, H): zeros; of width 0 if the network is not recurrent."""
    return like.new_zeros(*shape, hidden if recurrent else 0)


def signal_policy(weights: Mapping[str, Tensor], features: Tensor, hidden_state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the action, (...), in (-1, 1), and the next hidden state.

    Args:
        weights: those of :func:`unpack_weights`; leading dimensions broadcast against those of the features, so that
            the layers of a population, (P, L, F), need weights (P, 1, F, H).
        features: (..., F).
        hidden_state: (..., H), or (..., 0) if there is no recurrent weight.
    """
    z = _product(features, weights["input"]) + weights["bias"]
    if "recurrent" in weights:
        gate, new = (z + _product(hidden_state, weights["recurrent"])).chunk(2, dim=-1)
        hidden_state = torch.lerp(hidden_state, torch.tanh(new), torch.sigmoid(gate))
        hidden = hidden_state
    else:
        hidden = torch.tanh(z)
    action = _product(hidden, weights["output"]) + weights["output_bias"]
    return torch.tanh(action).squeeze(-1), hidden_state


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """The product x W for x (..., F) and W (..., F, H)."""
    if weight.ndim > 2 and weight.shape[-3] == 1:  # rows that share their weights: no copy of them for each
        return torch.matmul(x, weight.squeeze(-3))
    return torch.matmul(x.unsqueeze(-2), weight).squeeze(-2)


def apply_action(
    log_multiplier: Tensor,
    action: Tensor,
    backoff: Tensor | float,
    total_steps: float | Tensor,
    horizon_known: bool | Tensor,
    bounds: ActionBounds,
    step: int | Tensor = 0,
) -> Tensor:
    """Return the log-multiplier of this step, (...), in [lower, upper].

    Args:
        log_multiplier: that of the step before.
        action: from :func:`signal_policy`.
        backoff: ``SignalState.backoff``: 1 where the spike guard sets the multiplier to a tenth (the action then counts
            for nothing).
        total_steps: T >= 1.
        horizon_known: whether T is known; where not, 1,000 stands for it.
        bounds: of the action.
        step: t, for bounds that anneal.
    """
    known = torch.zeros_like(action) + horizon_known
    pace = _pace(action, total_steps, horizon_known)
    up, down = (
        (bounds.max_increase * pace).clamp(max=_LARGEST_INCREASE),
        (bounds.max_decrease * pace).clamp(max=_LARGEST_DECREASE),
    )
    change = action.clamp(min=0) * up + action.clamp(max=0) * down
    guarded = torch.zeros_like(action) + backoff
    change = torch.where(guarded > 0, BACKOFF, change)
    if bounds.anneals:
        done = (torch.zeros_like(action) + step) * pace
        left, before = (1 - done).clamp(min=pace), (1 - done + pace).clamp(pace, torch.ones_like(pace))
        change = change + (left / before).log() * known
    moved = log_multiplier + change
    return moved.clamp(bounds.lower, bounds.upper)


def calibrate(
    log_multiplier: Tensor,
    update: Tensor,
    first_update: Tensor,
    total_steps: float | Tensor,
    horizon_known: bool | Tensor,
    bounds: ActionBounds,
    tried: Tensor | float = 0.0,
) -> Tensor:
    """Return the log-multiplier before the action: the calibrated one, once it can be.

    It can be where the first displacement is known. Where steps were taken and nothing moved, because the initial rate
    is below what the parameters' dtype can tell from 0, the multiplier grows e-fold.

    Args:
        log_multiplier: m of the step before, (...).
        update: ``SignalState.update``.
        first_update: ``SignalState.first_update``, 1 where that displacement is the first.
        total_steps: T >= 1.
        horizon_known: whether T is known; where not, 1,000 stands for it.
        bounds: of the action.
        tried: ``SignalState.gradients``; 0 does not look for a rate that moves something.
    """
    if not bounds.initial_update:
        return log_multiplier
    target = math.log(bounds.initial_update) + 0.5 * _pace(update, total_steps, horizon_known).log()
    jump = target - update.clamp(min=1e-30).log()
    unmoved = (torch.zeros_like(update) + tried > 1) & (update == 0)
    return (log_multiplier + torch.where(first_update > 0, jump, unmoved.to(jump))).clamp(bounds.lower, bounds.upper)


def _pace(like: Tensor, total_steps: float | Tensor, horizon_known: bool | Tensor) -> Tensor:
    """1 / T."""
    known = torch.zeros_like(like) + horizon_known
    return 1 / torch.where(known > 0, torch.zeros_like(like) + total_steps, NOMINAL_STEPS)
