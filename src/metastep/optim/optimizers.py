"""The hypergradient optimizers over torch.optim's: each has its base's arguments, and says which direction it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Unpack

import torch
from torch import Tensor

from metastep.optim.directions import (
    MOMENTUM,
    SUM_OF_SQUARES,
    AdagradDirection,
    AdamDirection,
    MomentumDirection,
    RMSpropDirection,
)
from metastep.optim.hyper import HyperOptimizer
from metastep.optim.options import Group, HyperOptions, flag, number

if TYPE_CHECKING:
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

    base = torch.optim.SGD
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

    def direction(self, group: Group) -> MomentumDirection:
        """Momentum as the group's settings ask for."""
        return MomentumDirection(
            maximize=group["maximize"],
            weight_decay=float(group["weight_decay"]),
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            nesterov=group["nesterov"],
        )

    def base_keys(self, group: Group) -> tuple[str, ...]:
        """State keys of torch.optim.SGD."""
        return (MOMENTUM,) if group["momentum"] else ()


class HyperAdam(HyperOptimizer):
    r"""Adam whose learning rates adapt themselves by hypergradient descent.

    .. math:: u_t = \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}, \quad \theta_t = \theta_{t-1} - \alpha^*_t \odot u_t,
              \quad \alpha^* = \sum_j \gamma_j \alpha_j

    No state beside torch's for levels above "parameter": the last direction is recomputed from the moments.

    Args:
        params: Parameters, named parameters or groups of either.
        lr: Initial rate of every level, >= 0; a scheduler multiplies all of them.
        betas: Decay per step of the two moving averages, each in [0, 1).
        eps: Added to the root of the second moment, >= 0.
        weight_decay: Coupled decay per step, >= 0.
        amsgrad: Use the largest second moment so far.
        foreach: As in torch while the rates stand still.
        maximize: Climb instead of descend.
        capturable: As in torch; while rates adapt the counters are on the device anyway.
        differentiable: As in torch; needs hyper_lr=0.
        fused: As in torch while the rates stand still.
        decoupled_weight_decay: Decay beside the direction, as in AdamW.
        hyper: Options of every hypergradient optimizer, keyword-only: levels, hyper_lr, rule, ...; see
            `docs/optimizers.md`.

    Raises:
        ValueError: naming the argument that is out of range.

    Source: arXiv 1703.04782, section 3 (global level); arXiv 2008.07277 (levels and their combination).

    Differs from the paper: epsilon stands where torch has it, and every rate is complete before any tensor moves;
    defaults as in `HyperSGD`.

    Example:
        >>> import torch
        >>> from metastep.optim import HyperAdam
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = HyperAdam(model.parameters(), lr=1e-2, levels=("layer",))
        >>> model(torch.ones(4, 3)).square().mean().backward()
        >>> opt.step()
        >>> float(opt.rates()[0]["layer"]["0"])  # the first step is a tenth: see `safeguard`
        0.0010000000474974513
    """

    base: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **hyper: Unpack[HyperOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, hyper)

    def check_arguments(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}; pass for example (0.9, 0.999).")
        for i, beta in enumerate(betas):
            number(f"betas[{i}]", beta, high=1.0, open_high=True)
        number("eps", group["eps"])
        number("weight_decay", group["weight_decay"])
        flag("amsgrad", group["amsgrad"])
        flag("decoupled_weight_decay", group["decoupled_weight_decay"])

    def decoupled(self, group: Group) -> bool:
        """Whether weight decay stands beside the direction."""
        return bool(group["decoupled_weight_decay"])

    def base_of(self, group: Group) -> type[torch.optim.Optimizer]:
        """The kind of decay decides: torch's Adam has not always known both."""
        return torch.optim.AdamW if group["decoupled_weight_decay"] else torch.optim.Adam

    def direction(self, group: Group) -> AdamDirection:
        """Adam as the group's settings ask for."""
        decay = float(group["weight_decay"])
        return AdamDirection(
            maximize=group["maximize"],
            weight_decay=0.0 if group["decoupled_weight_decay"] else decay,
            decoupled_decay=decay if group["decoupled_weight_decay"] else 0.0,
            beta1=float(group["betas"][0]),
            beta2=float(group["betas"][1]),
            eps=float(group["eps"]),
            amsgrad=group["amsgrad"],
        )

    def base_keys(self, group: Group) -> tuple[str, ...]:
        """State keys of torch.optim.Adam."""
        return ("step", *self.direction(group).buffers)


class HyperAdamW(HyperAdam):
    r"""AdamW whose learning rates adapt themselves by hypergradient descent.

    .. math:: \theta_t = \theta_{t-1} - \alpha^*_t \odot (u_t + \lambda \theta_{t-1})

    with :math:`u_t` as in `HyperAdam`: the adapted rate multiplies the decay too. By default the hypergradient looks at
    :math:`u` alone, because the loss on data sees decay as harm and would lower the rates for it; `include_decay=True`
    takes :math:`u + \lambda\theta`, exactly.

    Args:
        params: Parameters, named parameters or groups of either.
        lr: Initial rate of every level, >= 0; a scheduler multiplies all of them.
        betas: Decay per step of the two moving averages, each in [0, 1).
        eps: Added to the root of the second moment, >= 0.
        weight_decay: Decoupled decay :math:`\lambda`, >= 0.
        amsgrad: Use the largest second moment so far.
        maximize: Climb instead of descend.
        foreach: As in torch while the rates stand still.
        capturable: As in torch; while rates adapt the counters are on the device anyway.
        differentiable: As in torch; needs hyper_lr=0.
        fused: As in torch while the rates stand still.
        hyper: Options of every hypergradient optimizer, keyword-only; see `docs/optimizers.md`.

    Raises:
        ValueError: naming the argument that is out of range.

    Source: as `HyperAdam`; the last direction without a copy of the last parameters is
    :math:`(u_t + \lambda\theta_t) / (1 - \alpha\lambda)`, our derivation.

    Example:
        >>> import torch
        >>> from metastep.optim import HyperAdamW
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = HyperAdamW(model.parameters(), lr=1e-3, levels=("global", "layer", "parameter"))
        >>> model(torch.ones(4, 3)).square().mean().backward()
        >>> opt.step()
    """

    base = torch.optim.AdamW

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **hyper: Unpack[HyperOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            **hyper,
        )


