"""Learned optimizers as torch optimizers."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from metastep.core.inner import inner_product
from metastep.lab.baselines.adaptive_step import APPLIED, PacedOptimizer, recomputed
from metastep.lab.baselines.learned.files import shipped_network
from metastep.lab.baselines.learned.networks import L2LNetwork, RNNPropNetwork, UpdateNetwork

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT

STEP = "step"

#: Coordinates that go through the network together: their gates take 2 * 4 * 80 bytes each.
_CHUNK = 1 << 16


class LearnedOptimizer(PacedOptimizer):
    """Base of the learned optimizers: theta <- theta - lr u with the direction u of a network.

    The network is an argument, like a function: it is not part of ``state_dict``.
    """

    step_style = "plain"
    shipped: ClassVar[str]
    kind: ClassVar[type[UpdateNetwork]]
    _network: UpdateNetwork

    def __init__(self, params: ParamsT, lr: float | Tensor, network: UpdateNetwork | None) -> None:
        if network is None:
            network = copy.deepcopy(shipped_network(self.shipped))
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

    with the inputs of :class:`metastep.lab.baselines.learned.L2LNetwork`. The state of a coordinate is 80 numbers.

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

    shipped, kind = "l2l", L2LNetwork

    def __init__(self, params: ParamsT, lr: float | Tensor = 0.01, *, network: UpdateNetwork | None = None) -> None:
        super().__init__(params, lr, network)


class RNNProp(LearnedOptimizer):
    r"""RNNProp: a learned optimizer that reads gradients as Adam and RMSprop scale them, and steps at most lr.

    .. math:: \theta_t = \theta_{t-1} - \text{lr} \tanh \text{LSTM}(g_t / s_t, \hat m_t / s_t)

    with the inputs of :class:`metastep.lab.baselines.learned.RNNPropNetwork`. The state of a coordinate is 82 numbers.

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

    shipped, kind = "rnnprop", RNNPropNetwork

    def __init__(self, params: ParamsT, lr: float | Tensor = 0.1, *, network: UpdateNetwork | None = None) -> None:
        super().__init__(params, lr, network)
