"""Meta-gradients by brute force: the whole step, or K of them, inside one autograd graph. Slow and readable."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer


def differentiable_step(
    optimizer: Optimizer, parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], lr: Tensor
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """One step of the optimizer's class inside the graph, at a rate that carries a graph."""
    if type(optimizer) in BY_HAND:
        step = BY_HAND[type(optimizer)]
        options = optimizer.param_groups[0]
        each = [step(options, p, g, s, lr) for p, g, s in zip(parameters, gradients, states, strict=True)]
        return [moved for moved, _ in each], [state for _, state in each]
    work = [p.clone() for p in parameters]
    for parameter, gradient in zip(work, gradients, strict=True):
        parameter.grad = gradient
    group = {key: value for key, value in optimizer.param_groups[0].items() if key not in ("params", "lr")}
    options = {"differentiable": True, "foreach": False, "fused": False, "capturable": False}
    group.update({key: value for key, value in options.items() if key in group})
    replica = type(optimizer).__new__(type(optimizer))
    defaults = {**optimizer.defaults, "differentiable": True}
    replica.__setstate__(
        {"defaults": defaults, "state": defaultdict(dict), "param_groups": [{**group, "params": work, "lr": lr}]}
    )
    for parameter, state in zip(work, states, strict=True):
        replica.state[parameter] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        if "step" in state:  # torch computes beta ** step in the dtype of the counter
            replica.state[parameter]["step"] = state["step"].double()
    replica.step()
    return work, [replica.state[p] for p in work]


def rmsprop_step(
    group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Any], lr: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """Centered RMSprop without momentum (torch's differentiable form wants a float rate)."""
    g, rho = g + group["weight_decay"] * p, group["alpha"]
    square = rho * state["square_avg"] + (1 - rho) * g * g
    mean = rho * state["grad_avg"] + (1 - rho) * g
    moved = p - lr * g / (safe_sqrt(square - mean * mean) + group["eps"])
    return moved, {**state, "square_avg": square, "grad_avg": mean}


def adagrad_step(
    group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Any], lr: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """Adagrad (torch's differentiable form wants a float rate)."""
    total, step = state["sum"] + g * g, state["step"] + 1
    moved = p - lr / (1 + (float(step) - 1) * group["lr_decay"]) * g / (safe_sqrt(total) + group["eps"])
    return moved, {"sum": total, "step": step}


def muon_step(
    group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Any], lr: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """Momentum, orthogonalised by torch's own Newton-Schulz iteration, with decoupled decay."""
    from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

    buffer = state["momentum_buffer"].lerp(g, 1 - group["momentum"])
    update = g.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
    update = _zeropower_via_newtonschulz(update.detach(), group["ns_coefficients"], group["ns_steps"], group["eps"])
    ratio = _adjust_lr(1.0, group["adjust_lr_fn"], p.shape)
    return p * (1 - lr * group["weight_decay"]) - lr * ratio * update.to(p), {"momentum_buffer": buffer}


def safe_sqrt(x: Tensor) -> Tensor:
    """A root whose derivative at zero is zero: coordinates that never had a gradient."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


BY_HAND = {torch.optim.RMSprop: rmsprop_step, torch.optim.Adagrad: adagrad_step, torch.optim.Muon: muon_step}


def unrolled(
    model: nn.Module,
    optimizer: Optimizer,
    training_losses: list[Callable[[nn.Module], Tensor]],
    validation_loss: Callable[[nn.Module], Tensor],
    rates: list[Tensor],
    weights: list[Tensor],
) -> list[Tensor]:
    """Gradient of the validation loss after len(rates) steps with respect to ``weights``, create_graph throughout.

    Each training loss is differentiated where its forward pass stands in the graph; random masks are those of the
    global stream as the losses are called, in order.
    """
    names = [name for name, _ in model.named_parameters()]
    parameters: list[Tensor] = [p.detach().clone().requires_grad_() for p in model.parameters()]
    tied = dict(_aliases(model))
    states = [dict(optimizer.state.get(p, {})) for p in model.parameters()]

    class Called(nn.Module):
        def forward(self, *args: Any) -> Tensor:
            values = dict(zip(names, parameters, strict=True))
            values.update({name: values[alias] for name, alias in tied.items()})
            return functional_call(model, values, args)

    called = Called()
    for training_loss, rate in zip(training_losses, rates, strict=True):
        gradients = torch.autograd.grad(training_loss(called), parameters, create_graph=True)
        parameters, states = differentiable_step(optimizer, parameters, list(gradients), states, rate)
    return list(torch.autograd.grad(validation_loss(called), weights))


def _aliases(model: nn.Module) -> list[tuple[str, str]]:
    first: dict[int, str] = {}
    aliases = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases.append((name, first[id(parameter)]))
        first.setdefault(id(parameter), name)
    return aliases
