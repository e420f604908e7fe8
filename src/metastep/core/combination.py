"""How the rates of several levels become one: alpha* = sum_j gamma_j alpha_j, and how the weights gamma are learned.

With G_j = df/dgamma_j, the sum over the groups of level j of alpha_j times df/dalpha of a single rate there:

    project   y_j = max(gamma_j - delta (G_j - mean G), eps);  gamma = y / sum y      stays on the simplex
    softmax   gamma = softmax(z);  z_j <- z_j - delta gamma_j (G_j - sum_k gamma_k G_k)
    divide    y_j = max(gamma_j - delta G_j, eps);  gamma = y / sum y                 the paper's; moves even where all
                                                                                      levels hold the same rate
    fixed     gamma stays
"""

from __future__ import annotations

import torch
from torch import Tensor

COMBINATIONS = ("project", "softmax", "divide", "fixed")

SMALLEST_WEIGHT = 1e-8


def learn_weights(combine: str, weights: Tensor, slopes: Tensor, weight_lr: float) -> Tensor:
    """One step on the combination weights; a step that is not finite is left out.

    Args:
        combine: One of `COMBINATIONS`.
        weights: gamma, (levels,), positive, summing to 1.
        slopes: G, (levels,): derivative of the loss with respect to each weight.
        weight_lr: delta, >= 0.

    Returns:
        The next weights, (levels,).
    """
    if combine == "fixed":
        return weights
    if combine == "softmax":
        mean = (weights * slopes).sum()
        moved = torch.softmax(weights.log() - weight_lr * weights * (slopes - mean), dim=0)
    else:
        pulled = slopes - slopes.mean() if combine == "project" else slopes
        moved = (weights - weight_lr * pulled).clamp(min=SMALLEST_WEIGHT)
        moved = moved / moved.sum()
    return torch.where(moved.isfinite().all(), moved, weights)
