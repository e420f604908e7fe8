"""Small networks in P copies: P sets of weights, one batch, and every product a batched one.

A network is a list of parameter shapes with their initial spread, and a function of P parameter sets and one batch of
inputs. All copies start at the same weights and see the same batch; only their rates differ.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, scaled_dot_product_attention

Activation = Literal["relu", "tanh", "gelu"]
Norm = Literal["none", "layer", "batch"]
_ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "gelu": gelu}


@dataclass(frozen=True)
class Weight:
    """One parameter: its shape, the standard deviation of its initial values, and what is added to them."""

    shape: tuple[int, ...]
    std: float = 0.0
    mean: float = 0.0

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


class Network(ABC):
    """Outputs of P copies for one batch."""

    weights: list[Weight]

    @abstractmethod
    def forward(self, parameters: list[Tensor], inputs: Tensor) -> Tensor:
        """Return (P, ..., outputs).

        Args:
            parameters: for each weight (P, *shape).
            inputs: one batch for all copies, (B, ...).
        """

    @property
    def size(self) -> int:
        """D, the parameters of one copy."""
        return sum(weight.size for weight in self.weights)

    def split(self, flat: Tensor, piece: int = 1) -> list[Tensor]:
        """Views of (P, D) as the parameters; each begins at a multiple of ``piece``, with nothing used in between."""
        starts = accumulate((-(-weight.size // piece) * piece for weight in self.weights), initial=0)
        return [
            flat[:, start : start + weight.size].view(len(flat), *weight.shape)
            for start, weight in zip(starts, self.weights, strict=False)
        ]

    def init(self, generator: torch.Generator) -> Tensor:
        """Initial weights of one copy, (D,), float32 on the CPU."""
        parts = [torch.randn(w.size, generator=generator) * w.std + w.mean for w in self.weights]
        return torch.cat(parts)


class _Parts:
    """Reads parameters one after the other."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._left = iter(parameters)

    def linear(self, x: Tensor) -> Tensor:
        """X (P, B, in) -> (P, B, out), with a bias."""
        return torch.baddbmm(self.vector(), x, next(self._left))

    def vector(self) -> Tensor:
        """(P, n) as (P, 1, n)."""
        return next(self._left)[:, None]

    def matrix(self) -> Tensor:
        """(P, in, out) as it is."""
        return next(self._left)

    def norm(self, x: Tensor, kind: Norm) -> Tensor:
        """Normalise (P, rows, n): each row, or each column over the batch; then scale and shift."""
        if kind == "none":
            return x
        scale, shift = self.vector(), self.vector()
        if kind == "layer":
            return torch.addcmul(shift, layer_norm(x, x.shape[-1:]), scale)
        var, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        return torch.addcmul(shift, (x - mean) * (var + 1e-5).rsqrt(), scale)


def _linear(fan_in: int, fan_out: int, gain: float = 1.0) -> list[Weight]:
    return [Weight((fan_out,)), Weight((fan_in, fan_out), gain / math.sqrt(fan_in))]


def _norm(kind: Norm, width: int) -> list[Weight]:
    return [] if kind == "none" else [Weight((width,), mean=1.0), Weight((width,))]


class MLP(Network):
    """A perceptron; the gain of the initial weights differs between tasks as it does between libraries."""

    def __init__(
        self, inputs: int, hidden: tuple[int, ...], outputs: int, activation: Activation, norm: Norm, gain: float
    ) -> None:
        self.norm: Norm = norm
        self.activation = _ACTIVATIONS[activation]
        self.depth = len(hidden)
        self.weights = []
        for fan_in, fan_out in pairwise((inputs, *hidden)):
            self.weights += [*_linear(fan_in, fan_out, gain), *_norm(norm, fan_out)]
        self.weights += _linear((inputs, *hidden)[-1], outputs, gain)

    def forward(self, parameters: list[Tensor], inputs: Tensor) -> Tensor:
        """(B, ...) to (P, ..., outputs)."""
        parts = _Parts(parameters)
        x = inputs.flatten(1).expand(len(parameters[0]), -1, -1)
        for _ in range(self.depth):
            x = self.activation(parts.norm(parts.linear(x), self.norm))
        return parts.linear(x)


