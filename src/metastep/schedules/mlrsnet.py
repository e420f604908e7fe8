"""MLR-SNet: a small LSTM that reads the training loss and sets the learning rate (arXiv 2007.14546)."""

import math
from operator import attrgetter
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from metastep.schedules.base import LearnedSchedule, Loss, State, checked_base, weight_dtype
from metastep.schedules.compiled_query import CompiledCells
from metastep.schedules.scale import ScaleRule

Array = npt.NDArray[Any]

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

    def __init__(self, input_size: int, hidden_size: int, bottleneck: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_bottleneck = nn.Linear(input_size, bottleneck, dtype=dtype)
        self.input_gates = nn.Linear(bottleneck, 4 * hidden_size, dtype=dtype)
        self.hidden_bottleneck = nn.Linear(hidden_size, bottleneck, dtype=dtype)
        self.hidden_gates = nn.Linear(bottleneck, 4 * hidden_size, dtype=dtype)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the four gates before their nonlinearities, (4H,), from x (input_size,) and h (H,)."""
        from_input: Tensor = self.input_gates(torch.relu(self.input_bottleneck(x)))
        from_hidden: Tensor = self.hidden_gates(torch.relu(self.hidden_bottleneck(hidden)))
        return from_input + from_hidden


class MLRSNet(LearnedSchedule):
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
        scale: how :class:`metastep.LearnedLR` turns alpha into a rate. The measured scale is made for SGD; over another
            optimizer use ``ScaleRule(mode="relative")``, which multiplies alpha by the optimizer's own rate.
        trained_for: the base for which the weights are learned, or several, "sgd, sgd-momentum"; None: for nothing yet
            (:class:`metastep.MetaLearner` writes it down).

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
    sizes = MappingProxyType({"hidden_size": "elements", "bottleneck": "elements", "num_layers": "tensors"})
    name = "mlr-snet"
    summary = "an LSTM on the loss, learned in the loop on inner_valid"
    source = "arXiv 2007.14546"

    def __init__(
        self,
        hidden_size: int = 50,
        num_layers: int = 1,
        gate_layout: GateLayout = "ifog_shifted",
        bottleneck: int | None = None,
        scale: ScaleRule | None = None,
        trained_for: str | None = None,
    ) -> None:
        super().__init__()
        bottleneck = max(1, hidden_size // 2) if bottleneck is None else bottleneck
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "bottleneck": bottleneck}
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {size!r}.")
        if gate_layout not in get_args(GateLayout):
            raise ValueError(f"gate_layout must be one of {', '.join(get_args(GateLayout))}, got {gate_layout!r}.")
        self.hidden_size, self.num_layers, self.bottleneck = hidden_size, num_layers, bottleneck
        self.gate_layout: GateLayout = gate_layout
        self.gate_order, self.forget_shift = _GATES[gate_layout]
        self.scale = ScaleRule() if scale is None else scale
        self.trained_for = checked_base(trained_for)
        dtype = weight_dtype()
        with torch.inference_mode(False):  # so that the weights can learn, wherever the network was made
            self.cells = nn.ModuleList(
                Cell(1 if layer == 0 else hidden_size, hidden_size, bottleneck, dtype) for layer in range(num_layers)
            )
            self.output = nn.Linear(hidden_size, 1, dtype=dtype)
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
        state = state.to(weight.dtype)  # the weights may have become double since
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
        return {**super().config(), "scale": self.scale.config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A network of this configuration with fresh weights."""
        return cls(**{**config, "scale": ScaleRule(**config["scale"])})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # a cache


def _weights_changed(net: MLRSNet, incompatible_keys: object) -> None:
    net.weights_changed()


# ---- the same arithmetic for one float loss on the CPU, in as few numpy calls as possible
#
# A query of 11,776 weights is all call overhead: eager torch spends most of it on some 25 small operators. Here the two
# bottlenecks of a layer become one matrix, their gates another, biases become a column, and sigmoid(z) = tanh(z / 2)
# / 2 + 1/2 makes one tanh do for all four gates (the inner 1/2 is folded into the matrix).

_version = attrgetter("_version")
_dot, _maximum, _tanh, _multiply, _add = np.dot, np.maximum, np.tanh, np.multiply, np.add


class PackedCells:
    """The weights of an :class:`MLRSNet`, rearranged; call it with a loss and a state."""

    def __init__(self, net: MLRSNet) -> None:
        self._parameters = list(net.parameters())
        self._versions = list(map(_version, self._parameters))
        self._latest: Tensor | None = None  # the last state given out; its parts, and its address
        self._latest_parts: list[tuple[Array, Array]] = []
        self._place = 0
        self._shape = (net.num_layers, 2, net.hidden_size)
        self._layers = [_PackedCell(cell, net) for cell in net.cells]
        self._output: Array = net.output.weight.detach()[0].numpy().copy()
        self._live_bias: Array = net.output.bias.detach().numpy()
        self._output_bias: float = self._live_bias.item()
        self._compiled = CompiledCells.of([cell.matrices for cell in self._layers], self._output, self._output_bias)

    @staticmethod
    def can_pack(weight: Tensor) -> bool:
        """True for float32 and float64 weights on the CPU whose changes can be noticed."""
        known = weight.dtype in (torch.float32, torch.float64) and not weight.is_inference()
        return known and weight.device.type == "cpu"

    def is_stale(self) -> bool:
        """True once a parameter was written in place.

        Fused optimizers do not count versions, but every step on the weights moves the last bias.
        """
        return self._live_bias.item() != self._output_bias or list(map(_version, self._parameters)) != self._versions

    def __call__(self, loss: float, state: Tensor) -> tuple[float, Tensor]:
        """Return the logit of alpha and the next state (num_layers, 2, H)."""
        known = state is self._latest and state.data_ptr() == self._place  # its data were not replaced
        if not known:
            self._latest_parts = self._parts(state.detach().numpy())
        if self._compiled is not None:
            if not known:
                state = state.detach().to(self._parameters[0].dtype).contiguous()
            following = torch.empty(self._shape, dtype=state.dtype)
            self._latest, self._place = following, following.data_ptr()
            return self._compiled.logit(loss, state.data_ptr(), self._place), following
        old, array = self._latest_parts, np.empty(self._shape, self._output.dtype)
        self._latest_parts = new = self._parts(array)
        below: float | Array = loss
        for cell, before, after in zip(self._layers, old, new, strict=True):
            below = cell(below, *before, *after)
        self._latest = torch.from_numpy(array)
        self._place = self._latest.data_ptr()
        return float(self._output.dot(below)) + self._output_bias, self._latest

    def _parts(self, state: Array) -> list[tuple[Array, Array]]:
        """The h and c of each layer; by index, because numpy takes longer over iteration."""
        if state.shape != self._shape:
            raise ValueError(f"state must have shape {self._shape}, got {state.shape}; see init_state().")
        return [(state[layer, 0], state[layer, 1]) for layer in range(self._shape[0])]


class _PackedCell:
    """One cell, for H hidden units, bottleneck B, and I inputs (1 in the first layer, H above it).

    ``into`` (2B + 1, H + I + 1) maps the source (h, x, 1) to both bottlenecks and a constant 1; ``gates`` (4H, 2B + 1)
    maps those to z / 2 of the gates i, f, o and to z of g. Both lie in memory by columns, which is the faster product.
    The buffers are scratch: no value in them outlives a call.
    """

    @torch.no_grad()
    def __init__(self, cell: Cell, net: MLRSNet) -> None:
        hidden, bottleneck = net.hidden_size, net.bottleneck
        into = net.output.weight.new_zeros(2 * bottleneck + 1, hidden + cell.input_bottleneck.in_features + 1)
        into[:bottleneck, hidden:-1] = cell.input_bottleneck.weight
        into[:bottleneck, -1] = cell.input_bottleneck.bias
        into[bottleneck:-1, :hidden] = cell.hidden_bottleneck.weight
        into[bottleneck:-1, -1] = cell.hidden_bottleneck.bias
        into[-1, -1] = 1

        bias = cell.input_gates.bias + cell.hidden_gates.bias
        blocks = torch.cat((cell.input_gates.weight, cell.hidden_gates.weight, bias[:, None]), dim=1).chunk(4)
        z_input, z_forget, z_output, z_new = (blocks[place] for place in net.gate_order)
        gates = torch.cat((z_input / 2, z_forget / 2, z_output / 2, z_new))
        gates[hidden : 2 * hidden, -1] += net.forget_shift / 2

        self._into: Array = np.asfortranarray(into.numpy())
        self._gates: Array = np.asfortranarray(gates.numpy())
        self.matrices = self._into, self._gates
        dtype = self._into.dtype
        source = np.ones(into.shape[1], dtype)
        self._source, self._source_hidden, self._source_input = source, source[:hidden], source[hidden:-1]
        self._bottleneck = np.empty(2 * bottleneck + 1, dtype)
        z = np.empty(4 * hidden, dtype)
        self._z, self._sigmoids = z, z[: 3 * hidden]
        self._input, self._forget, self._exit, self._new = z.reshape(4, hidden)
        self._half = np.full_like(self._sigmoids, 0.5)  # arrays, because numpy takes longer over a scalar
        self._zero = np.zeros_like(self._bottleneck)

    def __call__(self, x: float | Array, old_hidden: Array, old_memory: Array, hidden: Array, memory: Array) -> Array:
        """Fill the new h and c, each (H,), from the old ones and the input; return the new h."""
        sigmoids, half = self._sigmoids, self._half
        self._source_hidden[:] = old_hidden
        if isinstance(x, float):
            self._source[-2] = x
        else:
            self._source_input[:] = x
        _dot(self._into, self._source, self._bottleneck)
        _maximum(self._bottleneck, self._zero, out=self._bottleneck)
        _dot(self._gates, self._bottleneck, self._z)
        _tanh(self._z, self._z)
        _multiply(sigmoids, half, sigmoids)
        _add(sigmoids, half, sigmoids)
        _multiply(self._forget, old_memory, memory)
        _multiply(self._input, self._new, hidden)
        _add(memory, hidden, memory)
        _tanh(memory, hidden)
        _multiply(hidden, self._exit, hidden)
        return hidden
