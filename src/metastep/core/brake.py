"""The brake: has the loss or the gradient left the range in which it has been? Nothing to tune.

A step is skipped if its loss or its gradient is not finite, or, once ten of them are known and no brake was in the last
ten steps,

    r > max(2 slow(r) + 8 dev(r), 1/2)           the loss, with r = f / f_0
    |g| > max(4 slow(|g|) + 8 dev(|g|), peak)    the gradient

where slow is a slow average, dev that of the distance from it, and peak the largest |g| so far. All of it is free of
scale. The floors, half the initial loss and the largest gradient so far, are there for the end of a run, when a single
odd example in a batch multiplies a tiny loss. Skipping alone does not heal a network that was thrown far off: so after
a brake ten steps go by, at the reduced rate, in which only what is not finite brakes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from metastep.core.signal_state import SignalState

#: Observations before there is a range to leave, and steps after a brake in which finite numbers brake no more.
QUIET = 10
#: What a brake adds to the log-multiplier: a rate that is too high is seldom more than ten times too high.
CUT = -math.log(10)


def out_of_range(
    state: SignalState, ratio: Tensor, grad: Tensor, has_loss: Tensor, has_grad: Tensor, broken: Tensor
) -> tuple[Tensor, Tensor]:
    """Whether the step is to be skipped, and whether the multiplier is to be cut: bools, (...).

    Args:
        state: before this step.
        ratio: r.
        grad: |g|.
        has_loss: whether r is a number to go by.
        has_grad: whether |g| is.
        broken: whether the loss or the gradient is not finite.
    """
    loss_limit = (2 * state.slow_loss + 8 * state.loss_deviation).clamp(min=0.5)
    grad_limit = torch.maximum(4 * state.gradient_slow + 8 * state.gradient_deviation, state.gradient_peak)
    high = (has_loss & (state.losses >= QUIET) & (ratio > loss_limit)) | (
        has_grad & (state.gradients >= QUIET) & (grad > grad_limit)
    )
    rested = state.rest == 0
    return broken | (high & rested), (broken | high) & rested
