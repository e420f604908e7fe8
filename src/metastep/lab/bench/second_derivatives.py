"""Losses for optimizers that differentiate twice: fused kernels have one derivative, plain operations have all."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metastep.lab.tasks.batches import Batch


def twice_differentiable(loss: Callable[[nn.Module, Batch], Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the same loss without the fused kernels of attention, and of cuDNN for recurrent networks.

    Args:
        loss: the mean loss of a batch, () with a graph.
    """

    def computed(model: nn.Module, batch: Batch) -> Tensor:
        with ExitStack() as kernels:
            kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):  # convolutions keep cuDNN
                kernels.enter_context(torch.backends.cudnn.flags(enabled=False))
            return loss(model, batch)

    return computed
