"""A schedule that reacts: a small network that reads signals of the run and moves the logarithm of the rate."""

import copy
import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from metastep.core.policy import (
    ActionBounds,
    apply_action,
    calibrate,
    init_hidden,
    signal_policy,
    unpack_weights,
    weight_shapes,
)
from metastep.core.signals import (
    LAYER_SIGNALS,
    SIGNALS,
    SignalState,
    check_signals,
    features,
    init_signals,
    layer_features,
    layer_signals,
    observe,
    scope_feature_names,
)
from metastep.schedules.base import (
    LearnedSchedule,
    Loss,
    Observation,
    between,
    checked_base,
    one_of,
    require,
    weight_dtype,
    whole,
)

Scope = Literal["network", "layer"]

_WIDTH = len(SignalState._fields)


class SignalSchedule(LearnedSchedule):
    r"""A learned schedule that reads the loss, the progress and the alignment of steps, and starts low.

    .. math::
        h_t = \tanh(x_t W_1 + b_1), \quad d_t = \tanh(h_t w_2 + b_2), \quad
        m_{t+1} = \mathrm{clip}(m_t + d_t\, p), \quad \eta_{k,t} = \eta_{k,0}\, e^{m_{t+1}}

    with x the signals (:mod:`metastep.core.signals`: all dimensionless), m the logarithm of the rate over the group's
    initial rate, and p = min(1, max_increase / T) upward, min(ln 10, max_decrease / T) downward. Fresh weights hold the
    rate where it starts; train them with :class:`metastep.MetaLearner` or over a population of tasks.

    Args:
        signals: what is read, names of ``metastep.core.signals.SIGNALS``. ``("loss",)`` with ``recurrent=True`` is the
            family of MLR-SNet.
        hidden: units H, >= 1.
        recurrent: whether h is kept from step to step, by a gate: :math:`h_t = (1-z) h_{t-1} + z \tanh(n)`.
        scope: ``"network"``: one rate. ``"layer"``: one for each parameter, from the same weights, which then read the
            layer's own signals beside the network's.
        total_steps: T, the horizon; None: unknown, until ``LearnedLR`` is told. Its signals are then masked, and 1,000
            stands for T in p. From step T on the rate stays as it is.
        bounds: where m starts and how far it gets, a :class:`metastep.core.policy.ActionBounds`.
        trained_for: the base of the optimizer for which the weights were trained ("sgd", "adamw", ...), or several,
            "sgd, sgd-momentum"; :class:`metastep.LearnedLR` warns of another. None: unknown.

    A spike guard needs no tuning: a step whose loss or gradient is not finite, or far outside the range of those
    before, is skipped, and the rate backs off to a tenth; see :mod:`metastep.core.signals` and
    ``LearnedLR.skipped_steps``.

    The state is one tensor, (1 + L, S + 1 + H): of the network, and of each of L layers, the averages of the signals, m
    and h.

    Raises:
        ValueError: for an unknown signal or arguments out of range.

    Example:
        >>> schedule = SignalSchedule(total_steps=100)
        >>> net = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> lr = LearnedLR(optimizer, schedule)
        >>> for _ in range(2):
        ...     loss = net(torch.ones(3)).square().sum()
        ...     loss.backward()
        ...     lr.observe(loss)
        ...     optimizer.step()
        >>> 0 < lr.get_last_lr()[0] < 0.01  # it starts low
        True
    """

    relative: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    sizes = MappingProxyType({"hidden": "elements"})

    def __init__(
        self,
        signals: Sequence[str] = SIGNALS,
        hidden: int = 16,
        recurrent: bool = False,
        scope: Scope = "network",
        *,
        total_steps: int | None = None,
        bounds: ActionBounds | None = None,
        trained_for: str | None = None,
    ) -> None:
        super().__init__()
        self.signals = check_signals(signals)
        self.hidden = whole("hidden", hidden, 1, "16 units are usual")
        self.recurrent = bool(recurrent)
        self.scope: Scope = one_of("scope", scope, ("network", "layer"))
        self.total_steps = None if total_steps is None else whole("total_steps", total_steps, 1)
        self.bounds = _checked(ActionBounds() if bounds is None else bounds)
        self.trained_for = checked_base(trained_for)
        self.monitors = self.scope
        self.layers = 0  # how many rates LearnedLR needs
        self.layer_signals = layer_signals(self.signals)
        self.feature_names = scope_feature_names(self.signals, self.scope)
        if scope == "layer":
            allowed = f"one of {', '.join(LAYER_SIGNALS)} at least"
            require(bool(self.layer_signals), "signals", allowed, signals, "a layer needs a signal of its own")
        with torch.inference_mode(False):  # so that the weights can learn, wherever the schedule was made
            self.weights = nn.Parameter(self._fresh_weights())

    def _fresh_weights(self) -> Tensor:
        """Random at the input, small at the output: the action is near 0, and every weight has a gradient."""
        count = len(self.feature_names)
        parts = []
        for name, shape in weight_shapes(count, self.hidden, self.recurrent).items():
            spread = {"input": 1 / math.sqrt(count), "recurrent": 1 / math.sqrt(self.hidden), "output": 0.001}
            parts.append(torch.randn(shape, dtype=weight_dtype()).flatten() * spread.get(name, 0.0))
        return torch.cat(parts)

    def flat_weights(self) -> Tensor:
        """A copy of all weights as one vector, (N,), in the order of :func:`metastep.core.policy.weight_shapes`."""
        return self.weights.detach().clone()

    @torch.no_grad()
    def load_flat(self, vector: Tensor) -> None:
        """Take all weights from one vector, (N,).

        Raises:
            ValueError: if it has another length, or holds a number that is not finite.
        """
        if vector.shape != self.weights.shape or not vector.isfinite().all():
            raise ValueError(
                f"vector must hold {self.weights.numel()} finite weights, got shape {tuple(vector.shape)}; "
                "build the schedule with the signals, hidden and recurrent of the one that was saved."
            )
        self.weights.copy_(vector)

    def init_state(self) -> Tensor:
        """No step observed, m at its start, h at 0; (1 + L, S + 1 + H), of the weights' dtype and on their device."""
        rows, like = 1 + self.layers * (self.scope == "layer"), self.weights.detach()
        signals = init_signals((rows,), like.dtype, like.device).packed()
        start = like.new_full((rows, 1), self.bounds.start)
        return torch.cat((signals, start, init_hidden((rows,), self.hidden, self.recurrent, like)), dim=-1)

    def forward(self, loss: Loss | Observation, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the multiplier of this step, 0-d or (L,) of the layers, and the next state.

        Args:
            loss: a :class:`metastep.schedules.base.Observation`, or a loss alone, where nothing is monitored.
            state: from :meth:`init_state` or the step before.
        """
        reading = loss if isinstance(loss, Observation) else self._loss_alone(loss)
        known, steps = self.total_steps is not None, float(self.total_steps or 1)
        state = state.to(self.weights.dtype)  # the weights may have become double since
        network = observe(SignalState.unpacked(state[0, :_WIDTH]), _to(state, reading.loss), *reading.network.unbind())
        log_multiplier, hidden = state[:, _WIDTH], state[:, _WIDTH + 1 :]
        done = network.steps - 1
        first = network.update, network.first_update, steps, known, self.bounds, network.gradients
        if self.scope == "network":
            signals = network.packed().unsqueeze(0)
            log_multiplier = calibrate(log_multiplier, *first)
            x = self._features(network, log_multiplier[0], done).unsqueeze(0)
        else:
            assert reading.layers is not None
            layers = observe(SignalState.unpacked(state[1:, :_WIDTH]), None, *reading.layers.unbind(-1))
            signals = torch.cat((network.packed().unsqueeze(0), layers.packed()))
            log_multiplier = calibrate(
                log_multiplier[1:], *first
            )  # together: the first step of a bias is all that it is
            hidden = hidden[1:]
            own = features(layers, log_multiplier, done, steps, self.layer_signals)
            x = layer_features(self._features(network, log_multiplier.mean(), done), own)
        weights = unpack_weights(self.weights, len(self.feature_names), self.hidden, self.recurrent)
        action, hidden = signal_policy(weights, x, hidden)
        moved = apply_action(log_multiplier, action, network.backoff, steps, known, self.bounds, step=done)
        if known:  # the rate stays as it is beyond the horizon, but for the spike guard
            moved = torch.where((done < steps) | (network.backoff > 0), moved, log_multiplier)
        rates = moved.exp()
        if self.scope == "network":
            return rates[0], torch.cat((signals, moved.unsqueeze(-1), hidden), dim=-1)
        rest = torch.cat((moved.unsqueeze(-1), hidden), dim=-1)
        of_network = torch.cat((moved.mean().reshape(1, 1), hidden.new_zeros(1, hidden.shape[-1])), dim=-1)
        return rates, torch.cat((signals, torch.cat((of_network, rest))), dim=-1)

    def _features(self, network: SignalState, log_multiplier: Tensor, done: Tensor) -> Tensor:
        known, steps = self.total_steps is not None, float(self.total_steps or 1)
        return features(network, log_multiplier, done, steps, self.signals, known)

    def _loss_alone(self, loss: Loss) -> Observation:
        zeros = self.weights.new_zeros(4, dtype=torch.float32)
        layers = zeros.expand(self.layers, 4) if self.scope == "layer" else None
        return Observation(torch.as_tensor(loss, device=zeros.device).detach().reshape(()), zeros, layers)

    def skips(self, state: Tensor) -> Tensor:
        """Whether the step that led to this state is to be skipped."""
        return state[0, _SKIPPED] > 0

    def skipped_steps(self, state: Tensor) -> int:
        """How many steps were to be skipped so far."""
        return int(state[0, _SKIPS])

    def log_multipliers(self, state: Tensor) -> Tensor:
        """M of the network, 0-d, or of each layer, (L,)."""
        return state[0, _WIDTH] if self.scope == "network" else state[1:, _WIDTH]

    def with_total_steps(self, total_steps: int) -> Self:
        """The same weights over a horizon of ``total_steps``; itself if it has one already."""
        return self if self.total_steps is not None else self.extended(total_steps)

    def extended(self, total_steps: int) -> Self:
        """The same weights, shared, over another horizon."""
        return self._sharing(total_steps=whole("total_steps", total_steps, 1))

    def with_layers(self, layers: int) -> Self:
        """The same weights, shared, for this many rates."""
        return self._sharing(layers=layers)

    def _sharing(self, **attributes: int) -> Self:
        other = copy.copy(self)
        other.__dict__.update(attributes)
        return other

    def saved_state(self, state: Tensor) -> dict[str, Any]:
        """The state with the names of what the signals remember, so that it can be read when there are others."""
        return {"fields": list(SignalState._fields), "rows": state}

    def loaded_state(self, saved: dict[str, Any]) -> Tensor:
        """The state, with what it does not know as before the first step, and without what is no longer there."""
        fields, rows = list(saved["fields"]), saved["rows"]
        fresh = self.init_state()[0, :_WIDTH]
        known = [
            rows[:, fields.index(name)] if name in fields else fresh[at].expand(len(rows)).to(rows)
            for at, name in enumerate(SignalState._fields)
        ]
        return torch.cat((torch.stack(known, dim=-1), rows[:, len(fields) :]), dim=-1)

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types; :meth:`from_config` makes the schedule again."""
        return {**super().config(), "bounds": self.bounds._asdict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A schedule of this configuration with fresh weights."""
        return cls(**{**config, "bounds": ActionBounds(**config["bounds"])})


_SKIPPED, _SKIPS = SignalState._fields.index("skipped"), SignalState._fields.index("skips")


def _to(state: Tensor, loss: Tensor | None) -> Tensor | None:
    return None if loss is None else loss.to(state)


def _checked(bounds: ActionBounds) -> ActionBounds:
    between("bounds.lower", bounds.lower, -80.0, 0.0, "it is a logarithm")
    between("bounds.upper", bounds.upper, 0.0, 80.0, "it is a logarithm")
    between("bounds.start", bounds.start, bounds.lower, bounds.upper, "it is a logarithm within the bounds")
    between("bounds.max_increase", bounds.max_increase, 0.0, math.inf, "0 never rises")
    between("bounds.max_decrease", bounds.max_decrease, 0.0, math.inf, "0 never falls")
    between("bounds.initial_update", bounds.initial_update, 0.0, math.inf, "0 does not calibrate")
    return bounds
