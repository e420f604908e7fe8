"""The arithmetic of MLR-SNet for one float loss on the CPU, in as few numpy calls as possible.

A query of 11,776 weights is all call overhead: eager torch spends most of it on some 25 small operators. Here the two
bottlenecks of a layer become one matrix, their gates another, biases become a column, and
sigmoid(z) = tanh(z / 2) / 2 + 1/2 makes one tanh do for all four gates (the inner 1/2 is folded into the matrix).
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from metastep.schedules.mlrsnet import Cell, MLRSNet

Array = npt.NDArray[Any]

_version = attrgetter("_version")
_dot, _maximum, _tanh, _multiply, _add = np.dot, np.maximum, np.tanh, np.multiply, np.add


class PackedCells:
    """The weights of an :class:`MLRSNet`, rearranged; call it with a loss and a state."""

    def __init__(self, net: MLRSNet) -> None:
        self._parameters = list(net.parameters())
        self._versions = list(map(_version, self._parameters))
        self._latest: tuple[Tensor | None, list[tuple[Array, Array]]] = (
            None,
            [],
        )  # the last state given out, and its parts
        self._shape = (net.num_layers, 2, net.hidden_size)
        self._layers = [_PackedCell(cell, net) for cell in net.cells]  # type: ignore[arg-type]
        self._output: Array = net.output.weight.detach()[0].numpy().copy()
        self._live_bias: Array = net.output.bias.detach().numpy()
        self._output_bias: float = self._live_bias.item()

    @staticmethod
    def can_pack(weight: Tensor) -> bool:
        """True for float32 and float64 weights on the CPU."""
        return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)

    def is_stale(self) -> bool:
        """True once a parameter was written in place.

        Fused optimizers do not count versions, but every step on the weights moves the last bias.
        """
        return self._live_bias.item() != self._output_bias or list(map(_version, self._parameters)) != self._versions

    def __call__(self, loss: float, state: Tensor) -> tuple[float, Tensor]:
        """Return the logit of alpha and the next state (num_layers, 2, H)."""
        old = self._latest[1] if state is self._latest[0] else self._parts(state.detach().numpy())
        array: Array = np.empty(self._shape, self._output.dtype)
        new = self._parts(array)
        below: float | Array = loss
        for cell, before, after in zip(self._layers, old, new, strict=True):
            below = cell(below, *before, *after)
        state = torch.from_numpy(array)
        self._latest = state, new
        return float(self._output.dot(below)) + self._output_bias, state

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
