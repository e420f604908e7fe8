"""From the gradient of a coordinate to its direction: the networks of learned optimizers.

N is the number of coordinates; every coordinate has a state of its own, and all share the weights.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

#: What is remembered of N coordinates: tensors whose first dimension is N.
CoordinateState = dict[str, Tensor]

HIDDEN = "hidden"


class UpdateNetwork(nn.Module, ABC):
    """A stack of LSTM cells with one output, run on every coordinate alike; a subclass says what it reads.

    Args:
        inputs: numbers that the first cell reads.
        hidden_size: H, of each cell.
        num_layers: cells.

    Raises:
        ValueError: for a size below 1.
    """

    def __init__(self, inputs: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("num_layers", num_layers)):
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}; the published networks have 2 layers of 20.")
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.cells = nn.ModuleList(
            nn.LSTMCell(inputs if layer == 0 else hidden_size, hidden_size) for layer in range(num_layers)
        )
        self.output = nn.Linear(hidden_size, 1)

    @abstractmethod
    def forward(self, gradient: Tensor, state: CoordinateState, step: int) -> tuple[Tensor, CoordinateState]:
        """Return the direction u of theta <- theta - lr u, and the next state; nothing is changed.

        Args:
            gradient: (N,).
            state: what :meth:`init_state` or the previous call returned.
            step: 1 at the first call.
        """

    def init_state(self, coordinates: int, device: torch.device | None = None) -> CoordinateState:
        """Zeros: "hidden" is (N, 2 num_layers H), of each cell h and c."""
        weight = self.output.weight
        size = (coordinates, 2 * self.num_layers * self.hidden_size)
        return {HIDDEN: torch.zeros(size, dtype=weight.dtype, device=device or weight.device)}

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types, that construct this network again."""
        return {"hidden_size": self.hidden_size, "num_layers": self.num_layers}

    def recurrent(self, features: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Run the cells: (N, inputs) and (N, 2 num_layers H) to outputs (N,) and the next hidden state."""
        parts, kept = torch.split(hidden, self.hidden_size, dim=1), []
        for layer, cell in enumerate(self.cells):
            features, memory = cell(features, (parts[2 * layer], parts[2 * layer + 1]))
            kept += [features, memory]
        return self.output(features).squeeze(1), torch.cat(kept, dim=1)


class L2LNetwork(UpdateNetwork):
    r"""The network of L2L: it reads size and sign of the gradient.

    .. math:: u = -\text{LSTM}\bigl(\max(\tfrac1k \log(|g| + \epsilon), -1), \; \text{clip}(e^k g, -1, 1)\bigr)

    Args:
        hidden_size: H >= 1.
        num_layers: LSTM cells >= 1.
        scale: k > 0.

    Raises:
        ValueError: for an argument out of its range.

    Source: arXiv 1606.04474, with the inputs of its authors' code, k = 5.
    """

    def __init__(self, hidden_size: int = 20, num_layers: int = 2, scale: float = 5.0) -> None:
        super().__init__(2, hidden_size, num_layers)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be > 0 and finite, got {scale}; the authors' code uses 5.")
        self.scale = float(scale)

    def forward(self, gradient: Tensor, state: CoordinateState, step: int) -> tuple[Tensor, CoordinateState]:
        """The equation above; ``step`` is not looked at."""
        del step
        size = (gradient.abs() + torch.finfo(gradient.dtype).eps).log() / self.scale
        sign = (gradient * math.exp(self.scale)).clamp(-1.0, 1.0)
        output, hidden = self.recurrent(torch.stack([size.clamp(min=-1.0), sign], dim=1), state[HIDDEN])
        return -output, {HIDDEN: hidden}

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types, that construct this network again."""
        return {**super().config(), "scale": self.scale}


class RNNPropNetwork(UpdateNetwork):
    r"""The network of RNNProp: it reads the gradient and its mean, both divided by the root of the second moment.

    .. math:: u = \tanh \text{LSTM}(\text{ELU}(W x + b)), \quad x = (g / s, \hat m / s), \quad
        s = \sqrt{\hat v} + \epsilon

    Args:
        hidden_size: H >= 1, also of the layer before the LSTM.
        num_layers: LSTM cells >= 1.
        betas: decays of both moments, each in [0, 1).
        eps: > 0.

    Raises:
        ValueError: for an argument out of its range.

    Source: arXiv 1703.03633.
    """

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(hidden_size, hidden_size, num_layers)
        if not all(0 <= beta < 1 for beta in betas) or not eps > 0:
            raise ValueError(f"betas must be in [0, 1) and eps > 0, got {tuple(betas)} and {eps}.")
        self.betas, self.eps = (float(betas[0]), float(betas[1])), float(eps)
        self.embedding = nn.Linear(2, hidden_size)

    def init_state(self, coordinates: int, device: torch.device | None = None) -> CoordinateState:
        """Zeros: hidden state and both moments, (N,)."""
        state = super().init_state(coordinates, device)
        zeros = state[HIDDEN].new_zeros(coordinates)
        return {**state, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}

    def forward(self, gradient: Tensor, state: CoordinateState, step: int) -> tuple[Tensor, CoordinateState]:
        """The equation above."""
        beta1, beta2 = self.betas
        mean = state["exp_avg"].lerp(gradient, 1 - beta1)
        square = state["exp_avg_sq"].lerp(gradient.square(), 1 - beta2)
        root = (square / (1 - beta2**step)).sqrt() + self.eps
        inputs = torch.stack([gradient / root, mean / (1 - beta1**step) / root], dim=1)
        output, hidden = self.recurrent(nn.functional.elu(self.embedding(inputs)), state[HIDDEN])
        return output.tanh(), {HIDDEN: hidden, "exp_avg": mean, "exp_avg_sq": square}

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types, that construct this network again."""
        return {**super().config(), "betas": list(self.betas), "eps": self.eps}
