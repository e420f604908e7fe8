"""How the state of an optimizer moves with its rate: directions and their derivatives, tensor by tensor.

The state of a tensor is its buffers and, beside each, its tangent d buffer / d eta; Z is that of the tensor itself.
Every function here takes one step of both, and returns the direction u and du = d u / d eta.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
Group = dict[str, Any]

#: The tangent of the parameter itself, and those of the buffers.
TANGENT, TANGENTS = "tangent", ("tangent", "momentum_tangent", "exp_avg_tangent", "exp_avg_sq_tangent")
STEP = "step"

#: u and du from the group's settings, the tensor's state, theta, g, Z and q = H Z.
Dynamics = Callable[[Group, State, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def sgd(group: Group, state: State, theta: Tensor, g: Tensor, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
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


def adam(group: Group, state: State, theta: Tensor, g: Tensor, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Adam with coupled decay: :func:`moments` of g~ and q~."""
    decay = group["weight_decay"]
    return moments(group, state, g.add(theta, alpha=decay), q.add(z, alpha=decay))


def adamw(group: Group, state: State, theta: Tensor, g: Tensor, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """AdamW: :func:`moments` of g and q, u + lambda theta and du + lambda Z."""
    decay = group["weight_decay"]
    u, du = moments(group, state, g, q)
    return u.add_(theta, alpha=decay), du.add_(z, alpha=decay)


def moments(group: Group, state: State, g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
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


DYNAMICS: dict[str, Dynamics] = {"sgd": sgd, "adam": adam, "adamw": adamw}
