"""What moves the weights of a schedule unless the user says otherwise."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Adam

#: As published.
WEIGHT_DECAY = 1e-4


def published_adam(weights: Sequence[nn.Parameter], meta_lr: float) -> Adam:
    """Adam, with its state from the start rather than from its first step.

    ``torch.distributed.checkpoint`` loads only what is there already.
    """
    optimizer = Adam(weights, lr=meta_lr, weight_decay=WEIGHT_DECAY)
    for weight in weights:
        zeros = {
            key: torch.zeros_like(weight, memory_format=torch.preserve_format) for key in ("exp_avg", "exp_avg_sq")
        }
        optimizer.state[weight] = {"step": torch.tensor(0.0), **zeros}
    return optimizer
