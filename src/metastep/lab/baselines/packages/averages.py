"""Showing the weights at which an averaging optimizer is to be evaluated, and putting the others back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim import Optimizer


@contextmanager
def restored(optimizer: Optimizer) -> Iterator[None]:
    """Within, the parameters may be changed; afterwards they are as before, bit for bit."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)
