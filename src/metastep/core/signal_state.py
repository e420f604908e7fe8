"""What the signals remember from step to step: a handful of averages, as tensors of one shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


class SignalState(NamedTuple):
    """What the signals remember: tensors of one shape, (...); floats, all of one dtype.

    Attributes:
        steps: observed steps.
        losses: observed finite losses, from the first that is not 0.
        first_loss: that loss, by which all others are divided; 0 before it.
        fast_loss: fast average of f / f_0.
        slow_loss: slow average of f / f_0.
        loss_deviation: slow average of the distance of f / f_0 from its slow average.
        alignment_fast: fast average of c, from 0.
        alignment_slow: slow average of c, from 0.
        gradients: observed finite gradient norms that are not 0.
        gradient_fast: fast average of |g|.
        gradient_slow: slow average of |g|.
        gradient_deviation: slow average of the distance of |g| from its slow average.
        gradient_peak: largest |g| so far.
        update: fast average of |u| / |theta|; 0 before the first displacement.
        drop: fast average of |g| |u| / |f|; 0 before the first displacement.
        landing: 1 at the step that sees the first displacement, otherwise 0.
        braked: 1 if the present step is to be skipped, otherwise 0.
        cut: 1 if the multiplier is to be cut at the present step, otherwise 0.
        rest: steps until a finite loss or gradient may brake again.
        brakes: how many steps were to be skipped.
    """

    steps: Tensor
    losses: Tensor
    first_loss: Tensor
    fast_loss: Tensor
    slow_loss: Tensor
    loss_deviation: Tensor
    alignment_fast: Tensor
    alignment_slow: Tensor
    gradients: Tensor
    gradient_fast: Tensor
    gradient_slow: Tensor
    gradient_deviation: Tensor
    gradient_peak: Tensor
    update: Tensor
    drop: Tensor
    landing: Tensor
    braked: Tensor
    cut: Tensor
    rest: Tensor
    brakes: Tensor

    def packed(self) -> Tensor:
        """One tensor (..., S)."""
        return torch.stack(self, dim=-1)

    @classmethod
    def unpacked(cls, packed: Tensor) -> SignalState:
        """The state in a tensor (..., S)."""
        return cls(*packed.unbind(-1))


def init_signals(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> SignalState:
    """The state before the first step, of tensors of this shape."""
    packed = torch.zeros(*shape, len(SignalState._fields), dtype=dtype, device=device)
    return SignalState.unpacked(packed)
