"""L2L and RNNProp: learned optimizers, whose direction is that of a small recurrent network, one for all coordinates.

In this order: their networks, their files, the optimizers, and how a network is learned, by unrolling it on problems.
N is the number of coordinates; every coordinate has a state of its own, and all share the weights.
"""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from metastep.core.inner import inner_product
from metastep.files import decode_json, write_atomically
from metastep.lab.baselines.adaptive_step import APPLIED, AdaptiveStepOptimizer, recomputed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.optim.optimizer import ParamsT

#: What is remembered of N coordinates: tensors whose first dimension is N.
CoordinateState = dict[str, Tensor]

HIDDEN, STEP = "hidden", "step"
#: Coordinates that go through the network together: their gates take 2 * 4 * 80 bytes each.
_CHUNK = 1 << 16


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


# ---- files: safetensors with class and configuration; nothing is unpickled

_FORMAT, _SCHEMA = "metastep.update_network", "1"
_KINDS: dict[str, type[L2LNetwork] | type[RNNPropNetwork]] = {
    "L2LNetwork": L2LNetwork,
    "RNNPropNetwork": RNNPropNetwork,
}


def save_update_network(network: UpdateNetwork, path: str | Path) -> None:
    """Write a network with its configuration; the file is replaced as a whole or not at all.

    Raises:
        TypeError: for a network of another kind.
        OSError: if it cannot be written.
    """
    kind = type(network).__name__
    if kind not in _KINDS:
        raise TypeError(f"network must be one of {', '.join(_KINDS)}, got {kind}.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"format": _FORMAT, "schema": _SCHEMA, "class": kind, "config": json.dumps(network.config())}
    write_atomically(Path(path), safetensors.torch.save(tensors, metadata=metadata))


class _Header(msgspec.Struct):
    """What a safetensors file says of itself."""

    described: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def load_update_network(path: str | Path) -> UpdateNetwork:
    """Read what :func:`save_update_network` wrote, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no readable network of this schema; one line that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; give the path of a .safetensors file of a learned optimizer.")
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch has not
        raise ValueError(f"{path}: broken or truncated safetensors file ({_one_line(error)}).") from error
    described = decode_json(data[8 : 8 + int.from_bytes(data[:8], "little")], _Header, str(path)).described
    found = {key: described.get(key) for key in ("format", "schema", "class")}
    kind = _KINDS.get(found["class"] or "")
    if (found["format"], found["schema"]) != (_FORMAT, _SCHEMA) or kind is None or "config" not in described:
        raise ValueError(f"{path}: not a learned optimizer of schema {_SCHEMA}; its metadata says {_one_line(found)}.")
    config = decode_json(described["config"], dict[str, Any], f"the configuration in {path}")
    if not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{path}: some weights are not finite numbers; such a network takes no steps.")
    try:
        if config.get("num_layers", 0) > len(tensors):
            raise ValueError(f"num_layers must be that of its weights, got {config['num_layers']!r}.")
        with torch.device("meta"):  # no weights are drawn, nor memory taken before the sizes are known to agree
            network = kind(**config)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    except (TypeError, RuntimeError, ValueError, LookupError, OverflowError) as error:
        raise ValueError(f"{path}: {_one_line(error)}") from error
    return network


def _one_line(said: object) -> str:
    return " ".join(str(said).split())[:400]


@cache
def pretrained_network(name: str) -> UpdateNetwork:
    """The network that comes with the package, "l2l" or "rnnprop"; one for all, not to be trained on."""
    return load_update_network(Path(__file__).with_name(f"{name}.safetensors")).requires_grad_(False)


# ---- optimizers


class LearnedOptimizer(AdaptiveStepOptimizer):
    """Base of the learned optimizers: theta <- theta - lr u with the direction u of a network.

    The network is an argument, like a function: it is not part of ``state_dict``.
    """

    step_style = "plain"
    pretrained: ClassVar[str]
    kind: ClassVar[type[UpdateNetwork]]
    _network: UpdateNetwork

    def __init__(self, params: ParamsT, lr: float | Tensor, network: UpdateNetwork | None) -> None:
        if network is None:
            network = copy.deepcopy(pretrained_network(self.pretrained))
        elif not isinstance(network, self.kind):
            raise ValueError(
                f"network must be a {self.kind.__name__}, got {type(network).__name__}; "
                "read one by load_update_network, or leave it out."
            )
        self._network = network
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Ask the network for the direction of every coordinate, and move.

        Args:
            closure: Recomputes the loss and the gradients, once; run with gradients enabled.

        Returns:
            What the closure returned, or None.
        """
        loss = recomputed(closure)
        works = self.with_gradients()
        if not works:
            return loss
        gradients = [g for _, _, part in works for g in part]
        if not math.isfinite(float(inner_product(gradients, gradients))):
            self.reject()
            return loss
        for group, parameters, own in works:
            group[APPLIED] = float(group["lr"])
            for parameter, gradient in zip(parameters, own, strict=True):
                parameter.sub_(self._direction(parameter, gradient), alpha=group[APPLIED])
        return loss

    def _direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """U of one tensor; its state is advanced in place."""
        self._network.to(parameter.device)
        state = self.state[parameter]
        if not state:
            state.update({STEP: 0, **self._network.init_state(parameter.numel(), parameter.device)})
        state[STEP] += 1
        tensors = {name: value for name, value in state.items() if name != STEP}
        dtype = self._network.output.weight.dtype
        flat, directions = gradient.reshape(-1).to(dtype), []
        for start in range(0, len(flat), _CHUNK):
            rows = slice(start, start + _CHUNK)
            part = {name: value[rows] for name, value in tensors.items()}
            direction, after = self._network(flat[rows], part, state[STEP])
            for name, value in after.items():
                part[name].copy_(value)
            directions.append(direction)
        whole = torch.cat(directions) if directions else flat
        return whole.view(gradient.shape).to(parameter.dtype)

    @property
    def own_precision(self) -> tuple[str, ...]:
        """The network's state keeps its precision, whatever that of the parameters."""
        return tuple(self._network.init_state(0))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_network": self._network}


class L2L(LearnedOptimizer):
    r"""L2L: an LSTM, the same for every coordinate, that was learned by gradient descent, steps in the place of a rule.

    .. math:: \theta_t = \theta_{t-1} + \text{lr} \cdot \text{LSTM}(\text{size and sign of } g_t)

    with the inputs of :class:`L2LNetwork`. The state of a coordinate is 80 numbers.

    Args:
        params: Parameters or groups.
        lr: Multiplies the output, >= 0; the network was learned with 0.01.
        network: An ``L2LNetwork``; None: the one that comes with the package.

    Raises:
        ValueError: For an argument out of its range.

    Source: arXiv 1606.04474.
    *Differs from the paper:* the network that comes with the package was learned on small problems
    (``benchmarks/train_learned_optimizers.py``). A step with a gradient that is not finite is not taken, and counted in
    ``rejected``; for that one number is read back. :meth:`applied_rate` is lr: the output is taken as a direction.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = L2L([w])
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     optimizer.step()
        >>> w.square().sum().item() < 3
        True
    """

    pretrained, kind = "l2l", L2LNetwork

    def __init__(self, params: ParamsT, lr: float | Tensor = 0.01, *, network: UpdateNetwork | None = None) -> None:
        super().__init__(params, lr, network)


class RNNProp(LearnedOptimizer):
    r"""RNNProp: a learned optimizer that reads gradients as Adam and RMSprop scale them, and steps at most lr.

    .. math:: \theta_t = \theta_{t-1} - \text{lr} \tanh \text{LSTM}(g_t / s_t, \hat m_t / s_t)

    with the inputs of :class:`RNNPropNetwork`. The state of a coordinate is 82 numbers.

    Args:
        params: Parameters or groups.
        lr: The largest step of a coordinate, >= 0; the network was learned with 0.1.
        network: An ``RNNPropNetwork``; None: the one that comes with the package.

    Raises:
        ValueError: For an argument out of its range.

    Source: arXiv 1703.03633.
    *Differs from the paper:* as :class:`L2L`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = RNNProp([w])
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     optimizer.step()
        >>> w.square().sum().item() < 3
        True
    """

    pretrained, kind = "rnnprop", RNNPropNetwork

    def __init__(self, params: ParamsT, lr: float | Tensor = 0.1, *, network: UpdateNetwork | None = None) -> None:
        super().__init__(params, lr, network)


# ---- learning


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What an optimizer is unrolled on.

    Attributes:
        start: parameters at the first step, of any shapes.
        loss: of parameters of these shapes, a 0-d tensor with a graph; draws a new batch at every call if it has any.
    """

    start: Sequence[Tensor]
    loss: Callable[[Sequence[Tensor]], Tensor]


def randomly_scaled(problem: Problem, spread: float, generator: torch.Generator) -> Problem:
    """The same problem in coordinates of random scales: theta = c (.) theta', c = exp(U[-spread, spread]).

    Args:
        problem: any.
        spread: >= 0.
        generator: draws c, for each coordinate.
    """
    scales = [(spread * (2 * torch.rand(p.shape, generator=generator) - 1)).exp() for p in problem.start]

    def loss(parameters: Sequence[Tensor]) -> Tensor:
        return problem.loss([scale * p for scale, p in zip(scales, parameters, strict=True)])

    return Problem(start=[p / scale for scale, p in zip(scales, problem.start, strict=True)], loss=loss)


def with_convex_helper(problem: Problem, generator: torch.Generator) -> Problem:
    """The problem beside a convex one of as many coordinates: + |x - v|^2 / n with x and v from U[-1, 1].

    Args:
        problem: any.
        generator: draws x and v.
    """
    n = sum(p.numel() for p in problem.start)
    x, v = (2 * torch.rand(n, generator=generator) - 1 for _ in range(2))

    def loss(parameters: Sequence[Tensor]) -> Tensor:
        return problem.loss(parameters[:-1]) + (parameters[-1] - v).square().mean()

    return Problem(start=[*problem.start, x], loss=loss)


def learn_optimizer(
    network: UpdateNetwork,
    sample: Callable[[torch.Generator], Problem],
    *,
    lr: float,
    problems: int,
    horizon: int = 100,
    unroll: int = 20,
    meta_lr: float = 1e-3,
    scaling: float = 0.0,
    convex_helper: bool = False,
    clip: float = 1.0,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
) -> list[float]:
    r"""Learn the weights of an update network in place, by truncated backpropagation through its own steps.

    .. math:: \phi \leftarrow \text{Adam}\Bigl(\phi, \nabla_\phi \tfrac1K \sum_{k=1}^{K} f(\theta_{t+k}(\phi))\Bigr),
        \qquad \theta_{t+1} = \theta_t - \text{lr} \cdot u(g_t; \phi)

    The gradients g are inputs: no second derivative is taken.

    Args:
        network: An ``L2LNetwork`` or ``RNNPropNetwork``.
        sample: Draws a problem.
        lr: What multiplies the network's output, > 0.
        problems: How many problems to unroll on, >= 1.
        horizon: Steps on each, a multiple of ``unroll``.
        unroll: K, steps between two updates of the network.
        meta_lr: Adam's rate, > 0.
        scaling: Spread of the random scales of coordinates, >= 0; RNNProp uses it.
        convex_helper: Whether a convex problem stands beside each; RNNProp uses it.
        clip: Largest norm of the meta-gradient, > 0.
        seed: Of the problems.
        watch: Called with the number of a problem and its loss after the last step.

    Returns:
        The loss after the last step of every problem.

    Raises:
        ValueError: For an argument out of its range.

    Source: arXiv 1606.04474, arXiv 1703.03633 (scaling, convex helper).
    *Differs from the papers:* a meta-gradient is clipped, and left out where it is not finite.
    """
    if unroll < 1 or horizon < unroll or horizon % unroll:
        raise ValueError(f"horizon must be a multiple of unroll, got {horizon} and {unroll}; e.g. 100 and 20.")
    if not all(0 < value < math.inf for value in (lr, meta_lr, clip, problems)):
        raise ValueError(f"lr, meta_lr, clip and problems must be > 0, got {(lr, meta_lr, clip, problems)}.")
    generator = torch.Generator().manual_seed(seed)
    meta_optimizer = torch.optim.Adam(network.parameters(), lr=meta_lr)
    ends = []
    for number in range(problems):
        problem = sample(generator)
        if scaling:
            problem = randomly_scaled(problem, scaling, generator)
        if convex_helper:
            problem = with_convex_helper(problem, generator)
        run = _Run(network, problem, lr)
        for _ in range(horizon // unroll):
            meta_optimizer.zero_grad()
            torch.autograd.backward(torch.stack([run.step() for _ in range(unroll)]).mean())
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            if norm.isfinite():
                meta_optimizer.step()
            run.cut()
        ends.append(run.last)
        if watch is not None:
            watch(number, run.last)
    return ends


class _Run:
    """An optimizer on its way along one problem, with a graph to the network's weights since the last cut."""

    def __init__(self, network: UpdateNetwork, problem: Problem, lr: float) -> None:
        self.network, self.problem, self.lr = network, problem, lr
        self.shapes = [p.shape for p in problem.start]
        self.theta = torch.cat([p.reshape(-1) for p in problem.start])
        self.state = network.init_state(len(self.theta))
        self.steps, self.last = 0, math.nan

    def step(self) -> Tensor:
        """One step; return the loss after it, whose graph reaches the network."""
        here = self.theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.problem.loss(self._parts(here)), here)
        self.steps += 1
        direction, self.state = self.network(gradient, self.state, self.steps)
        self.theta = self.theta - self.lr * direction
        loss = self.problem.loss(self._parts(self.theta))
        self.last = float(loss.detach())
        return loss

    def cut(self) -> None:
        """Let go of the graph."""
        self.theta = self.theta.detach()
        self.state = {name: value.detach() for name, value in self.state.items()}

    def _parts(self, theta: Tensor) -> list[Tensor]:
        pieces = torch.split(theta, [math.prod(shape) for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
