"""What the schedules of a population have in common: all of a policy but its weights."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metastep.core.policy import ActionBounds, unpack_weights, weight_count, weight_shapes
from metastep.core.signals import LAYER_SIGNALS, layer_signals, scope_feature_names


class Policy(NamedTuple):
    """What a schedule reads and how it moves.

    Attributes:
        signals: what is read, of ``metastep.core.signals.SIGNALS``.
        hidden: units H.
        recurrent: whether there is a hidden state.
        bounds: where the log-multiplier starts and how far it gets.
        scope: ``"network"``: one rate; ``"layer"``: one for each parameter tensor, from the same weights, as in
            ``SignalSchedule``.
    """

    signals: tuple[str, ...]
    hidden: int = 16
    recurrent: bool = False
    bounds: ActionBounds = ActionBounds()
    scope: Literal["network", "layer"] = "network"

    @property
    def features(self) -> int:
        """Inputs of the network."""
        return len(scope_feature_names(self.signals, self.scope))

    @property
    def size(self) -> int:
        """N, the number of weights."""
        return weight_count(self.features, self.hidden, self.recurrent)

    def check_scope(self) -> None:
        """Raise a ValueError for an unknown scope, or one of layers without a signal that a layer has of its own."""
        if self.scope not in ("network", "layer"):
            raise ValueError(f"scope must be 'network' or 'layer', got {self.scope!r}.")
        if self.scope == "layer" and not layer_signals(self.signals):
            raise ValueError(
                f"signals must name one of {', '.join(LAYER_SIGNALS)} at least, got {', '.join(self.signals)}; a layer "
                "needs a signal of its own."
            )


def per_layer_weights(weights: Tensor, policy: Policy) -> Tensor:
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
