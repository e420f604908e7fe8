"""MLR-SNet: a small LSTM that reads the training loss and sets the learning rate (arXiv 2007.14546)."""

import math
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from metastep.schedules.base import Loss, Schedule, State
from metastep.schedules.packed import PackedCells
from metastep.schedules.scale import ScaleRule

GateLayout = Literal["ifog_shifted", "ifgo"]

#: Where the gates i, f, o, g stand among the four blocks of z, and what is added to the forget gate.
_GATES: dict[GateLayout, tuple[tuple[int, int, int, int], float]] = {
    "ifog_shifted": ((0, 1, 2, 3), -1.0),
    "ifgo": ((0, 1, 3, 2), 0.0),
}

#: The network never sees a loss beyond this magnitude: float32 products of it stay finite.
_LARGEST_LOSS = 1e6
#: The output is sigmoid(x) for x in this range: in float32, too, it is neither 0 nor 1.
_LOGITS = (-30.0, 15.0)


class Cell(nn.Module):
    """One LSTM cell whose four gates are reached through ReLU bottlenecks, one for the input and one for h."""

    def __init__(self, input_size: int, hidden_size: int, bottleneck: int) -> None:
        super().__init__()
        self.input_bottleneck = nn.Linear(input_size, bottleneck)
        self.input_gates = nn.Linear(bottleneck, 4 * hidden_size)
        self.hidden_bottleneck = nn.Linear(hidden_size, bottleneck)
        self.hidden_gates = nn.Linear(bottleneck, 4 * hidden_size)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the four gates before their nonlinearities, (4H,), from x (input_size,) and h (H,)."""
        from_input: Tensor = self.input_gates(torch.relu(self.input_bottleneck(x)))
        from_hidden: Tensor = self.hidden_gates(torch.relu(self.hidden_bottleneck(hidden)))
        return from_input + from_hidden


class MLRSNet(Schedule):
    r"""A learned schedule: an LSTM from the training loss to a rate in (0, 1).

    .. math::
        z &= W_{i2}\,\mathrm{relu}(W_{i0} L + b_{i0}) + b_{i2} + W_{h2}\,\mathrm{relu}(W_{h0} h + b_{h0}) + b_{h2} \\
        c' &= \sigma(z_f - 1)\, c + \sigma(z_i) \tanh(z_g), \qquad h' = \sigma(z_o) \tanh(c') \\
        \alpha &= \sigma(w_o \cdot h' + b_o)

    Args:
        hidden_size: units H of each cell, >= 1.
        num_layers: cells on top of each other, >= 1; the first reads the loss, the others the h' below.
        gate_layout: how z is cut into four blocks: ``"ifog_shifted"`` (i, f, o, g; forget gate shifted by -1), for new
            training, or ``"ifgo"`` (i, f, g, o; no shift), with which the published weights were used.
        bottleneck: width of the ReLU layers before the gates; default H // 2, as published for images (its text
            variant uses H).
        scale: how :class:`metastep.LearnedLR` turns alpha into a rate.

    The state is one tensor of shape (num_layers, 2, hidden_size): h and c of each layer. The loss is detached: the
    graph of ``alpha`` reaches the weights of this network (and the given state), never those of the trained one.

    Raises:
        ValueError: for sizes below 1 or an unknown gate layout.

    Source: arXiv 2007.14546. *Differs from the paper:* a loss is clipped to +-1e6 and the last logit to [-30, 15],
    so that the output is in (0, 1) for every finite loss.

    Example:
        >>> net = MLRSNet()
        >>> alpha, state = net(2.3, net.init_state())
        >>> 0 < alpha.item() < 1
        True
    """

    relative: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = True

    def __init__(
        self,
        hidden_size: int = 50,
        num_layers: int = 1,
        gate_layout: GateLayout = "ifog_shifted",
        bottleneck: int | None = None,
        scale: ScaleRule | None = None,
    ) -> None:
        super().__init__()
        bottleneck = max(1, hidden_size // 2) if bottleneck is None else bottleneck
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "bottleneck": bottleneck}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {size!r}.")
        if gate_layout not in get_args(GateLayout):
            raise ValueError(f"gate_layout must be one of {', '.join(get_args(GateLayout))}, got {gate_layout!r}.")
        self.hidden_size, self.num_layers, self.bottleneck = hidden_size, num_layers, bottleneck
        self.gate_layout: GateLayout = gate_layout
        self.gate_order, self.forget_shift = _GATES[gate_layout]
        self.scale = ScaleRule() if scale is None else scale
        self.cells = nn.ModuleList(
            Cell(1 if layer == 0 else hidden_size, hidden_size, bottleneck) for layer in range(num_layers)
        )
        self.output = nn.Linear(hidden_size, 1)
        self._packed: PackedCells | None = None
        self.register_load_state_dict_post_hook(_weights_changed)  # type: ignore[no-untyped-call]

    def init_state(self) -> Tensor:
        """Zeros of shape (num_layers, 2, hidden_size), of the weights' dtype and on their device."""
        return self.output.weight.new_zeros(self.num_layers, 2, self.hidden_size)

    def forward(self, loss: Loss, state: State) -> tuple[Tensor, Tensor]:
        """Return alpha (0-d, in (0, 1)) and the next state, for a loss (float or one-element tensor)."""
        if tuple(state.shape) != (self.num_layers, 2, self.hidden_size):
            expected = (self.num_layers, 2, self.hidden_size)
            raise ValueError(f"state must have shape {expected}, got {tuple(state.shape)}; see init_state().")
        weight = self.output.weight
        if isinstance(loss, Tensor):
            x = loss.detach().reshape(1).to(device=weight.device, dtype=weight.dtype)
        else:
            x = weight.new_full((1,), min(max(loss, -_LARGEST_LOSS), _LARGEST_LOSS))
        x = x.clamp(-_LARGEST_LOSS, _LARGEST_LOSS)
        layers = []
        for cell, (hidden, memory) in zip(self.cells, state, strict=True):
            blocks = cell(x, hidden).chunk(4)
            z_input, z_forget, z_output, z_new = (blocks[place] for place in self.gate_order)
            memory = torch.sigmoid(z_forget + self.forget_shift) * memory + torch.sigmoid(z_input) * torch.tanh(z_new)
            x = torch.sigmoid(z_output) * torch.tanh(memory)
            layers.append(torch.stack((x, memory)))
        logit = self.output(x).clamp(*_LOGITS)
        return torch.sigmoid(logit).squeeze(0), torch.stack(layers)

    def query(self, loss: float, state: State) -> tuple[float, Tensor]:
        """:meth:`forward` for a float loss and CPU weights, several times faster: a handful of numpy calls."""
        packed = self._packed
        if packed is None or packed.is_stale():
            if not PackedCells.can_pack(self.output.weight):
                return super().query(loss, state)
            packed = self._packed = PackedCells(self)
        if not -_LARGEST_LOSS <= loss <= _LARGEST_LOSS:
            loss = math.copysign(_LARGEST_LOSS, loss)
        logit, state = packed(float(loss), state)
        if not _LOGITS[0] <= logit <= _LOGITS[1]:
            logit = min(max(logit, _LOGITS[0]), _LOGITS[1])
        return 1 / (1 + math.exp(-logit)), state

    def weights_changed(self) -> None:
        """Forget the packed copy of the weights; needed only after replacing a parameter or part of its ``data``."""
        self._packed = None

    def _apply(self, *args: Any, **kwargs: Any) -> Self:  # .to(), .double(), ... may replace the storage
        self._packed = None
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types; :meth:`from_config` makes the network again."""
        return {
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "gate_layout": self.gate_layout,
            "bottleneck": self.bottleneck,
            "scale": self.scale.config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MLRSNet":
        """A network of this configuration with fresh weights."""
        return cls(**{**config, "scale": ScaleRule(**config["scale"])})

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"hidden_size={self.hidden_size}, num_layers={self.num_layers}, "
            f"gate_layout={self.gate_layout!r}, bottleneck={self.bottleneck}, scale={self.scale}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # a cache


def _weights_changed(net: MLRSNet, incompatible_keys: object) -> None:
    net.weights_changed()
