"""Forward-mode hypergradients: how the validation loss moves with the rate of all steps so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metastep.core.distributed import rank_count
from metastep.core.inner import inner_product
from metastep.core.isolation import isolated_modules, isolated_rng
from metastep.lab.baselines.adaptive_step import (
    APPLIED,
    AdaptiveStepOptimizer,
    all_finite,
    check_betas,
    evaluated,
    positive,
)
from metastep.optim.options import Group, choice, flag, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.optim.optimizer import ParamsT

#: What the first group remembers: the shared rate, what moves it, the discount, and the derivative found last.
RATE, HYPER_RATE, HYPERGRADIENT = "rate", "hyper_rate", "hypergradient"
DISCOUNT, DISCOUNT_SUM = "discount", "discount_sum"
#: The tangent Z of the parameter itself, and those of the buffers.
TANGENT, TANGENTS = "tangent", ("tangent", "momentum_tangent", "exp_avg_tangent", "exp_avg_sq_tangent")
STEP = "step"


class ForwardMode(AdaptiveStepOptimizer):
    r"""SGD, Adam or AdamW with one rate that follows its exact derivative of the validation loss: RTHO and MARTHE.

    The tangent :math:`Z_t = \mathrm d(\theta_t, \text{buffers}) / \mathrm d\eta` goes along with the parameters,

    .. math:: Z_t = \mu A_t Z_{t-1} + B_t, \qquad
        \eta \leftarrow \max(0, \eta - \beta \langle \nabla E(\theta_t), Z_t \rangle),

    where A is the derivative of the step by what it starts from (one Hessian-vector product) and B that by the rate.
    For SGD, :math:`Z_t = Z_{t-1} - \eta H_t Z_{t-1} - g_t`. mu = 1 is RTHO, mu = 0 is hypergradient descent on E.

    Args:
        params: Parameters or groups. One rate is learned; groups keep the ratios of their lr to it.
        lr: Where the rate starts, >= 0. A scheduler's changes multiply it.
        base: "sgd", "adam" or "adamw", with torch's meaning of the next six.
        momentum: In [0, 1), for "sgd".
        dampening: In [0, 1], for "sgd".
        nesterov: For "sgd" with momentum and without dampening.
        betas: Each in [0, 1), for "adam" and "adamw".
        eps: > 0, for "adam" and "adamw".
        weight_decay: >= 0.
        hyper_lr: beta, >= 0.
        hyper_hyper_lr: beta grows by this times the derivative times the rate after every step, but not below 0; the
            authors of MARTHE use 1e-6. Finite, >= 0.
        mu: In [0, 1], or "auto" for MARTHE's own rule; its authors use 0.99999 otherwise.
        clamp: Largest entry of Hessian-vector products and validation gradients, > 0; None: as they are.
        first_order: Take H for 0: no second derivative is needed, and the result is not exact.
        model: Whose buffers the validation pass must not change; None: those of every module that runs.

    Raises:
        ValueError: For an argument out of its range, at ``step`` without both closures, or on several ranks.

    Source: arXiv 1703.01785 (RTHO), arXiv 1910.08525 (MARTHE), and its authors' code for "auto" and the defaults.
    *Differs from the code:* the derivatives are exact for momentum, Adam and weight decay; the training gradient is not
    clamped. A step whose loss or gradient is not finite is not taken; a derivative that is not finite moves no rate and
    starts the tangents anew. Both are counted in ``rejected``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = ForwardMode([w], lr=0.01, hyper_lr=1e-4)
        >>> for _ in range(20):
        ...     _ = optimizer.step(lambda: w.square().sum(), lambda: (w - 0.1).square().sum())
        >>> optimizer.applied_rate() > 0.012
        True
    """

    step_style = "bilevel"

    _model: nn.Module | None = None  # a copy or a pickle is without it

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        *,
        base: str = "sgd",
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        hyper_lr: float = 1e-8,
        hyper_hyper_lr: float = 0.0,
        mu: float | str = 1.0,
        clamp: float | None = 100.0,
        first_order: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        if rank_count() > 1:
            raise ValueError(
                f"params must be of one rank for ForwardMode, got {rank_count()} ranks; replicas have no second "
                "derivatives."
            )
        self._model = model
        defaults = {
            "lr": lr, "base": base, "momentum": momentum, "dampening": dampening, "nesterov": nesterov, "betas": betas,
            "eps": eps, "weight_decay": weight_decay, "hyper_lr": hyper_lr, "hyper_hyper_lr": hyper_hyper_lr, "mu": mu,
            "clamp": clamp, "first_order": first_order, "initial_rate": None, RATE: None, HYPER_RATE: None,
            DISCOUNT: None, DISCOUNT_SUM: 0.0, HYPERGRADIENT: None,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        group["initial_rate"] = float(group["lr"])
        choice("base", group["base"], tuple(STEPS))
        number("momentum", group["momentum"], high=1.0, open_high=True)
        number("dampening", group["dampening"], high=1.0)
        flag("nesterov", group["nesterov"])
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "nesterov must be False without momentum or with dampening, got True; give momentum > 0, dampening 0."
            )
        check_betas(group)
        positive("eps", group["eps"])
        for name in ("weight_decay", "hyper_lr", "hyper_hyper_lr"):
            number(name, group[name])
        if group["mu"] != "auto":
            number("mu", group["mu"], high=1.0)
        if group["clamp"] is not None:
            positive("clamp", group["clamp"])
        flag("first_order", group["first_order"])

    @property
    def hypergradient(self) -> float | None:
        """The derivative of the validation loss by the rate, as found in the last step (None before the first)."""
        found: float | None = self.param_groups[0][HYPERGRADIENT]
        return found

    @torch.no_grad()
    def step(
        self, closure: Callable[[], Any] | None = None, validation_closure: Callable[[], Any] | None = None
    ) -> Any:
        """Move the parameters and their tangents, then the rate.

        Args:
            closure: Returns the training loss of a batch, with a graph; nothing is read from or written to ``grad``.
            validation_closure: Returns the loss of a validation batch, with a graph; called after the parameters moved.
                Buffers and random-number streams are afterwards as before it.

        Returns:
            The training loss.
        """
        if closure is None or validation_closure is None:
            raise ValueError(
                "closure must be a function that returns the training loss, and validation_closure one that returns a "
                "validation loss, got None; call optimizer.step(closure, validation_closure)."
            )
        loss = evaluated("closure", closure, "the training loss")
        first = self.param_groups[0]
        members = [(group, p) for group in self.param_groups for p in group["params"] if p.requires_grad]
        if not members or not isinstance(loss, Tensor) or not loss.requires_grad:
            return loss
        self._discount(first)
        gradients, products = self._derivatives(loss, [p for _, p in members])
        moving = [(*member, g, q) for member, g, q in zip(members, gradients, products, strict=True) if g is not None]
        if not moving:
            return loss
        found = [g for _, _, g, _ in moving]
        if not all_finite(float(loss), float(inner_product(found, found))):
            self.reject()
            return loss
        reference = self._reference()
        if first[RATE] is None:
            first[RATE], first[HYPER_RATE] = reference, first["hyper_lr"]
        for group, parameter, gradient, product in moving:
            factor = float(group["lr"]) / reference if reference > 0 else 0.0
            group[APPLIED] = factor * first[RATE]
            self._move(group, parameter, gradient, product, factor)
        self._learn(validation_closure, [(p, g) for _, p, g, _ in moving])
        return loss

    def _discount(self, first: Group) -> None:
        """Multiply every tangent by mu."""
        if first[DISCOUNT] is None:
            first[DISCOUNT] = 1.0 if first["mu"] == "auto" else float(first["mu"])
        if first[DISCOUNT] != 1:
            tangents = [state[name] for state in self.state.values() for name in TANGENTS if name in state]
            if tangents:
                torch._foreach_mul_(tangents, first[DISCOUNT])

    def _reference(self) -> float:
        """The initial rate that the shared one is measured by: that of the first group that has one."""
        for group in self.param_groups:
            if group["initial_rate"] == 0:
                group["initial_rate"] = float(group["lr"])  # a rate that starts at zero starts when it is first set
            if group["initial_rate"] > 0:
                return float(group["initial_rate"])
        return 0.0

    def _derivatives(
        self, loss: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """The gradients, and the Hessian's products with the tangents; None where the loss does not depend on it."""
        tangents = [self.state[p].get(TANGENT) if p in self.state else None for p in parameters]
        known = any(z is not None for z in tangents) and not self.param_groups[0]["first_order"]
        gradients = torch.autograd.grad(loss, parameters, create_graph=known, allow_unused=True)
        products: list[Tensor | None] = [None] * len(gradients)
        if known:
            pairs = [
                (g, z) for g, z in zip(gradients, tangents, strict=True)
                if g is not None and g.requires_grad and z is not None
            ]  # fmt: skip
            if pairs:
                with torch.enable_grad():
                    along = torch.stack([(g * z).sum() for g, z in pairs]).sum()
                products = list(torch.autograd.grad(along, parameters, allow_unused=True))
        return [None if g is None else g.detach() for g in gradients], [self._clamped(q) for q in products]

    def _clamped(self, values: Tensor | None) -> Tensor | None:
        most = self.param_groups[0]["clamp"]
        return values if values is None or most is None else values.clamp(-most, most)

    def _move(self, group: Group, parameter: Tensor, gradient: Tensor, product: Tensor | None, factor: float) -> None:
        """One step of a tensor and of its tangent: Z' = Z - s (eta du + u)."""
        state = self.state[parameter]
        if TANGENT not in state:
            state[TANGENT] = torch.zeros_like(parameter)
        tangent = state[TANGENT]
        if product is None:
            product = torch.zeros_like(parameter)
        u, du = STEPS[group["base"]](group, state, parameter, gradient, tangent, product)
        tangent.sub_(du, alpha=group[APPLIED]).sub_(u, alpha=factor)
        parameter.sub_(u, alpha=group[APPLIED])

    def _learn(self, validation_closure: Callable[[], Any], moved: list[tuple[Tensor, Tensor]]) -> None:
        """Move the rate, its own rate and the discount by the derivative of the validation loss."""
        first = self.param_groups[0]
        parameters = [p for p, state in self.state.items() if TANGENT in state and p.requires_grad]
        with isolated_rng(parameters), isolated_modules(self._model), torch.enable_grad():
            loss = evaluated("validation_closure", validation_closure, "a validation loss")
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise ValueError("validation_closure must return a loss with a graph, got none; do not detach it.")
            slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        slope_of = {p: self._clamped(slope) for p, slope in zip(parameters, slopes, strict=True) if slope is not None}
        if not slope_of:
            return
        derivative = self._inner(slope_of, {p: self.state[p][TANGENT] for p in slope_of})
        first[HYPERGRADIENT] = derivative
        if not math.isfinite(derivative):
            self.reject()
            for state in self.state.values():
                for name in TANGENTS:
                    if name in state:
                        state[name].zero_()
            return
        first[RATE] = max(0.0, first[RATE] - first[HYPER_RATE] * derivative)
        first[HYPER_RATE] = max(0.0, first[HYPER_RATE] + first["hyper_hyper_lr"] * derivative * first[RATE])
        if first["mu"] == "auto":
            self._choose_discount(first, self._inner(slope_of, dict(moved)))

    @staticmethod
    def _inner(slopes: dict[Tensor, Tensor | None], others: dict[Tensor, Tensor]) -> float:
        pairs = [(slope, others[p]) for p, slope in slopes.items() if p in others and slope is not None]
        return float(inner_product(*zip(*pairs, strict=True))) if pairs else 0.0

    @staticmethod
    def _choose_discount(first: Group, alignment: float) -> None:
        """MARTHE's rule: c <- c sign(mu) + mu, mu <- clip(eta / <grad E, g>, 0, 1)^(1 / (c + 1))."""
        share = 1.0 if alignment == 0 else min(max(first[RATE] / alignment, 0.0), 1.0)
        first[DISCOUNT_SUM] = first[DISCOUNT_SUM] * (first[DISCOUNT] > 0) + first[DISCOUNT]
        first[DISCOUNT] = share ** (1.0 / (first[DISCOUNT_SUM] + 1.0))


