"""What the members of a population differ in, but for its weights: the policy that sets their rates."""

from typing import Literal, NamedTuple

from metastep.core.policy import Reach, weight_count
from metastep.core.signals import LAYER_SIGNALS, layer_signals, scope_feature_names


class Policy(NamedTuple):
    """What a schedule reads and how it moves: all but its weights.

    Attributes:
        signals: what is read, of ``metastep.core.signals.SIGNALS``.
        hidden: units H.
        recurrent: whether there is a hidden state.
        reach: where the log-multiplier starts and how far it gets.
        scope: ``"network"``: one rate; ``"layer"``: one for each parameter tensor, from the same weights, as in
            ``SignalSchedule``.
    """

    signals: tuple[str, ...]
    hidden: int = 16
    recurrent: bool = False
    reach: Reach = Reach()
    scope: Literal["network", "layer"] = "network"

    @property
    def features(self) -> int:
        """Inputs of the network."""
        return len(scope_feature_names(self.signals, self.scope))

    @property
    def size(self) -> int:
        """N, the number of weights."""
        return weight_count(self.features, self.hidden, self.recurrent)


def check_scope(policy: Policy) -> None:
    """Raise a ValueError for an unknown scope, or one of layers without a signal that a layer has of its own."""
    if policy.scope not in ("network", "layer"):
        raise ValueError(f"scope must be 'network' or 'layer', got {policy.scope!r}.")
    if policy.scope == "layer" and not layer_signals(policy.signals):
        raise ValueError(
            f"signals must name one of {', '.join(LAYER_SIGNALS)} at least, got {', '.join(policy.signals)}; a layer "
            "needs a signal of its own."
        )
