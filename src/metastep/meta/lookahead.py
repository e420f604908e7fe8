"""Look-aheads: what a step, or K steps together, would have gained had its rate been larger.

A step is tried, or K steps are taken and kept; the gradient of the validation loss is taken where they end, and its
product with how far each step went is the slope of the loss along it. The exact form goes back through the K steps.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metastep.core.distributed import Ranks, any_sharded, is_flattened, local_copies, local_parts, mean_over_ranks
from metastep.core.inner import gradient_products, inner_product
from metastep.core.isolation import (
    RngStates,
    isolated_gradients,
    isolated_modules,
    isolated_rng,
    rng_states,
    set_rng_states,
)
from metastep.schedules import LearnedLR

#: Relative difference of two losses of one batch: more than the order of sums on an accelerator changes, which is not
#: always the same, and less than what another batch does.
_REPLAY_TOLERANCE = {torch.float64: 1e-8, torch.float32: 3e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# ---- one step


class LookAhead:
    """One step that is tried: made before the optimizer takes it.

    It costs one extra copy of the parameters, or of what is here of them.

    Args:
        optimizer: that takes the step.
        ranks: over which the validation loss is a mean.

    Raises:
        ValueError: for parameters that :func:`moved_parameters` refuses.
    """

    def __init__(self, optimizer: Optimizer, ranks: Ranks) -> None:
        self.parameters, self.ranks = moved_parameters(optimizer, ranks), ranks
        self._sharded = any_sharded(self.parameters)
        self._start = local_copies(self.parameters)

    @torch.no_grad()
    def slope(
        self, validation_loss: Callable[[], Tensor], loss_scale: float, *, keep_gradients: bool
    ) -> tuple[float, Tensor]:
        """The validation loss after the step, and its slope along it, (1,); see :func:`validation_slopes`."""
        for before, part in zip(self._start, self._parts(), strict=True):
            torch.sub(part, before, out=before)  # how far the step went
        return validation_slopes(
            self.parameters,
            [self._start],
            validation_loss,
            loss_scale,
            keep_gradients=keep_gradients,
            ranks=self.ranks,
            sharded=self._sharded,
        )

    @torch.no_grad()
    def stretch(self, factor: float | Tensor) -> None:
        """Make the step that was taken ``factor`` times as long; for 1 nothing changes, to the last bit.

        Call it once, after :meth:`slope`: the displacement is used up.
        """
        for part, step in zip(self._parts(), self._start, strict=True):
            more = factor.to(step.device) - 1 if isinstance(factor, Tensor) else factor - 1
            part.add_(step.mul_(more))

    def _parts(self) -> Sequence[Tensor]:
        """What is here of the parameters, where the optimizer has put it since."""
        return local_parts(self.parameters) if self._sharded else self.parameters


# ---- the validation loss where a look-ahead ends


def moved_parameters(optimizer: Optimizer, ranks: Ranks) -> list[nn.Parameter]:
    """All that a step may move: torch's optimizers move whatever has a gradient, frozen since or not.

    Raises:
        ValueError: for FSDP1's flattened parameters, and for sharded ones of which this rank is to decide alone.
    """
    everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters = [parameter for parameter in everything if parameter.requires_grad or parameter.grad is not None]
    if any(map(is_flattened, parameters)):
        raise ValueError(
            "optimizer must hold tensors that MetaLearner can look ahead with, got pieces of one that FSDP1 flattened; "
            "shard the model with torch.distributed.fsdp.fully_shard."
        )
    if ranks is False and any_sharded(parameters):
        raise ValueError(
            "process_group must not be False with sharded parameters, a rank knows a part of the slope; leave it out."
        )
    return parameters


def validation_slopes(
    parameters: Sequence[nn.Parameter],
    displacements: Sequence[Sequence[Tensor]],
    validation_loss: Callable[[], Tensor],
    loss_scale: float = 1.0,
    *,
    keep_gradients: bool = True,
    ranks: Ranks,
    sharded: bool,
) -> tuple[float, Tensor]:
    r"""Return the validation loss at the parameters as they are, and its slopes along given displacements.

    .. math:: s_k = \langle \nabla L_\mathrm{val}(\theta), \Delta_k \rangle

    The gradient is never held as a whole (:func:`metastep.core.inner.gradient_products`). Afterwards the buffers and
    modes of modules, random streams, and the parameters' ``grad`` and hooks are as before.

    With several ranks the loss is the mean of theirs; they send it and the slopes, 8 (K + 1) bytes, and not the
    gradient. (Sharded parameters' gradients are put together by FSDP as in any backward pass: a rank that has a part of
    the displacement needs that part of the mean gradient.)

    Args:
        parameters: where the loss is differentiated.
        displacements: K of them, each with one part for each parameter; of a sharded one, what is here.
        validation_loss: computes the loss, a one-element tensor with a graph.
        loss_scale: factor on the loss during backward, divided out again: for float16 gradients.
        keep_gradients: False lets the parameters' ``grad`` go instead of giving it back.
        ranks: over which the loss is a mean.
        sharded: whether one of the parameters is.

    Returns:
        The loss as a float, and a float64 tensor (K,) of slopes.

    Raises:
        TypeError: if the loss is no tensor with a graph.
        ValueError: if it has more than one element.
    """
    with ExitStack() as stack:
        stack.enter_context(isolated_gradients(parameters, keep=keep_gradients))
        stack.enter_context(isolated_rng(parameters))
        stack.enter_context(isolated_modules(sync=False, gradients_except=parameters if sharded else None))
        # a compiled model would be traced again with the hook that isolates its modules
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        with torch.enable_grad():
            loss = validation_loss()
            check_loss(loss, "validation_loss")
            slopes = gradient_products(loss * loss_scale, parameters, displacements, sharded=sharded)
    if slopes is None:
        raise ValueError("validation_loss does not depend on the optimizer's parameters; it must use the same model.")
    found = torch.cat([loss.detach().reshape(1).to(slopes), slopes / loss_scale])
    mean = mean_over_ranks(found, ranks)
    return float(mean[0]), mean[1:]


def check_loss(loss: object, name: str) -> None:
    """Raise unless what the function of this name returned is a one-element tensor with a graph."""
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        found = "a tensor without a graph" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"{name} must return a tensor with a graph, got {found}; compute it without no_grad or item().")
    if loss.numel() != 1:
        raise ValueError(f"{name} must return one element, got shape {tuple(loss.shape)}; take its mean.")


# ---- K steps


@dataclass
class _Taken:
    """One step that was taken: how far it went, and (exact form) how to take it again."""

    displacement: list[Tensor]
    closure: Callable[[], Tensor] | None
    loss: Tensor | None  # what the closure returned, detached
    rng: RngStates | None
    inputs: "StepInput | None"


class Window:
    """The K steps of one look-ahead, recorded as they are taken.

    ``rates`` are the rates used, with a graph to the schedule's weights through all K queries.
    """

    def __init__(self, lr: LearnedLR, *, first_order: bool) -> None:
        self.lr = lr
        self.parameters = moved_parameters(lr.optimizer, lr.process_group)
        self.first_order = first_order
        self.rates: list[Tensor] = []
        self._taken: list[_Taken] = []
        self._graph_state = copy.deepcopy(lr.state)  # a value of our own: on a device the LearnedLR's is written to

    @staticmethod
    def check(lr: LearnedLR, *, first_order: bool, every: int, horizon: int) -> None:
        """Refuse what the exact form cannot do, before any work is lost.

        Raises:
            ValueError: if the optimizer has no ``differentiable`` form, the window would hold its very first step, or
                there are several ranks, whose replicas cannot be differentiated twice.
        """
        if first_order:
            return
        optimizer = lr.optimizer
        if lr.rank_count > 1:
            raise ValueError(
                f"first_order must be True for horizon > 1 on {lr.rank_count} ranks, got False: neither DDP nor "
                "FSDP can be differentiated twice."
            )
        if "differentiable" not in optimizer.defaults:
            raise ValueError(
                "the exact horizon needs an optimizer with a differentiable form, "
                f"{type(optimizer).__name__} has none; use first_order=True."
            )
        if horizon >= every:
            raise ValueError(
                f"every must be > horizon = {horizon} for the exact form, got {every}: the optimizer's first step, "
                "which creates its state, cannot be differentiated."
            )

    def begin(self) -> RngStates:
        """Return the random streams as they are: before the closure of a step is called, to call it again alike."""
        return rng_states(self.parameters)

    def step(
        self,
        closure: Callable[[], Tensor] | None = None,
        loss: Tensor | None = None,
        rng: RngStates | None = None,
    ) -> None:
        """Query the schedule with a graph and take the step at its rate.

        Args:
            closure: exact form only: what computed the training loss of this step.
            loss: what it returned, detached.
            rng: the random streams before it was called.
        """
        observed = self.lr.flush()
        if observed is None:
            with self.lr.override(self.lr.groups.reference):
                self.lr.optimizer.step()
            return
        rate, state = self.lr.query(observed)
        rate_graph, self._graph_state = self.lr.query_with_graph(observed, self._graph_state)
        start = local_copies(self.parameters)
        inputs = None
        with self.lr.override(rate):
            if closure is not None:
                inputs = record_input(self.lr.optimizer, self.parameters, start)
            self.lr.optimizer.step()
        displacement = [part - before for part, before in zip(local_parts(self.parameters), start, strict=True)]
        self._taken.append(_Taken(displacement, closure, loss, rng, inputs))
        self.rates.append(rate_graph)
        self.lr.commit(rate, state)

    def slopes(self, validation_loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
        """Return the validation loss after the last step and its slopes along each of the K displacements.

        Raises:
            ValueError: if a closure, called again, computes another loss than in its step.
        """
        if self.first_order:
            steps = [taken.displacement for taken in self._taken]
            ranks, sharded = self.lr.process_group, any_sharded(self.parameters)
            return validation_slopes(self.parameters, steps, validation_loss, ranks=ranks, sharded=sharded)
        end = local_copies(self.parameters)
        try:
            with isolated_rng(self.parameters), isolated_modules():
                loss, adjoint = self._validation_gradient(validation_loss)
            slopes: list[Tensor] = []
            state_adjoint: list[dict[str, Tensor]] = [{} for _ in self.parameters]
            with isolated_rng(self.parameters), isolated_modules():
                for place, taken in reversed(list(enumerate(self._taken))):
                    slopes.append(inner_product(adjoint, taken.displacement))
                    adjoint, state_adjoint = self._back(place, taken, adjoint, state_adjoint)
        finally:
            _restore(self.parameters, end)
        return loss, torch.stack(slopes[::-1])

    def _validation_gradient(self, validation_loss: Callable[[], Tensor]) -> tuple[float, list[Tensor]]:
        with torch.enable_grad():
            loss = validation_loss()
            check_loss(loss, "validation_loss")
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        gradient = [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters, strict=True)]
        return float(loss.detach()), gradient

    def _back(
        self, place: int, taken: _Taken, adjoint: list[Tensor], state_adjoint: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """The adjoint before a step from the one after it: through the optimizer, then the training gradient."""
        assert taken.inputs is not None
        assert taken.closure is not None
        assert taken.rng is not None
        through, gradient_adjoint, state_adjoint = step_vjp(taken.inputs, adjoint, state_adjoint)
        _restore(self.parameters, taken.inputs.start)
        set_rng_states(taken.rng)
        with torch.enable_grad():
            loss = taken.closure()
            _check_replay(loss, taken.loss, self.parameters, place, len(self._taken))
            gradient = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
            pairs = [
                (g, a) for g, a in zip(gradient, gradient_adjoint, strict=True) if g is not None and g.requires_grad
            ]
            products = torch.autograd.grad(
                [g for g, _ in pairs], self.parameters, [a for _, a in pairs], allow_unused=True
            )
        return [t if h is None else t + h for t, h in zip(through, products, strict=True)], state_adjoint


def _check_replay(loss: object, taken: Tensor | None, parameters: Iterable[Tensor], place: int, steps: int) -> None:
    """Raise if a closure, called again at the parameters and random numbers of its step, computes another loss.

    The tolerance is that of the coarsest dtype in which the loss is computed (parameters, loss, autocast).
    """
    check_loss(loss, "closure")
    assert isinstance(loss, Tensor)
    assert taken is not None
    kinds = {loss.dtype, *(parameter.dtype for parameter in parameters)}
    if torch.is_autocast_enabled(loss.device.type):
        kinds.add(torch.get_autocast_dtype(loss.device.type))
    tolerance = max(_REPLAY_TOLERANCE.get(kind, 0.0) for kind in kinds)
    now, before = float(loss.detach()), float(taken)
    if not (math.isnan(before) or math.isclose(now, before, rel_tol=tolerance, abs_tol=1e-3 * tolerance)):
        raise ValueError(
            "closure must compute the same loss whenever it is called, that of the step it was given to: step "
            f"{place + 1} of the {steps} in the window had {before:.6g} and now has {now:.6g}. The closure reads a "
            "variable that has changed since, as the batch of a loop does. Bind the batch: "
            "learner.step(functools.partial(loss_of, x, y)), or def closure(x=x, y=y)."
        )


@torch.no_grad()
def _restore(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


# ---- the transpose of one optimizer step, taken from the optimizer's own differentiable form
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
        for parameter, by_name in zip(after, state_adjoint, strict=True):
            for name, cotangent in by_name.items():
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
