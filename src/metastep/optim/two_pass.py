"""One step of one parameter group, in two passes over its tensors: sums and buffers first, parameters last.

`measure` and `move` are pure functions of tensors and frozen settings: run as they are they are the eager passes,
traced by `torch.compile` they are the compiled ones. Shapes: A active tensors (those with a gradient) of T members, R
rows.
"""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from metastep.core.distributed import mean_over_ranks
from metastep.core.inner import row_products, row_sums, row_views, spread, wide
from metastep.core.rates import PREVIOUS, RateBounds, bounded, deviation_of, increment, rate_of, regularized
from metastep.optim.options import BY_OPTIMIZER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from metastep.optim.directions import Buffers, Direction
    from metastep.optim.group_state import GroupState
    from metastep.optim.options import Options


@dataclass(frozen=True, kw_only=True)
class ElementRule:
    """How the rates of single elements move.

    Args:
        rule: One of `RULES`, or `BY_OPTIMIZER`: the hypergradient is left in `.grad` of the deviations.
        hyper_lr: Hyper-rate of the level.
        bounds: Initial rate and bounds.
        pull_form: How regularization is evaluated.
        pull: Pairs of target and weight.
    """

    rule: str
    hyper_lr: float
    bounds: RateBounds
    pull_form: str = "implicit"
    pull: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """What both passes are specialised to.

    Args:
        unit_dims: Per active tensor, the dimension of its rows, or None.
        regularized: Whether the hypergradient is that of the loss plus coupled decay (True) or of the data loss.
        include_decay: Whether decoupled decay is part of the last direction.
        elements: Set where single elements have rates of their own.
    """

    unit_dims: tuple[int | None, ...]
    regularized: bool
    include_decay: bool
    elements: ElementRule | None


@dataclass(frozen=True)
class AppliedRates:
    """The rates that a pass applies.

    Args:
        rows: Per active tensor, the combined rate of the coarser levels, broadcastable against it.
        deviations: Per active tensor, its elementwise deviations; empty without the parameter level.
        shares: (A,) weight of the elementwise rates times the schedule factor.
        factors: (A,) schedule factor at each tensor's last update.
        weight: () weight f of the elementwise hypergradient.
        parents: Per target of the regularization, per active tensor, that level's rates, broadcastable.
        limit: () largest rate that is applied; None for none.
    """

    rows: list[Tensor]
    deviations: list[Tensor]
    shares: Tensor
    factors: Tensor
    weight: Tensor
    parents: dict[str, list[Tensor]]
    limit: Tensor | None


@dataclass(kw_only=True)
class GroupStep:
    """The A active tensors of a group's T members, with what a pass needs to know.

    Args:
        position: Index of the group.
        lr: Its current `lr`.
        options: Its options.
        state: Its packed rates.
        direction: Its direction.
        settings: What the passes are specialised to.
        active: Indices of the active tensors among the members.
        parameters: The active tensors, complex ones as pairs of real numbers; so are the next two.
        gradients: Their gradients.
        buffers: Their buffers.
        active_mask: (T,) bool, None where every member is active.
        fresh: (R,) bool, rows of tensors that are active and were updated in the step before; None where all are.
        rows: (K, R) sums of the first pass, the schedule factor not yet in them; None before any tensor has a last
            direction.
        passes: What runs the passes.
    """

    position: int
    lr: float | Tensor
    options: Options
    state: GroupState
    direction: Direction
    settings: PassSettings
    active: list[int]
    parameters: list[Tensor]
    gradients: list[Tensor]
    buffers: Buffers
    active_mask: Tensor | None
    fresh: Tensor | None
    rows: Tensor | None = None
    passes: Passes = field(init=False)

    def counts(self) -> Tensor:
        """(A,) updates of the active tensors so far."""
        return self.of_active(self.state.counts)

    def of_active(self, per_member: Tensor) -> Tensor:
        """The active entries of a (T,) vector."""
        return per_member if self.active_mask is None else per_member[self.active_mask]

    def rows_of_active(self, per_row: Tensor) -> Tensor:
        """The rows of active tensors, those that are here, out of an (R,) vector."""
        chosen = self.chosen_rows()
        return per_row if chosen is None else per_row[chosen]

    def all_rows(self, of_active: Tensor) -> Tensor:
        """(K, R) out of the rows of active tensors that are here; others are zero."""
        chosen = self.chosen_rows()
        if chosen is None:
            return of_active
        whole = of_active.new_zeros(of_active.shape[0], self.state.layout.tensor_of_row.shape[0])
        whole[:, chosen] = of_active
        return whole

    def chosen_rows(self) -> Tensor | None:
        """The places of the active tensors' rows that are here; None for all."""
        if self.state.shards is not None:
            return self.state.shards.places(self.active)
        return None if self.active_mask is None else self.active_mask[self.state.layout.tensor_of_row]


