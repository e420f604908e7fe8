"""Collecting what one step of one group needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from metastep.core.collectives import local, local_gradient
from metastep.optim.engines import choose_engine
from metastep.optim.group_rates import GroupRates, State, real_view
from metastep.optim.namesake import start_buffer
from metastep.optim.options import Group, hyper_rates
from metastep.optim.phases import ParameterRule, Plan
from metastep.optim.work import Work

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from metastep.optim.direction import Direction


def gather(
    position: int,
    group: Group,
    rates: GroupRates,
    direction: Direction,
    parameters: list[Tensor],
    states: Mapping[Tensor, State],
    clock: int,
) -> Work:
    """The tensors of a group that take part in this step, and the engine for them.

    Args:
        position: Index of the group.
        group: The group with its options.
        rates: Its packed rates.
        direction: Its direction.
        parameters: Those with a gradient, in the group's order.
        states: The optimizer's state.
        clock: Steps so far in which any parameter had a gradient.
    """
    places = {id(p): i for i, p in enumerate(rates.members)}
    active = [places[id(p)] for p in parameters]
    everyone = len(active) == len(rates.members)
    stale = [i for i, last in enumerate(rates.last_updates) if last != clock or last == 0]
    fresh = None
    if stale or not everyone:
        kept = set(active).difference(stale)
        fresh = rates.mask(sorted(kept))[rates.layout.tensor_of_row]
    plan = Plan(
        unit_dims=tuple(rates.layout.unit_dims[i] for i in active),
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
        parameters=[real_view(local(p)) for p in parameters],
        gradients=list(map(real_view, gradients)),
        buffers={key: [real_view(local(states[p][key])) for p in parameters] for key in direction.buffers},
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
