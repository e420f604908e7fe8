"""Collecting what one step of one group needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from metastep.core.distributed import local_gradient
from metastep.optim.engines import choose_engine
from metastep.optim.namesake import start_buffer
from metastep.optim.options import Group, hyper_rates
from metastep.optim.phases import ParameterRule, Plan
from metastep.optim.work import Work

if TYPE_CHECKING:
    from torch import Tensor

    from metastep.optim.direction import Direction
    from metastep.optim.group_rates import GroupRates, State


def gather(
    position: int,
    group: Group,
    rates: GroupRates,
    direction: Direction,
    parameters: list[Tensor],
    clock: int,
) -> Work:
    """The tensors of a group that take part in this step, and the engine for them.

    Args:
        position: Index of the group.
        group: The group with its options.
        rates: Its packed rates.
        direction: Its direction.
        parameters: Those with a gradient, in the group's order.
        clock: Steps so far in which any parameter had a gradient.
    """
    everyone = len(parameters) == len(rates.members)
    active, fresh = rates.everyone, None
    if not everyone:
        places = {id(p): i for i, p in enumerate(rates.members)}
        active = [places[id(p)] for p in parameters]
    if not everyone or clock == 0 or rates.last_updates.count(clock) != len(rates.members):
        kept = [i for i in active if rates.last_updates[i] == clock != 0]
        fresh = rates.mask(kept)[rates.layout.tensor_of_row]
    dims, active_states = rates.layout.unit_dims, [rates.states[i] for i in active]
    plan = Plan(
        unit_dims=dims if everyone else tuple(dims[i] for i in active),
        regularized=group["hyper_objective"] == "regularized",
        include_decay=group["include_decay"] and direction.decoupled_decay != 0,
        parameter=parameter_rule(group, rates),
    )
    gradients = [cast("Tensor", p.grad if rates.shards is None else local_gradient(p)) for p in parameters]
    work = Work(
        position=position,
        group=group,
        rates=rates,
        direction=direction,
        plan=plan,
        active=active,
        parameters=rates.real(parameters),
        gradients=rates.real(gradients),
        buffers={key: rates.real([state[key] for state in active_states]) for key in direction.buffers},
        active_mask=None if everyone else rates.mask(active),
        fresh=fresh,
    )
    work.engine = choose_engine(work)
    return work


def parameter_rule(group: Group, rates: GroupRates) -> ParameterRule | None:
    """How elementwise rates move; None where single elements have none."""
    if "parameter" not in group["levels"]:
        return None
    return ParameterRule(
        rule=group["rule"],
        hyper_lr=hyper_rates(group)["parameter"],
        bounds=rates.bounds,
        pull_form=group["pull_form"],
        pulls=tuple((group["pull"] or {}).get("parameter", {}).items()),
    )


def start_state(parameter: Tensor, state: State, direction: Direction) -> None:
    """Make the buffers of a direction that a parameter lacks.

    Raises:
        ValueError: If its gradient is sparse.
    """
    if parameter.grad is not None and parameter.grad.is_sparse:
        raise ValueError(
            f"gradients must be dense while rates adapt, got a sparse one of shape {tuple(parameter.shape)}; "
            "use sparse=False in the embedding, or hyper_lr=0."
        )
    for key in direction.buffers:
        if state.get(key) is None:
            state[key] = start_buffer(parameter, direction.start(key))