def pass_settings(
    state: GroupState, options: Options, direction: Direction, unit_dims: tuple[int | None, ...]
) -> PassSettings:
    """What the passes are specialised to; kept while nothing of it changes."""
    made_from = (options, direction, unit_dims)
    known: tuple[tuple[object, ...], PassSettings] | None = state.cache.get("settings")
    if known is not None and all(map(operator.is_, known[0], made_from)):
        return known[1]
    elements = None
    if "parameter" in options.levels:
        elements = ElementRule(
            rule=options.rule,
            hyper_lr=options.hyper_rates["parameter"],
            bounds=options.bounds,
            pull_form=options.pull_form,
            pull=tuple((options.pull or {}).get("parameter", {}).items()),
        )
    settings = PassSettings(
        unit_dims=unit_dims,
        regularized=options.hyper_objective == "regularized",
        include_decay=options.include_decay and direction.decoupled_decay != 0,
        elements=elements,
    )
    state.cache["settings"] = (made_from, settings)
    return settings


def add_up(steps: Sequence[GroupStep]) -> None:
    """Make the rows of sharded groups those of the whole tensors, in one message of all ranks."""
    cut = [
        (step, rows, shards)
        for step in steps
        if (shards := step.state.shards) is not None
        and (rows := step.rows) is not None
        and (step.state.deviations or step.options.safeguard)
    ]
    if not cut:  # rates of single elements alone need nothing of other ranks
        return
    ranks = cut[0][2].ranks
    if any(shards.ranks is not ranks for _, _, shards in cut):
        ranks = None
    device = cut[0][1].device
    message = torch.cat([(rows * shards.parts).reshape(-1).to(device) for _, rows, shards in cut])
    sums = torch.split(mean_over_ranks(message, ranks), [rows.numel() for _, rows, _ in cut])
    for (step, rows, _), found in zip(cut, sums, strict=True):
        step.rows = found.reshape(rows.shape).to(rows.device)


def measure(
    direction: Direction,
    settings: PassSettings,
    parameters: list[Tensor],
    gradients: list[Tensor],
    buffers: Buffers,
    counts: Tensor,
    rates: AppliedRates,
) -> Tensor:
    """First pass: sums of <g_t, u_{t-1}>, |g_t|^2, |u_{t-1}|^2 per row; then the buffers take in g_t.

    Args:
        direction: The base optimizer's direction.
        settings: Static settings.
        parameters: theta_{t-1} of the active tensors.
        gradients: g_t.
        buffers: State of the direction, advanced in place.
        counts: (A,) updates of each tensor before this one.
        rates: The rates of the last step; elementwise deviations move here, in place.

    Returns:
        (3, R), or (6, R) with elementwise rates: then also <g, alpha_p u>, clipped and rejected elements.
    """
    signed, decayed = judged_gradients(direction, parameters, gradients)
    judged = decayed if settings.regularized else signed
    previous = direction.recover(buffers, counts)
    if settings.include_decay:
        previous = with_decay(direction, settings, parameters, previous, rates)
    if settings.elements is None:
        rows = row_products(judged, previous, settings.unit_dims)
    else:
        columns = []
        for i, (gradient, u, dim) in enumerate(zip(judged, previous, settings.unit_dims, strict=True)):
            g, u = wide(gradient), wide(u)
            product = g * u
            sums = [product, g * g, u * u, *move_elementwise(settings.elements, rates, i, product)]
            columns.append([row_sums(values, dim) for values in sums])
        rows = torch.stack([torch.cat(column) for column in zip(*columns, strict=True)])
    direction.advance(decayed, buffers, counts + 1)
    return rows


