"""Low-rank adapters: a network that stays as it is, and small matrices beside its linear layers that are trained."""

import math

from torch import Tensor, nn
from torch.nn.functional import linear


class LowRank(nn.Module):
    """y = W x + b + (alpha / rank) B A x, of which A and B are trained (LoRA, Hu et al., arXiv 2106.09685).

    A is drawn from torch's global generator, B is zero: the layer gives at first what the linear layer gives.

    Args:
        layer: The linear layer, (inputs to outputs); it is frozen.
        rank: Rows of A, (rank, inputs), and columns of B, (outputs, rank).
        alpha: Of the factor.

    Raises:
        ValueError: If the rank is not positive.
    """

    def __init__(self, layer: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be >= 1, got {rank}.")
        self.layer = layer.requires_grad_(False)
        self.factor = alpha / rank
        self.down = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        out: Tensor = self.layer(x) + self.factor * linear(linear(x, self.down), self.up)
        return out


def with_low_rank(network: nn.Module, *, rank: int, alpha: float) -> nn.Module:
    """Freeze a network and put an adapter beside each of its linear layers; return it.

    Args:
        network: It is changed. Linear layers must be called as modules.
        rank: Of each adapter.
        alpha: Adapters are multiplied by alpha / rank.

    Raises:
        ValueError: If it has no linear layer inside.
    """
    network.requires_grad_(False)
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    if not places:
        raise ValueError(f"network must have linear layers to adapt, got {type(network).__name__} without.")
    for parent, name, child in places:
        setattr(parent, name, LowRank(child, rank=rank, alpha=alpha))
    return network
