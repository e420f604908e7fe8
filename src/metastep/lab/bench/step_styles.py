"""How an optimizer wants its step to be called: with nothing, with the loss, or with ways to compute losses anew.

An optimizer says so in its class attribute ``step_style``; one without it is "plain".

========== ===================================== ====================================================================
"plain"    ``step()``                            torch's
"loss"     ``step(closure)``                     the closure gives the loss of the gradients that are there
"closure"  ``step(closure)``                     the closure computes the batch's loss again, without a graph
"bilevel"  ``step(closure, validation_closure)`` both give losses with a graph: of this batch, and of validation data
========== ===================================== ====================================================================

A bilevel optimizer differentiates the batch's loss itself, so there is no backward pass before its step, and no
gradient that could be clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a step may ask for.

    Args:
        training: computes the mean loss of a batch, with a graph.
        validation: draws validation data and computes their mean loss, with a graph; None: there are none.
    """

    training: Callable[[Any], Tensor]
    validation: Callable[[], Tensor] | None = None


def step_style(optimizer: Optimizer) -> str:
    """The style of an optimizer.

    Raises:
        ValueError: if it names one that does not exist.
    """
    style: str = getattr(optimizer, "step_style", "plain")
    if style not in STYLES:
        raise ValueError(f"step_style of {type(optimizer).__name__} must be one of {', '.join(STYLES)}, got {style!r}.")
    return style


def wants_gradients(optimizer: Optimizer) -> bool:
    """Whether the backward pass is to be done before the step."""
    return step_style(optimizer) != "bilevel"


def step_of(optimizer: Optimizer, losses: Losses) -> Callable[[Any, Tensor], None]:
    """Return what steps an optimizer, given the batch and its loss with the graph.

    Raises:
        ValueError: if the optimizer names a style that does not exist, or learns from validation data and has none.
    """
    return STYLES[step_style(optimizer)](optimizer, losses)


def _plain(optimizer: Optimizer, losses: Losses) -> Callable[[Any, Tensor], None]:
    del losses

    def step(batch: Any, loss: Tensor) -> None:
        del batch, loss
        optimizer.step()

    return step


def _with_loss(optimizer: Optimizer, losses: Losses) -> Callable[[Any, Tensor], None]:
    del losses

    def step(batch: Any, loss: Tensor) -> None:
        del batch
        optimizer.step(lambda: loss.detach())  # type: ignore[arg-type, return-value]

    return step


def _with_closure(optimizer: Optimizer, losses: Losses) -> Callable[[Any, Tensor], None]:
    def step(batch: Any, loss: Tensor) -> None:
        del loss

        def again() -> Tensor:
            with torch.no_grad():
                return losses.training(batch)

        optimizer.step(again)  # type: ignore[arg-type]

    return step


def _bilevel(optimizer: Optimizer, losses: Losses) -> Callable[[Any, Tensor], None]:
    if losses.validation is None:
        raise ValueError(
            f"validation_loss must be given to step {type(optimizer).__name__}, got None; it learns from it."
        )

    call: Callable[..., Any] = optimizer.step

    def step(batch: Any, loss: Tensor) -> None:
        del batch
        call(lambda: loss, losses.validation)

    return step


#: By name of the style.
STYLES: dict[str, Callable[[Optimizer, Losses], Callable[[Any, Tensor], None]]] = {
    "plain": _plain,
    "loss": _with_loss,
    "closure": _with_closure,
    "bilevel": _bilevel,
}