def judged_gradients(
    direction: Direction, parameters: list[Tensor], gradients: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the objective that is descended, without and with coupled weight decay."""
    signed = list(torch._foreach_neg(gradients)) if direction.maximize else gradients
    if direction.weight_decay == 0:
        return signed, signed
    return signed, list(torch._foreach_add(signed, parameters, alpha=direction.weight_decay))


def with_decay(
    direction: Direction,
    settings: PassSettings,
    parameters: list[Tensor],
    directions: Iterable[Tensor],
    rates: AppliedRates,
) -> Iterator[Tensor]:
    """The last directions, decoupled decay included: u + decay theta_{t-2}, from theta_{t-1} and the rate between."""
    decay = direction.decoupled_decay
    for i, u in enumerate(directions):
        rate = total_rate(settings.elements, rates, i)
        yield (wide(u) + decay * wide(parameters[i])) / (1 - rate * decay)


def total_rate(elements: ElementRule | None, rates: AppliedRates, i: int) -> Tensor:
    """The rate that multiplies the direction of tensor i, broadcastable against it."""
    rate = rates.rows[i]
    if elements is not None:
        rate = rate + rates.shares[i] * rate_of(rates.deviations[i], elements.bounds, elements.rule)
    return rate if rates.limit is None else torch.minimum(rate, rates.limit)


def move_elementwise(rule: ElementRule, rates: AppliedRates, i: int, product: Tensor) -> list[Tensor]:
    """Move the elementwise deviations of tensor i in place; the sums that are wanted of it, elementwise."""
    deviation = rates.deviations[i]
    old = rate_of(deviation, rule.bounds, rule.rule)
    dot = product * rates.factors[i]
    weighted = old * dot
    if rule.rule == BY_OPTIMIZER:
        deviation.grad = (-rates.weight * weighted).to(deviation.dtype)
        none = torch.zeros_like(weighted)
        return [weighted, none, none]
    step = increment(
        rule.rule, hyper_lr=rule.hyper_lr * rates.weight, dot=dot, alignment=torch.sign(dot) + 0 * dot, rate=old
    )
    low, high = rule.bounds.deviations(rule.rule)
    kept, clipped, rejected = bounded(deviation, step, low, high)
    own = {target: weight for target, weight in rule.pull if target == PREVIOUS or rule.pull_form == "explicit"}
    if own:
        # The part of the regularization that knows only last step's rates happens here; what it leaves out of the
        # convex combination is divided out, so that `regularize_elementwise` finishes it with this step's parents.
        hat = rate_of(kept, rule.bounds, rule.rule)
        targets = {target: rates.parents[target][i] for target in own if target != PREVIOUS}
        rest = 1.0 if rule.pull_form == "explicit" else 1.0 - sum(w for t, w in rule.pull if t != PREVIOUS)
        own = {target: weight / rest for target, weight in own.items()}
        kept = deviation_within(regularized(rule.pull_form, hat, old, own, targets), rule)
    deviation.copy_(kept)
    return [weighted, clipped.to(product.dtype), rejected.to(product.dtype)]


def deviation_within(rate: Tensor, rule: ElementRule) -> Tensor:
    """The deviation of a regularized rate, inside the bounds."""
    low, high = rule.bounds.deviations(rule.rule)
    return deviation_of(rate.clamp(rule.bounds.low, rule.bounds.high), rule.bounds, rule.rule).clamp(low, high)


def regularize_elementwise(rule: ElementRule, rates: AppliedRates, i: int) -> None:
    """Bring the elementwise rates of tensor i nearer to this step's parents, in place."""
    weights = {target: weight for target, weight in rule.pull if target != PREVIOUS}
    if not weights or rule.pull_form == "explicit":
        return
    hat = rate_of(rates.deviations[i], rule.bounds, rule.rule)
    targets = {target: rates.parents[target][i] for target in weights}
    rates.deviations[i].copy_(deviation_within(regularized(rule.pull_form, hat, hat, weights, targets), rule))


def move(
    direction: Direction,
    settings: PassSettings,
    parameters: list[Tensor],
    buffers: Buffers,
    counts: Tensor,
    rates: AppliedRates,
) -> None:
    """Second pass: theta <- theta - alpha* (.) u, in place, with every rate complete.

    Args:
        direction: The base optimizer's direction.
        settings: Static settings.
        parameters: theta of the active tensors.
        buffers: State of the direction after `measure`.
        counts: (A,) updates of each tensor including this one.
        rates: The rates of this step.
    """
    decay = direction.decoupled_decay
    for i, (theta, u) in enumerate(zip(parameters, direction.recover(buffers, counts), strict=True)):
        if settings.elements is not None:
            regularize_elementwise(settings.elements, rates, i)
        rate = total_rate(settings.elements, rates, i)
        if theta.dtype in (torch.float32, torch.float64):
            if decay:
                theta.mul_(1 - rate * decay)
            theta.addcmul_(u.to(theta.dtype), rate.to(theta.dtype), value=-1)
        else:
            theta.copy_(theta.float() * (1 - rate * decay) - rate * u.float())


class Passes(Protocol):
    """What runs the two passes."""

    adapts: bool  # whether it may move the rates in between as well

    def begin(self, step: GroupStep) -> None:
        """Advance the buffers where no tensor has a last direction yet."""

    def measure(self, step: GroupStep) -> Tensor:
        """First pass; (K, rows of the active tensors), see `measure`."""

    def adapt(self, step: GroupStep) -> bool:
        """Move the group's coarser rates and weights; False where that is left to `metastep.optim.adapt`."""

    def move(self, step: GroupStep) -> None:
        """Second pass, see `move`."""


class EagerPasses:
    """The passes in multi-tensor operations, run as they are."""

    adapts = False

    def begin(self, step: GroupStep) -> None:
        """Advance the buffers where no tensor has a last direction yet."""
        _, decayed = judged_gradients(step.direction, step.parameters, step.gradients)
        step.direction.advance(decayed, step.buffers, step.counts() + 1)

    def measure(self, step: GroupStep) -> Tensor:
        """First pass, see `measure`."""
        rates = applied_rates(step, rows=step.settings.include_decay)
        return measure(
            step.direction, step.settings, step.parameters, step.gradients, step.buffers, step.counts(), rates
        )

    def adapt(self, step: GroupStep) -> bool:
        """Leave the rates between the passes to `metastep.optim.adapt`."""
        del step
        return False

    def move(self, step: GroupStep) -> None:
        """Second pass, see `move`."""
        rates = applied_rates(step)
        move(step.direction, step.settings, step.parameters, step.buffers, step.counts(), rates)


def applied_rates(step: GroupStep, rows: bool = True) -> AppliedRates:
    """The rates as they stand, cut to the active tensors; `rows=False` leaves the combined ones out."""
    state, settings = step.state, step.settings
    elements = settings.elements
    weight = state.weights[-1]
    factors, chosen = step.of_active(state.factors), step.chosen_rows()
    parents = {}
    for target, _ in elements.pull if elements is not None else ():
        if target != PREVIOUS:
            parent = spread(state.parent_rates(target), state.layout, target)
            parents[target] = row_views(
                parent if chosen is None else parent[chosen], settings.unit_dims, step.parameters
            )
    combined = []
    if rows:
        total = state.combined_rows() * state.factors[state.layout.tensor_of_row]
        if step.direction.taken:
            total = total - state.lr
        combined = row_views(total if chosen is None else total[chosen], settings.unit_dims, step.parameters)
    limit = None
    if state.limit != math.inf:
        limit = torch.full_like(state.lr, state.limit) - (state.lr if step.direction.taken else 0.0)
    return AppliedRates(
        rows=combined,
        deviations=[] if elements is None else [state.elementwise[i] for i in step.active],
        shares=weight * factors,
        factors=factors,
        weight=weight if step.options.weighs_hypergradients else weight.new_ones(()),
        parents=parents,
        limit=limit,
    )


BACKEND = "inductor"
#: Loops of small tensors gain nothing from another order, and looking for one ends in an assertion in torch 2.11.
BACKEND_OPTIONS: dict[str, Any] = {"loop_ordering_after_fusion": False}
MOST_VARIANTS = 4  # of one group; beyond these the passes run uncompiled

Pass = Callable[..., Any]


class CompiledPasses(EagerPasses):
    """The passes through `torch.compile`: what an accelerator runs when `compiled=True` asks for it.

    Rates, weights, counters and the schedule's rate enter as tensors, so nothing recompiles as they change. Settings
    are compiled in: each of them that changes, and each new set of tensors with gradients, compiles once more, a few
    times.
    """

    def measure(self, step: GroupStep) -> Tensor:
        """First pass, see `measure`."""
        run = compiled_pass(step, "measure", traced_measure)
        if run is None:
            return super().measure(step)
        rates = applied_rates(step, rows=step.settings.include_decay)
        lists = (step.parameters, step.gradients, step.buffers, step.counts())
        result: Tensor = run(*lists, *vars(rates).values())
        return result

    def move(self, step: GroupStep) -> None:
        """Second pass, see `move`."""
        run = compiled_pass(step, "move", traced_move)
        if run is None:
            super().move(step)
        else:
            run(step.parameters, step.buffers, step.counts(), *vars(applied_rates(step)).values())


def compiled_pass(step: GroupStep, name: str, make: Callable[[Direction, PassSettings], Pass]) -> Pass | None:
    """The compiled pass for these tensors and settings; None when too many have been compiled already."""
    cache: dict[object, Pass] = step.state.cache.setdefault(f"compiled {name}", {})
    key = (tuple(step.active), step.direction, step.settings)
    if key not in cache:
        if len(cache) >= MOST_VARIANTS:
            return None
        function = make(step.direction, step.settings)
        # A code object of its own, because torch counts recompilations by code object, over all optimizers.
        own = types.FunctionType(
            function.__code__.replace(), function.__globals__, name, function.__defaults__, function.__closure__
        )
        options = BACKEND_OPTIONS if BACKEND == "inductor" else None
        cache[key] = torch.compile(own, backend=BACKEND, fullgraph=True, dynamic=False, options=options)
    return cache[key]


def traced_measure(direction: Direction, settings: PassSettings) -> Pass:
    """`measure` with its settings fixed."""

    def run(parameters: list[Tensor], gradients: list[Tensor], buffers: Buffers, counts: Tensor, *rates: Any) -> Tensor:
        return measure(direction, settings, parameters, gradients, buffers, counts, AppliedRates(*rates))

    return run


def traced_move(direction: Direction, settings: PassSettings) -> Pass:
    """`move` with its settings fixed."""

    def run(parameters: list[Tensor], buffers: Buffers, counts: Tensor, *rates: Any) -> None:
        move(direction, settings, parameters, buffers, counts, AppliedRates(*rates))

    return run
