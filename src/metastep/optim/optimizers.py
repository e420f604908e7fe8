"""Adam, with its AMSGrad variant and both kinds of weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from torch.optim.adam import adam
from torch.optim.adamw import adamw

from metastep.optim.base import HyperOptimizer
from metastep.optim.moments import FIRST, LARGEST, SECOND, AdamDirection
from metastep.optim.namesake import start_buffer, start_step
from metastep.optim.options import Group, HyperOptions, flag, number

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT


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
        >>> float(opt.rates()[0]["layer"]["0"])  # the first step has no last direction to learn from
        0.009999999776482582
    """

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

    def plain_keys(self, group: Group) -> tuple[str, ...]:
        """State keys of torch.optim.Adam."""
        return ("step", *self.direction(group).buffers)

    def plain_step(self, group: Group, parameters: list[Tensor]) -> None:
        """torch.optim.Adam's or AdamW's own kernels."""
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if any(g.is_sparse for g in gradients):
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients; use torch.optim.SparseAdam.")
        keys = self.direction(group).buffers
        for p, state in zip(parameters, states, strict=True):
            if "step" not in state:
                state["step"] = start_step(p, group)
                state.update({key: start_buffer(p) for key in keys})
        step = adamw if group["decoupled_weight_decay"] else adam
        step(
            parameters,
            gradients,
            [state[FIRST] for state in states],
            [state[SECOND] for state in states],
            [state[LARGEST] for state in states] if group["amsgrad"] else [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            fused=group["fused"],
            has_complex=any(p.is_complex() for p in parameters),
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


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
