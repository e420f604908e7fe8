"""From a policy with one rate to the same policy with a rate for each layer."""

import torch
from torch import Tensor

from metastep.core.policy import unpack_weights, weight_shapes
from metastep.lab.evolution.policy import Policy


def widen(weights: Tensor, policy: Policy) -> Tensor:
    """Return the weights of the policy of scope "layer" that sets the rates of one of scope "network" in every layer.

    A layer's own features come last, and their rows of the input's weights are 0: what a layer reads of itself counts
    for nothing until it is trained.

    Args:
        weights: of the policy of scope "network", (N,).
        policy: of either scope; with ``scope="layer"`` it takes what is returned.

    Raises:
        ValueError: if the weights are not as many as that policy has.
    """
    narrow, wide = policy._replace(scope="network"), policy._replace(scope="layer")
    if weights.shape != (narrow.size,):
        raise ValueError(
            f"weights must hold the {narrow.size} weights of a policy of scope 'network' with these signals and hidden "
            f"units, got shape {tuple(weights.shape)}."
        )
    parts = unpack_weights(weights, narrow.features, policy.hidden, policy.recurrent)
    rows, columns = weight_shapes(wide.features, policy.hidden, policy.recurrent)["input"]
    parts["input"] = torch.cat((parts["input"], weights.new_zeros(rows - narrow.features, columns)))
    return torch.cat([part.flatten() for part in parts.values()])
