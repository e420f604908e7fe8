"""SGD with momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from torch.optim.sgd import sgd

from metastep.optim.base import HyperOptimizer
from metastep.optim.momentum import BUFFER, Momentum
from metastep.optim.options import Group, HyperOptions, flag, number

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT


class HyperSGD(HyperOptimizer):
    r"""SGD with momentum whose learning rates adapt themselves by hypergradient descent.

    .. math:: v_t = \mu v_{t-1} + (1-d) g_t, \quad \theta_t = \theta_{t-1} - \alpha^*_t \odot u_t,
              \quad \alpha^* = \sum_j \gamma_j \alpha_j

    Before each step every rate :math:`\alpha_j` (of the whole group, a layer, a unit, a parameter) moves against the
    derivative of the new loss with respect to it, :math:`-\langle g_t, u_{t-1} \rangle`. Momentum SGD needs no state
    beside torch's for levels above "parameter"; without momentum and with Nesterov it keeps the last gradient.

    Args:
        params: Parameters, named parameters or groups of either.
        lr: Initial rate of every level, >= 0; a scheduler multiplies all of them.
        momentum: :math:`\mu` >= 0.
        dampening: :math:`d`.
        weight_decay: Coupled decay per step, >= 0.
        nesterov: Nesterov momentum; needs momentum > 0 and dampening 0.
        maximize: Climb instead of descend.
        foreach: As in torch while the rates stand still.
        differentiable: As in torch; needs hyper_lr=0.
        fused: As in torch while the rates stand still.
        hyper: Options of every hypergradient optimizer, keyword-only: levels, hyper_lr, rule, ...; see
            `docs/optimizers.md`.

    Raises:
        ValueError: naming the argument that is out of range.

    Source: arXiv 1703.04782, eqs. 4-8 (global level); arXiv 2008.07277 (levels and their combination).

    Differs from the paper: by default rates move by the cosine between gradient and last direction and weights stay on
    the simplex by projection; `rule="additive"` and `combine="divide"` are the paper's.

    Example:
        >>> import torch
        >>> from metastep.optim import HyperSGD
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = HyperSGD(model.named_parameters(), lr=0.1, momentum=0.9, levels=("global", "layer", "unit"))
        >>> for _ in range(3):
        ...     opt.zero_grad()
        ...     model(torch.ones(4, 3)).square().mean().backward()
        ...     opt.step()
        >>> sorted(opt.rates()[0]["layer"])
        ['bias', 'weight']
    """

    own_hyper_lr: ClassVar[dict[str, float]] = {"additive": 1e-3}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **hyper: Unpack[HyperOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, hyper)

    def check_arguments(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        number("momentum", group["momentum"])
        number("dampening", group["dampening"], low=-1e300)
        number("weight_decay", group["weight_decay"])
        flag("nesterov", group["nesterov"])
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov must be False without momentum or with dampening, got momentum={group['momentum']!r}, "
                f"dampening={group['dampening']!r}; set momentum > 0 and dampening=0."
            )

    def direction(self, group: Group) -> Momentum:
        """Momentum as the group's settings ask for."""
        return Momentum(
            maximize=group["maximize"],
            weight_decay=float(group["weight_decay"]),
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            nesterov=group["nesterov"],
        )

    def plain_keys(self, group: Group) -> tuple[str, ...]:
        """State keys of torch.optim.SGD."""
        return (BUFFER,) if group["momentum"] else ()

    def plain_step(self, group: Group, parameters: list[Tensor]) -> None:
        """torch.optim.SGD's own kernels."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        momentum_buffers: list[Any] = [self.state.get(p, {}).get(BUFFER) for p in parameters]
        sgd(
            parameters,
            gradients,
            momentum_buffers,
            has_sparse_grad=any(g.is_sparse for g in gradients),
            foreach=group["foreach"],
            fused=group["fused"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if group["momentum"] != 0:
            for p, buffer in zip(parameters, momentum_buffers, strict=True):
                self.state[p][BUFFER] = buffer