class ConvNet(Network):
    """3 x 3 convolutions, halving the resolution after the first, a global mean and a linear layer.

    The copies are groups of one convolution, (B, P C, H, W); the first, whose input they share, has no groups.
    """

    def __init__(
        self, channels: int, widths: tuple[int, ...], outputs: int, activation: Activation, norm: Norm
    ) -> None:
        self.batch_norm = norm != "none"
        self.activation = _ACTIVATIONS[activation]
        self.blocks = len(widths)
        self.weights = []
        for fan_in, fan_out in pairwise((channels, *widths)):
            self.weights += [Weight((fan_out,)), Weight((fan_out, fan_in, 3, 3), math.sqrt(2 / (9 * fan_in)))]
            self.weights += _norm("batch" if self.batch_norm else "none", fan_out)
        self.weights += _linear(widths[-1], outputs)

    def forward(self, parameters: list[Tensor], inputs: Tensor) -> Tensor:
        """(B, ...) to (P, ..., outputs)."""
        parts, copies, x = _Parts(parameters), len(parameters[0]), inputs
        for block in range(self.blocks):
            bias, kernel = parts.vector().flatten(), parts.matrix().flatten(0, 1)
            groups, stride = (copies, 2) if block else (1, 1)
            x = conv2d(x, kernel, bias, stride=stride, padding=1, groups=groups)
            if self.batch_norm:
                scale, shift = parts.vector().flatten(), parts.vector().flatten()
                x = batch_norm(x, None, None, scale, shift, training=True)
            x = self.activation(x)
        x = x.mean((2, 3)).view(len(inputs), copies, -1).transpose(0, 1)
        return parts.linear(x)


class Transformer(Network):
    """A causal transformer over tokens: embeddings, blocks with layer norm before each part, a tied output layer."""

    def __init__(self, vocabulary: int, width: int, blocks: int, heads: int, context: int) -> None:
        self.blocks, self.heads, self.width = blocks, heads, width
        self.weights = [Weight((vocabulary, width), 0.02), Weight((context, width), 0.02)]
        for _ in range(blocks):
            self.weights += [*_norm("layer", width), *_linear(width, 3 * width, 0.58), *_linear(width, width, 0.58)]
            self.weights += [*_norm("layer", width), *_linear(width, 2 * width, 0.58), *_linear(2 * width, width, 0.58)]
        self.weights += _norm("layer", width)

    def forward(self, parameters: list[Tensor], inputs: Tensor) -> Tensor:
        """(B, ...) to (P, ..., outputs)."""
        parts, (batch, time) = _Parts(parameters), inputs.shape
        embedding, positions = parts.matrix(), parts.matrix()
        copies = len(embedding)
        x = embedding[:, inputs] + positions[:, None, :time]
        x = x.view(copies, batch * time, self.width)
        for _ in range(self.blocks):
            x = x + self._attention(parts, parts.norm(x, "layer"), (copies, batch, time))
            x = x + parts.linear(gelu(parts.linear(parts.norm(x, "layer"))))
        x = torch.bmm(parts.norm(x, "layer"), embedding.transpose(1, 2))
        return x.view(copies, batch, time, -1)

    def _attention(self, parts: _Parts, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
        copies, batch, time = shape
        split = parts.linear(x).view(copies * batch, time, 3, self.heads, self.width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        return parts.linear(mixed.transpose(1, 2).reshape(copies, batch * time, self.width))


class Recurrent(Network):
    """A GRU or LSTM over tokens, with an embedding and an output layer."""

    def __init__(self, vocabulary: int, width: int, cell: Literal["gru", "lstm"]) -> None:
        self.width, self.cell = width, cell
        gates = 3 if cell == "gru" else 4
        spread = 1 / math.sqrt(3 * width)
        self.weights = [
            Weight((vocabulary, width), 0.3),
            Weight((gates * width,)),
            Weight((width, gates * width), spread),
            Weight((width, gates * width), spread),
            *_linear(width, vocabulary, 0.58),
        ]

    def forward(self, parameters: list[Tensor], inputs: Tensor) -> Tensor:
        """(B, ...) to (P, ..., outputs)."""
        parts, (batch, time) = _Parts(parameters), inputs.shape
        embedding = parts.matrix()
        copies = len(embedding)
        x = embedding[:, inputs.t()].reshape(copies, time * batch, self.width)
        x = parts.linear(x).view(copies, time, batch, -1)
        recurrent = parts.matrix()
        hidden = cell = x.new_zeros(copies, batch, self.width)
        states = []
        for step in range(time):
            from_hidden = torch.bmm(hidden, recurrent)
            if self.cell == "gru":
                reset, update, new = x[:, step].chunk(3, -1)
                reset_h, update_h, new_h = from_hidden.chunk(3, -1)
                new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
                hidden = torch.lerp(hidden, new, torch.sigmoid(update + update_h))
            else:
                enter, forget, out, new = (x[:, step] + from_hidden).chunk(4, -1)
                cell = torch.sigmoid(forget + 1) * cell + torch.sigmoid(enter) * torch.tanh(new)
                hidden = torch.sigmoid(out) * torch.tanh(cell)
            states.append(hidden)
        flat = torch.stack(states, 2).view(copies, batch * time, self.width)
        return parts.linear(flat).view(copies, batch, time, -1)
