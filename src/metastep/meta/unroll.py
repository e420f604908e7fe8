"""K steps judged together: what is kept while they are taken, and the adjoint that runs back through them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metastep.core.distributed import local
from metastep.core.inner import inner_product
from metastep.core.isolation import RngStates, isolated_buffers, isolated_rng, rng_states, set_rng_states
from metastep.meta.adjoint import StepInput, record_input, step_vjp
from metastep.meta.lookahead import check_validation_loss, copy_parameters, validation_slopes
from metastep.schedules import LearnedLR


@dataclass
class _Taken:
    """One step that was taken: where it started, how far it went, and (exact form) how to take it again."""

    displacement: list[Tensor]
    closure: Callable[[], Tensor] | None
    rng: RngStates | None
    inputs: StepInput | None


class Window:
    """The K steps of one look-ahead, recorded as they are taken.

    ``rates`` are the rates used, with a graph to the schedule's weights through all K queries.
    """

    def __init__(self, lr: LearnedLR, parameters: Sequence[nn.Parameter], *, first_order: bool) -> None:
        self.lr = lr
        self.parameters = list(parameters)
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

    def begin(self, closure: Callable[[], Tensor] | None) -> None:
        """Call it before the forward pass of each step; with a closure its random numbers can be drawn again."""
        self._closure, self._rng = closure, None
        if closure is not None:
            self._rng = rng_states(self.parameters)

    def step(self) -> None:
        """Query the schedule with a graph and take the step at its rate."""
        loss = self.lr.flush()
        if loss is None:
            with self.lr.override(self.lr.groups.reference):
                self.lr.optimizer.step()
            return
        rate, state = self.lr.query(loss)
        rate_graph, self._graph_state = self.lr.query_with_graph(loss, self._graph_state)
        start = copy_parameters(self.parameters)
        inputs = None
        with self.lr.override(rate):
            if self._closure is not None:
                inputs = record_input(self.lr.optimizer, self.parameters, start)
            self.lr.optimizer.step()
        displacement = [local(p.detach()) - s for p, s in zip(self.parameters, start, strict=True)]
        self._taken.append(_Taken(displacement, self._closure, self._rng, inputs))
        self.rates.append(rate_graph)
        self.lr.commit(rate, state)

    def slopes(self, validation_loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
        """Return the validation loss after the last step and its slopes along each of the K displacements."""
        if self.first_order:
            steps = [taken.displacement for taken in self._taken]
            ranks = self.lr.process_group
            return validation_slopes(self.parameters, steps, validation_loss, ranks=ranks)
        loss, adjoint = self._validation_gradient(validation_loss)
        slopes: list[Tensor] = []
        state_adjoint: list[dict[str, Tensor]] = [{} for _ in self.parameters]
        end = copy_parameters(self.parameters)
        with isolated_rng(self.parameters), isolated_buffers():
            for taken in reversed(self._taken):
                slopes.append(inner_product(adjoint, taken.displacement))
                adjoint, state_adjoint = self._back(taken, adjoint, state_adjoint)
            _restore(self.parameters, end)
        return loss, torch.stack(slopes[::-1])

    def _validation_gradient(self, validation_loss: Callable[[], Tensor]) -> tuple[float, list[Tensor]]:
        with isolated_rng(self.parameters), isolated_buffers(), torch.enable_grad():
            loss = validation_loss()
            check_validation_loss(loss)
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        gradient = [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters, strict=True)]
        return float(loss.detach()), gradient

    def _back(
        self, taken: _Taken, adjoint: list[Tensor], state_adjoint: list[dict[str, Tensor]]
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
            gradient = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
            pairs = [
                (g, a) for g, a in zip(gradient, gradient_adjoint, strict=True) if g is not None and g.requires_grad
            ]
            products = torch.autograd.grad(
                [g for g, _ in pairs], self.parameters, [a for _, a in pairs], allow_unused=True
            )
        return [t if h is None else t + h for t, h in zip(through, products, strict=True)], state_adjoint


@torch.no_grad()
def _restore(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