# ---- one step of a tensor's state and of its tangent: the direction u, and du = d u / d eta


def sgd_step(
    group: Group, state: dict[str, Any], theta: Tensor, g: Tensor, z: Tensor, q: Tensor
) -> tuple[Tensor, Tensor]:
    """V' = mom v + (1 - damp) g~, V' = mom V + (1 - damp) q~ (first v' = g~); u = v' or g~ + mom v' (Nesterov)."""
    decay, momentum, undamped = group["weight_decay"], group["momentum"], 1 - group["dampening"]
    g, q = g.add(theta, alpha=decay), q.add(z, alpha=decay)
    state[STEP] = state.get(STEP, 0) + 1
    if momentum == 0:
        return g, q
    if "momentum_buffer" not in state:
        state["momentum_buffer"], state["momentum_tangent"] = g.clone(), q.clone()
    else:
        state["momentum_buffer"].mul_(momentum).add_(g, alpha=undamped)
        state["momentum_tangent"].mul_(momentum).add_(q, alpha=undamped)
    v, tangent = state["momentum_buffer"], state["momentum_tangent"]
    return (g.add(v, alpha=momentum), q.add(tangent, alpha=momentum)) if group["nesterov"] else (v, tangent)


def adam_step(
    group: Group, state: dict[str, Any], theta: Tensor, g: Tensor, z: Tensor, q: Tensor
) -> tuple[Tensor, Tensor]:
    """Adam with coupled decay: :func:`moments_step` of g~ and q~."""
    decay = group["weight_decay"]
    return moments_step(group, state, g.add(theta, alpha=decay), q.add(z, alpha=decay))


