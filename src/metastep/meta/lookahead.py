"""Try a step, take the validation gradient there, and see what a larger rate would have done."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from metastep.core.inner import inner_product
from metastep.meta.protection import protected_buffers, protected_rng, set_aside_gradients


def copy_parameters(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Detached copies: the one extra copy of the parameters that a look-ahead costs."""
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def into_displacements(start: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    """Turn copies of the parameters, in place, into how far the parameters have moved since."""
    for before, parameter in zip(start, parameters, strict=True):
        torch.sub(parameter, before, out=before)


def validation_slopes(
    parameters: Sequence[nn.Parameter],
    displacements: Sequence[Sequence[Tensor]],
    validation_loss: Callable[[], Tensor],
    loss_scale: float = 1.0,
    *,
    keep_gradients: bool = True,
) -> tuple[float, Tensor]:
    r"""Return the validation loss at the parameters as they are, and its slopes along given displacements.

    .. math:: s_k = \langle \nabla L_\mathrm{val}(\theta), \Delta_k \rangle

    The gradient is never held as a whole: each parameter's part is multiplied as it arrives, and let go. Buffers,
    random streams, and the parameters' ``grad`` and hooks are afterwards as before.

    Args:
        parameters: where the loss is differentiated.
        displacements: K of them, each with one part for each parameter.
        validation_loss: computes the loss, a one-element tensor with a graph.
        loss_scale: factor on the loss during backward, divided out again: for float16 gradients.
        keep_gradients: False lets the parameters' ``grad`` go instead of giving it back.

    Returns:
        The loss as a float, and a float64 tensor (K,) of slopes.

    Raises:
        TypeError: if the loss is no tensor with a graph.
        ValueError: if it has more than one element.
    """
    slopes: list[Tensor] = []

    def multiply(place: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                slopes.append(torch.stack([inner_product([gradient], [step[place]]) for step in displacements]))

        return hook

    with ExitStack() as stack:
        stack.enter_context(set_aside_gradients(parameters, keep=keep_gradients))
        stack.enter_context(protected_rng(parameters))
        stack.enter_context(protected_buffers())
        # a compiled model would be traced again with the hook that protects its buffers
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        with torch.enable_grad():
            loss = validation_loss()
            check_validation_loss(loss)
            for place, parameter in enumerate(parameters):
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(multiply(place))  # type: ignore[no-untyped-call]
                    stack.callback(handle.remove)
            torch.autograd.backward(loss * loss_scale, inputs=[p for p in parameters if p.requires_grad])
    if not slopes:
        raise ValueError("validation_loss does not depend on the optimizer's parameters; it must use the same model.")
    total = torch.stack([slope.to(slopes[0].device) for slope in slopes]).sum(0)
    return float(loss.detach()), total / loss_scale


def check_validation_loss(loss: object) -> None:
    """Raise unless it is a one-element tensor with a graph."""
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        found = "a tensor without a graph" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(
            f"validation_loss must return a tensor with a graph, got {found}; compute it without no_grad or item()."
        )
    if loss.numel() != 1:
        raise ValueError(f"validation_loss must return one element, got shape {tuple(loss.shape)}; take its mean.")