class HyperRMSprop(HyperOptimizer):
    r"""RMSprop whose learning rates adapt themselves by hypergradient descent.

    .. math:: u_t = g_t / (\sqrt{s_t} + \epsilon), \quad \theta_t = \theta_{t-1} - \alpha^*_t \odot u_t

    Without momentum it keeps the last direction, one tensor per parameter more than torch's.

    Args:
        params: Parameters, named parameters or groups of either.
        lr: Initial rate of every level, >= 0; a scheduler multiplies all of them.
        alpha: Smoothing of the moving averages, in [0, 1].
        eps: Added to the root, >= 0.
        weight_decay: Coupled decay per step, >= 0.
        momentum: Momentum on the scaled gradient, >= 0.
        centered: Subtract the square of the mean gradient.
        capturable: As in torch; while rates adapt the counters are on the device anyway.
        foreach: As in torch while the rates stand still.
        maximize: Climb instead of descend.
        differentiable: As in torch; needs hyper_lr=0.
        hyper: Options of every hypergradient optimizer, keyword-only; see `docs/optimizers.md`.

    Raises:
        ValueError: naming the argument that is out of range.

    Source: arXiv 1703.04782 and 2008.07277, applied to RMSprop's direction (our extension).

    Example:
        >>> import torch
        >>> from metastep.optim import HyperRMSprop
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = HyperRMSprop(model.parameters(), lr=1e-3, centered=True)
        >>> model(torch.ones(4, 3)).square().mean().backward()
        >>> opt.step()
    """

    base = torch.optim.RMSprop

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **hyper: Unpack[HyperOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, hyper)

    def check_arguments(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        number("alpha", group["alpha"], high=1.0)
        for name in ("eps", "weight_decay", "momentum"):
            number(name, group[name])
        flag("centered", group["centered"])

    def direction(self, group: Group) -> RMSpropDirection:
        """RMSprop as the group's settings ask for."""
        return RMSpropDirection(
            maximize=group["maximize"],
            weight_decay=float(group["weight_decay"]),
            smoothing=float(group["alpha"]),
            eps=float(group["eps"]),
            momentum=float(group["momentum"]),
            centered=group["centered"],
        )

    def base_keys(self, group: Group) -> tuple[str, ...]:
        """State keys of torch.optim.RMSprop."""
        return ("step", *self.direction(group).base_buffers)


class HyperAdagrad(HyperOptimizer):
    r"""Adagrad whose learning rates adapt themselves by hypergradient descent.

    .. math:: u_t = \frac{g_t}{(\sqrt{S_t} + \epsilon)(1 + (t-1)\eta)}, \quad
              \theta_t = \theta_{t-1} - \alpha^*_t \odot u_t

    It keeps the last direction, one tensor per parameter more than torch's.

    Args:
        params: Parameters, named parameters or groups of either.
        lr: Initial rate of every level, >= 0; a scheduler multiplies all of them.
        lr_decay: :math:`\eta` >= 0 per step.
        weight_decay: Coupled decay per step, >= 0.
        initial_accumulator_value: Where the sum of squares starts, >= 0.
        eps: Added to the root, >= 0.
        foreach: As in torch while the rates stand still.
        maximize: Climb instead of descend.
        differentiable: As in torch; needs hyper_lr=0.
        fused: As in torch while the rates stand still.
        hyper: Options of every hypergradient optimizer, keyword-only; see `docs/optimizers.md`.

    Raises:
        ValueError: naming the argument that is out of range.

    Source: arXiv 1703.04782 and 2008.07277, applied to Adagrad's direction (our extension).

    Example:
        >>> import torch
        >>> from metastep.optim import HyperAdagrad
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = HyperAdagrad(model.parameters(), lr=1e-2)
        >>> model(torch.ones(4, 3)).square().mean().backward()
        >>> opt.step()
    """

    base = torch.optim.Adagrad

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **hyper: Unpack[HyperOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, hyper)

    def check_arguments(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        for name in ("lr_decay", "weight_decay", "initial_accumulator_value", "eps"):
            number(name, group[name])

    def direction(self, group: Group) -> AdagradDirection:
        """Adagrad as the group's settings ask for."""
        return AdagradDirection(
            maximize=group["maximize"],
            weight_decay=float(group["weight_decay"]),
            lr_decay=float(group["lr_decay"]),
            initial_accumulator_value=float(group["initial_accumulator_value"]),
            eps=float(group["eps"]),
        )

    def base_keys(self, group: Group) -> tuple[str, ...]:
        """State keys of torch.optim.Adagrad."""
        del group
        return ("step", SUM_OF_SQUARES)

    def plain_step(self, group: Group) -> None:
        """One step of torch.optim.Adagrad, which makes its state when it is constructed."""
        names = ("lr", "initial_accumulator_value", "fused")
        for p in group["params"]:
            if p.grad is not None and "step" not in self.state[p]:
                fresh = torch.optim.Adagrad([p], **{name: group[name] for name in names})
                self.state[p].update(fresh.state[p])
        super().plain_step(group)