def adamw_step(
    group: Group, state: dict[str, Any], theta: Tensor, g: Tensor, z: Tensor, q: Tensor
) -> tuple[Tensor, Tensor]:
    """AdamW: :func:`moments_step` of g and q, u + lambda theta and du + lambda Z."""
    decay = group["weight_decay"]
    u, du = moments_step(group, state, g, q)
    return u.add_(theta, alpha=decay), du.add_(z, alpha=decay)


def moments_step(group: Group, state: dict[str, Any], g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """With S = sqrt(v / c2), D = S + eps: u = m / (c1 D), du = M / (c1 D) - (m / c1) W / (2 c2 S D^2).

    M' = b1 M + (1 - b1) q and W' = b2 W + 2 (1 - b2) g q; where v = 0 the second term is 0.
    """
    beta1, beta2 = group["betas"]
    if STEP not in state:
        names = ("exp_avg", "exp_avg_sq", "exp_avg_tangent", "exp_avg_sq_tangent")
        state.update({STEP: 0, **{name: torch.zeros_like(g) for name in names}})
    state[STEP] += 1
    m, v = state["exp_avg"], state["exp_avg_sq"]
    dm, dv = state["exp_avg_tangent"], state["exp_avg_sq_tangent"]
    m.lerp_(g, 1 - beta1)
    dm.lerp_(q, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    dv.mul_(beta2).addcmul_(g, q, value=2 * (1 - beta2))
    first, second = 1 - beta1 ** state[STEP], 1 - beta2 ** state[STEP]
    root = v.sqrt() / math.sqrt(second)
    below = root + group["eps"]
    mean = m / first
    bent = torch.where(v > 0, mean * dv / (2 * second * root * below.square()), 0.0)
    return mean / below, dm / first / below - bent


#: u and du by base, from the group's settings, the tensor's state, theta, g, Z and q = H Z.
STEPS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"sgd": sgd_step, "adam": adam_step, "adamw": adamw_step}
