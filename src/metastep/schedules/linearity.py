"""Is an optimizer's update linear in its rate? Asked of the optimizer itself, on copies of a few small tensors."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metastep.core.distributed import is_sharded, local, local_copies
from metastep.core.isolation import isolated_rng

#: The probe moves its tensors by about this share of their size, so that rounding does not hide the displacement.
_PROBE = 0.25


class NotLinearInRate(ValueError):
    """An optimizer whose step is not rate times a direction: no exact meta-gradient can be read off from it."""


def check_linear_in_rate(optimizer: Optimizer) -> bool:
    r"""Make sure that a step is :math:`\theta - \alpha u` with u and the next state independent of :math:`\alpha`.

    The smallest tensor of each kind (matrices, vectors) of each group takes a trial step at one rate and at twice that
    rate, in two copies of the optimizer. The displacements must be in the ratio 1 : 2, the states equal.

    Call it after the backward pass of a step and before the optimizer moves. The optimizer, its state, the parameters
    and the random streams are left alone.

    Returns:
        False if nothing can be said, because gradients or states are not finite, or move nothing.

    Raises:
        NotLinearInRate: if not, or if the optimizer cannot be asked (it wants a closure).
    """
    name = type(optimizer).__name__
    chosen = _smallest_of_each_kind(optimizer)
    before = local_copies(chosen)
    with isolated_rng(chosen):
        unit, unit_state = _trial(optimizer, chosen, 1.0)
        if not _finite(unit_state):  # squares of huge gradients overflow: no verdict on numbers that are none
            return False
        step = _largest([after - start for after, start in zip(unit, before, strict=True)])
        if not 0 < step < math.inf:
            return False
        factor = 2.0 ** min(max(round(math.log2(_PROBE * (_largest(before) or 1.0) / step)), -40), 40)
        once, once_state = _trial(optimizer, chosen, factor)
        twice, twice_state = _trial(optimizer, chosen, 2 * factor)
    if not _finite((once, twice)):
        return False
    for start, one, two in zip(before, once, twice, strict=True):
        first, second = one - start, two - start
        size = max(_largest([start]), _largest([second]))
        if not _largest([second - 2 * first]) <= 32 * torch.finfo(start.dtype).eps * size:
            raise NotLinearInRate(
                f"{name} is not linear in its learning rate: twice the rate did not move the parameters twice as far. "
                "A rate is learned for updates of the form theta - rate * direction (SGD, Adam, AdamW, RMSprop, ...)."
            )
    if not _equal(once_state, twice_state):
        raise NotLinearInRate(
            f"{name} keeps state that depends on its learning rate (a rate inside the momentum buffer, say), so that "
            "its direction cannot be read off from one step. Use an optimizer that multiplies by the rate last."
        )
    return True


def unhooked_step(kind: type[Optimizer]) -> Callable[[Optimizer], Any]:
    """The step of a class of optimizers without the hooks that listen to every optimizer; it is for copies."""
    step: Any = kind.step
    plain: Callable[[Optimizer], Any] = step.__wrapped__ if getattr(step, "hooked", False) else step
    return plain


def _smallest_of_each_kind(optimizer: Optimizer) -> list[nn.Parameter]:
    chosen: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        live = [p for p in group["params"] if p.grad is not None and p.numel() and not p.grad.is_sparse]
        for is_matrix in (False, True):
            kind = [p for p in live if (p.ndim >= 2) is is_matrix]
            if kind:
                chosen.append(min(kind, key=lambda p: p.numel()))
    return chosen


def _trial(optimizer: Optimizer, chosen: list[nn.Parameter], factor: float) -> tuple[list[Tensor], Any]:
    """Step copies of the chosen tensors at ``factor`` times the rate; return them and the copies' state."""
    probe, copies = _probe(optimizer, chosen)
    for group in probe.param_groups:
        rate = (float(group["lr"]) or 1.0) * factor
        group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate
    for parameter, original in zip(copies, chosen, strict=True):
        assert original.grad is not None
        parameter.grad = original.grad.detach().clone()
    try:
        unhooked_step(type(probe))(probe)
    except TypeError as error:
        raise NotLinearInRate(
            f"{type(optimizer).__name__}.step() cannot be called without a closure ({error}); "
            "it has no single direction."
        ) from error
    state = [dict(probe.state[p]) for p in copies]
    groups = [{key: value for key, value in g.items() if key not in ("params", "lr")} for g in probe.param_groups]
    return [local(p.detach()) for p in copies], (state, groups)


def _probe(optimizer: Optimizer, chosen: list[nn.Parameter]) -> tuple[Optimizer, list[nn.Parameter]]:
    """A copy of the optimizer for copies of the chosen tensors alone; nothing that it writes to is shared."""
    kept = {id(p) for p in chosen}
    memo: dict[int, Any] = {}
    for group in optimizer.param_groups:  # what is not probed is shared, not copied
        for parameter in group["params"]:
            if id(parameter) not in kept:
                memo[id(parameter)] = parameter
                if parameter in optimizer.state:
                    memo[id(optimizer.state[parameter])] = optimizer.state[parameter]
    for parameter in filter(is_sharded, chosen):  # whose gradients, and state, deepcopy cannot copy
        memo[id(parameter)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        for value in optimizer.state[parameter].values() if parameter in optimizer.state else ():
            if isinstance(value, Tensor) and is_sharded(value):
                memo[id(value)] = value.detach().clone()
    shared = set(memo)
    probe = copy.deepcopy(optimizer, memo)
    for attribute, value in vars(optimizer).items():  # torch's optimizers copy only state, groups and defaults
        if attribute != "step" and attribute not in vars(probe):  # torch's schedulers bind a step to the original
            vars(probe)[attribute] = _copied(value, memo)
    for group in probe.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in shared]
    probe.param_groups[:] = [group for group in probe.param_groups if group["params"]]
    return probe, [memo[id(p)] for p in chosen]


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except TypeError:  # locks, process groups and the like
        return value


def _largest(tensors: list[Tensor]) -> float:
    return max((float(tensor.abs().max()) for tensor in tensors if tensor.numel()), default=0.0)


def _finite(value: Any) -> bool:
    """Whether all floating-point tensors within are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(local(value).isfinite().all())
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(_finite, value))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        a, b = local(a), local(b)
        return a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
