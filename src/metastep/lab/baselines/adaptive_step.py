"""What optimizers share that measure their own rate: ``group["lr"]`` is the user's coefficient, the rate is read."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from metastep.core.distributed import is_sharded, mean_over_ranks
from metastep.core.inner import inner_product
from metastep.optim.options import Group, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.optim.optimizer import ParamsT

#: How a training loop has to call ``step``: see :class:`AdaptiveStepOptimizer`.
StepStyle = Literal["plain", "loss", "closure", "bilevel"]

#: What every group remembers beside its arguments: the rate that last moved it, and the steps that were refused.
APPLIED, REJECTED = "applied", "rejected"

#: Of a tensor whose gradients are averaged: how many it has seen, and the means of them and of their squares.
STEP, FIRST, SECOND = "step", "exp_avg", "exp_avg_sq"

#: A group, its parameters that have a gradient, and these gradients.
Work = tuple[Group, list[Tensor], list[Tensor]]


class AdaptiveStepOptimizer(Optimizer):
    """Base of the optimizers that adapt their own step size.

    ``group["lr"]`` stays what the user and schedulers made of it; the rate that a step used is :meth:`applied_rate`.
    Whatever is remembered stands in the groups (numbers) and in ``state`` (tensors), so that ``state_dict`` is all.

    Class attributes:
        step_style: "plain": ``step()``. "loss": ``step(closure)`` after backward, where the closure returns the loss
            that is known. "closure": ``step(closure)`` after backward, where it computes the loss of the same batch
            again, without backward. "bilevel": ``step(closure, validation_closure)``, both with graphs.
    """

    step_style: ClassVar[StepStyle] = "plain"

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        defaults = {**defaults, APPLIED: None, REJECTED: 0}
        self.check(defaults)
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range; a subclass adds its own to that of ``lr``."""
        number("lr", group["lr"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which may have its own value of every argument."""
        super().add_param_group(param_group)
        try:
            self.check(self.param_groups[-1])
            for parameter in self.param_groups[-1]["params"]:
                if is_sharded(parameter) or parameter.is_complex():
                    kind = "sharded" if is_sharded(parameter) else "complex"
                    raise ValueError(
                        f"params must be whole, real tensors for {type(self).__name__}, got a {kind} one of shape "
                        f"{tuple(parameter.shape)}; use one of the Hyper optimizers for these."
                    )
        except ValueError:
            del self.param_groups[-1]
            raise

    @property
    def own_precision(self) -> tuple[str, ...]:
        """State that keeps the precision it was saved in, where torch would cast it to the parameter's."""
        return ()

    def applied_rate(self) -> float:
        """The rate that the last step used: the mean over all parameters' elements; 0 before the first step."""
        total, elements = 0.0, 0
        for group in self.param_groups:
            if group[APPLIED] is not None:
                count = sum(p.numel() for p in group["params"] if p.requires_grad)
                total, elements = total + float(group[APPLIED]) * count, elements + count
        return total / max(elements, 1)

    @property
    def rejected(self) -> int:
        """How many steps met a loss or a gradient that was not finite."""
        return sum(int(group[REJECTED]) for group in self.param_groups)

    def reject(self) -> None:
        """Count a step that is not taken."""
        self.param_groups[0][REJECTED] += 1

    def with_gradients(self) -> list[Work]:
        """The groups with their parameters that have a gradient, and these gradients; groups without any are left out.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        found = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            if any(gradient.is_sparse for gradient in gradients):
                raise RuntimeError(f"{type(self).__name__} does not take sparse gradients; use dense embeddings.")
            if parameters:
                found.append((group, parameters, gradients))
        return found

    def moving(self) -> list[Work]:
        """Those of :meth:`with_gradients` whose rate is above 0."""
        return [work for work in self.with_gradients() if float(work[0]["lr"]) > 0]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer; its tensors are copied.

        Raises:
            ValueError: naming the key that a group lacks.
        """
        for position, saved in enumerate(state_dict["param_groups"]):
            missing = next((key for key in self.defaults if key not in saved), None)
            if missing is not None:
                raise ValueError(
                    f"state_dict must have {missing!r} in param_groups[{position}], got {sorted(saved)}; it is of "
                    "another optimizer or version: start with fresh state."
                )
        super().load_state_dict(state_dict)
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for place, parameter in zip(places, parameters, strict=True):
            given = state_dict["state"].get(place, {})
            for key, value in self.state.get(parameter, {}).items():
                if key in self.own_precision:
                    self.state[parameter][key] = given[key].to(parameter.device, copy=True)
                elif isinstance(value, Tensor):  # torch shares tensors of the right kind with the given dict
                    self.state[parameter][key] = value.clone()


class LossStepOptimizer(AdaptiveStepOptimizer):
    """Base of those whose rate follows from the loss and the gradients of the step, by :meth:`move`.

    A step whose loss or gradient is not finite is not taken, and counted in ``rejected``.
    """

    step_style = "loss"

    @abstractmethod
    def move(self, works: list[Work], loss: float, square: float) -> None:
        """Measure the rate of each group, note it under :data:`APPLIED`, and move the parameters.

        Args:
            works: of :meth:`with_gradients`, one at least.
            loss: of all groups, finite.
            square: sum of the squares of all gradients, finite.
        """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Measure the rate, and move; the closure is called once, for the loss.

        Args:
            closure: Returns the loss of the gradients that are in ``grad``.

        Returns:
            What the closure returned.
        """
        loss = evaluated("closure", closure, "this step's loss")
        works = self.with_gradients()
        if works:
            gradients = [g for _, _, part in works for g in part]
            value, square = host_number(loss), float(inner_product(gradients, gradients))
            if all_finite(value, square):
                self.move(works, value, square)
            else:
                self.reject()
        return loss


def positive(name: str, value: object, *, high: float = math.inf) -> float:
    """A finite number > 0 and at most ``high``, or a ValueError that names the argument."""
    result = number(name, value, high=high)
    if result == 0:
        raise ValueError(f"{name} must be > 0, got {value!r}; choose a positive number.")
    return result


def check_betas(group: Group) -> None:
    """Refuse a decay outside [0, 1)."""
    for place, beta in enumerate(group["betas"]):
        number(f"betas[{place}]", beta, high=1.0, open_high=True)


def count(name: str, value: object, *, low: int = 1) -> int:
    """A whole number >= ``low``, or a ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number >= {low}, got {value!r}; count in steps.")
    return value


def evaluated(name: str, closure: Callable[[], Any] | None, what: str) -> Any:
    """What the closure returns, with gradients enabled.

    Raises:
        ValueError: if there is none, or it returns no single number.
    """
    if closure is None:
        raise ValueError(f"{name} must be a function that returns {what}, got None; call optimizer.step({name}).")
    with torch.enable_grad():
        loss = closure()
    if not isinstance(loss, (int, float)) and not (isinstance(loss, Tensor) and loss.numel() == 1):
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"{name} must return {what} as a single number, got {found}; take the mean first.")
    return loss


def recomputed(closure: Callable[[], Any] | None) -> Any:
    """What the closure of a plain step returns, which computes loss and gradients itself; None without one."""
    return None if closure is None else torch.enable_grad()(closure)()


def host_number(loss: Any) -> float:
    """A loss as a number, the mean over ranks where there are several; this waits for its device."""
    number = float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
    return float(mean_over_ranks(torch.tensor(number, dtype=torch.float64)))


def all_finite(*values: float) -> bool:
    """Whether none is NaN or infinite."""
    return all(map(math.isfinite, values))


def weighted_steps(parameters: Sequence[Tensor], directions: Sequence[Tensor], rate: float) -> None:
    """Theta <- theta - rate u, on all tensors at once."""
    torch._foreach_add_(list(parameters), list(directions), alpha=-rate)


def corrected_means(
    states: Sequence[dict[str, Any]], gradients: Sequence[Tensor], key: str, beta: float
) -> list[Tensor]:
    """Advance the mean under ``key``, with decay ``beta``, and give it corrected for its start at 0."""
    for state, gradient in zip(states, gradients, strict=True):
        if key not in state:
            state[key] = torch.zeros_like(gradient)
        state[STEP] = state.get(STEP, 0) + 1
    means = [state[key] for state in states]
    torch._foreach_lerp_(means, list(gradients), 1 - beta)
    return list(torch._foreach_div(means, [1 - beta ** state[STEP] for state in states]))


def adam_moments(
    states: Sequence[dict[str, Any]], gradients: Sequence[Tensor], betas: tuple[float, float], eps: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Advance Adam's moments; give the corrected means of the gradients, and by what Adam divides them.

    Args:
        states: of :attr:`torch.optim.Optimizer.state`, one a gradient.
        gradients: of this step.
        betas: decays of the means of the gradients and of their squares.
        eps: added to the root of the second.
    """
    means = corrected_means(states, gradients, FIRST, betas[0])
    for state, gradient in zip(states, gradients, strict=True):
        if SECOND not in state:
            state[SECOND] = torch.zeros_like(gradient)
    second = [state[SECOND] for state in states]
    torch._foreach_mul_(second, betas[1])
    torch._foreach_addcmul_(second, list(gradients), list(gradients), 1 - betas[1])
    roots = torch._foreach_sqrt(second)
    torch._foreach_div_(roots, [math.sqrt(1 - betas[1] ** state[STEP]) for state in states])
    torch._foreach_add_(roots, eps)
    return means, list(roots)


def adam_directions(
    states: Sequence[dict[str, Any]], gradients: Sequence[Tensor], betas: tuple[float, float], eps: float
) -> list[Tensor]:
    """Advance Adam's moments and give its directions; see :func:`adam_moments`."""
    return list(torch._foreach_div(*adam_moments(states, gradients, betas, eps)))
