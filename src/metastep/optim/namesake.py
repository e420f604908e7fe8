"""What the plain path needs to be torch.optim's namesake bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from metastep.optim.options import Group


def start_step(parameter: Tensor, group: Group) -> Tensor:
    """A step counter as torch.optim makes it: on the device only where its kernels need it there."""
    if group.get("capturable") or group.get("fused"):
        return torch.zeros((), dtype=torch.float32, device=parameter.device)
    double = torch.get_default_dtype() == torch.float64
    return torch.zeros((), dtype=torch.float64 if double else torch.float32)


def start_buffer(parameter: Tensor, value: float = 0.0) -> Tensor:
    """A buffer like the parameter, memory format included."""
    filled = complex(value, value) if parameter.is_complex() else value
    return torch.full_like(parameter, filled, memory_format=torch.preserve_format)
