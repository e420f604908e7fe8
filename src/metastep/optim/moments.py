"""The direction of Adam and its AMSGrad variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from metastep.core.levels import accumulator
from metastep.optim.direction import Buffers, Direction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

FIRST, SECOND, LARGEST = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"


@dataclass(frozen=True, kw_only=True)
class AdamDirection(Direction):
    """u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) with moving averages m of g and v of g^2."""

    beta1: float
    beta2: float
    eps: float
    amsgrad: bool

    @property
    def buffers(self) -> tuple[str, ...]:
        """Both moments, and the largest second one where AMSGrad asks for it."""
        return (FIRST, SECOND, LARGEST) if self.amsgrad else (FIRST, SECOND)

    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Take in this step's gradients."""
        del counts
        torch._foreach_lerp_(buffers[FIRST], gradients, 1 - self.beta1)
        torch._foreach_mul_(buffers[SECOND], self.beta2)
        torch._foreach_addcmul_(buffers[SECOND], gradients, gradients, 1 - self.beta2)
        if self.amsgrad:
            torch._foreach_maximum_(buffers[LARGEST], buffers[SECOND])

    def recover(self, buffers: Buffers, counts: Tensor) -> Iterator[Tensor]:
        """The direction u of the last advance, tensor by tensor: one temporary serves after the other."""
        corrections = (correction.unbind() for correction in self.corrections(counts))
        second = buffers[LARGEST if self.amsgrad else SECOND]
        for m, v, by_first, by_root in zip(buffers[FIRST], second, *corrections, strict=True):
            u = (m / by_first).div_(v.sqrt().div_(by_root).add_(self.eps))
            yield u.to(m.dtype)  # which a 0-d tensor lost to the corrections

    def corrections(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Bias corrections 1 - b1^t and sqrt(1 - b2^t), (T,); those of t = 1 before the first step, where m is 0."""
        t = counts.clamp(min=1).to(accumulator(counts.device))
        return 1 - self.beta1**t, (1 - self.beta2**t).sqrt()
