"""The transpose of one optimizer step, taken from the optimizer's own differentiable form."""

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass
class StepInput:
    """Everything that one optimizer step reads: parameters, gradients, state, options. Lists go by parameter."""

    optimizer: type[Optimizer]
    defaults: dict[str, Any]
    start: list[Tensor]
    gradients: list[Tensor | None]
    state: list[dict[str, Any]]
    groups: list[dict[str, Any]]  # options; "places" instead of "params"


def record_input(optimizer: Optimizer, parameters: Sequence[nn.Parameter], start: list[Tensor]) -> StepInput:
    """Copy what the optimizer is about to read (its rates are written); ``start`` are the parameters' copies."""
    place = {id(parameter): k for k, parameter in enumerate(parameters)}
    groups = []
    for group in optimizer.param_groups:
        options = {key: copy.copy(value) for key, value in group.items() if key != "params"}
        places = [place[id(p)] for p in group["params"] if id(p) in place]
        groups.append({**options, "lr": float(group["lr"]), "places": places})
    return StepInput(
        optimizer=type(optimizer),
        defaults=dict(optimizer.defaults),
        start=start,
        gradients=[None if p.grad is None else p.grad.detach().clone() for p in parameters],
        state=[copy.deepcopy(dict(optimizer.state.get(p, {}))) for p in parameters],
        groups=groups,
    )


def step_vjp(
    inputs: StepInput, adjoint: list[Tensor], state_adjoint: list[dict[str, Tensor]]
) -> tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]]:
    r"""Pull cotangents of (parameters, state) after a step back to (parameters, gradients, state) before it.

    Where a second moment is exactly zero the derivative of its root is taken as zero (the moment stays zero).

    Args:
        inputs: what the step read.
        adjoint: cotangents of the parameters after the step.
        state_adjoint: cotangents of the state tensors after the step, by name; absent ones are zero.
    """
    start = [s.detach().clone().requires_grad_() for s in inputs.start]
    gradients = [None if g is None else g.clone().requires_grad_() for g in inputs.gradients]
    state = [
        {name: _leaf(value) if _moves(name, value, s) else value for name, value in before.items()}
        for before, s in zip(inputs.state, start, strict=True)
    ]
    with torch.enable_grad():
        after, replica = _step(inputs, start, gradients, state)
        outputs, cotangents = list(after), list(adjoint)
        for parameter, wanted in zip(after, state_adjoint, strict=True):
            for name, cotangent in wanted.items():
                outputs.append(replica.state[parameter][name])
                cotangents.append(cotangent)
        live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        leaves = [*start, *(g for g in gradients if g is not None)]
        leaves += [value for before in state for value in before.values() if _is_leaf(value)]
        found = torch.autograd.grad([o for o, _ in live], leaves, [c for _, c in live], allow_unused=True)
    grads = {id(leaf): _finite(leaf, grad) for leaf, grad in zip(leaves, found, strict=True)}
    through = [grads[id(s)] for s in start]
    to_gradient = [torch.zeros_like(s) if g is None else grads[id(g)] for g, s in zip(gradients, start, strict=True)]
    to_state = [{name: grads[id(v)] for name, v in before.items() if _is_leaf(v)} for before in state]
    return through, to_gradient, to_state


def _step(
    inputs: StepInput, start: list[Tensor], gradients: list[Tensor | None], state: list[dict[str, Any]]
) -> tuple[list[Tensor], Optimizer]:
    """Take the step again, in the optimizer's differentiable form, on clones of the leaves."""
    work = [leaf.clone() for leaf in start]
    for parameter, gradient in zip(work, gradients, strict=True):
        parameter.grad = gradient
    slow = {"differentiable": True, "foreach": False, "fused": False, "capturable": False}
    groups = [
        {
            **{key: slow.get(key, value) for key, value in group.items() if key != "places"},
            "params": [work[place] for place in group["places"]],
        }
        for group in inputs.groups
    ]
    replica = inputs.optimizer.__new__(inputs.optimizer)
    replica.__setstate__(
        {
            "defaults": {**inputs.defaults, **{k: v for k, v in slow.items() if k in inputs.defaults}},
            "state": defaultdict(dict),
            "param_groups": groups,
        }
    )
    for parameter, before in zip(work, state, strict=True):
        if before:
            replica.state[parameter] = {k: _clone(k, v, parameter) for k, v in before.items()}
    replica.step()
    return work, replica


def _clone(name: str, value: Any, parameter: Tensor) -> Any:
    """A clone to work on; step counters in float64: the differentiable form computes beta ** step in their dtype."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if _moves(name, value, parameter) else value.to(torch.float64, copy=True)


def _moves(name: str, value: Any, parameter: Tensor) -> bool:
    """True for state that follows the parameters; the counter of a 0-d parameter has its shape, too."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape and name != "step"


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _finite(leaf: Tensor, grad: Tensor | None) -> Tensor:
    return torch.zeros_like(leaf) if grad is None else grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
