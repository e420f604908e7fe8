"""Try a step, take the validation gradient there, and see what a larger rate would have done."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from metastep.core.distributed import (
    Ranks,
    is_flattened,
    is_sharded,
    local,
    local_gradient,
    mean_over_ranks,
    part_count,
)
from metastep.core.inner import inner_product
from metastep.core.isolation import (
    isolated_buffers,
    isolated_gradients,
    isolated_other_gradients,
    isolated_rng,
    no_sync,
)


def check_placement(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Refuse parameters whose slopes cannot be told.

    Raises:
        ValueError: for FSDP1's flattened parameters, and for sharded ones of which this rank is to decide alone.
    """
    if any(map(is_flattened, parameters)):
        raise ValueError(
            "optimizer must hold tensors that MetaLearner can look ahead with, got pieces of one that FSDP1 flattened; "
            "shard the model with torch.distributed.fsdp.fully_shard."
        )
    if ranks is False and any(map(is_sharded, parameters)):
        raise ValueError(
            "process_group must not be False with sharded parameters, a rank knows a part of the slope; leave it out."
        )


@torch.no_grad()
def copy_parameters(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Copies of what is here of the parameters: the one extra copy of them that a look-ahead costs."""
    return [local(parameter.detach()).clone() for parameter in parameters]


@torch.no_grad()
def into_displacements(start: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    """Turn copies of the parameters, in place, into how far the parameters have moved since."""
    for before, parameter in zip(start, parameters, strict=True):
        torch.sub(local(parameter), before, out=before)


@torch.no_grad()
def stretch(parameters: Sequence[nn.Parameter], displacement: Sequence[Tensor], factor: float | Tensor) -> None:
    """Make the step that was taken ``factor`` times as long; for 1 nothing changes, to the last bit.

    The displacement is used up.
    """
    for parameter, step in zip(parameters, displacement, strict=True):
        more = factor.to(step.device) - 1 if isinstance(factor, Tensor) else factor - 1
        local(parameter).add_(step.mul_(more))


def validation_slopes(
    parameters: Sequence[nn.Parameter],
    displacements: Sequence[Sequence[Tensor]],
    validation_loss: Callable[[], Tensor],
    loss_scale: float = 1.0,
    *,
    keep_gradients: bool = True,
    ranks: Ranks = False,
) -> tuple[float, Tensor]:
    r"""Return the validation loss at the parameters as they are, and its slopes along given displacements.

    .. math:: s_k = \langle \nabla L_\mathrm{val}(\theta), \Delta_k \rangle

    The gradient is never held as a whole: each parameter's part is multiplied as it arrives, and let go. Buffers,
    random streams, and the parameters' ``grad`` and hooks are afterwards as before.

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

    Returns:
        The loss as a float, and a float64 tensor (K,) of slopes.

    Raises:
        TypeError: if the loss is no tensor with a graph.
        ValueError: if it has more than one element.
    """
    slopes: list[Tensor] = []

    def multiply(place: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient, parameter.grad = local_gradient(parameter), None
            if gradient is not None:
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                parts = [inner_product([gradient], [step[place]]) for step in displacements]
                slopes.append(torch.stack(parts) * part_count(parameter))

        return hook

    with ExitStack() as stack:
        stack.enter_context(isolated_gradients(parameters, keep=keep_gradients))
        stack.enter_context(isolated_rng(parameters))
        stack.enter_context(isolated_buffers())
        stack.enter_context(no_sync())
        inputs = [parameter for parameter in parameters if parameter.requires_grad]
        whole = not any(map(is_sharded, parameters))
        if not whole:
            stack.enter_context(isolated_other_gradients(parameters))
        # a compiled model would be traced again with the hook that protects its buffers
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        with torch.enable_grad():
            loss = validation_loss()
            check_validation_loss(loss)
            for place, parameter in enumerate(parameters):
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(multiply(place))  # type: ignore[no-untyped-call]
                    stack.callback(handle.remove)
            # the parts that FSDP keeps are not in the graph, what it puts together for the pass is
            torch.autograd.backward(loss * loss_scale, inputs=inputs if whole else None)
    if not slopes:
        raise ValueError("validation_loss does not depend on the optimizer's parameters; it must use the same model.")
    total = torch.stack([slope.to(slopes[0].device) for slope in slopes]).sum(0) / loss_scale
    agreed = mean_over_ranks(torch.cat([loss.detach().reshape(1).to(total), total]), ranks)
    return float(agreed[0]), agreed[1:]


def check_validation_loss(loss: object) -> None:
    """Raise unless it is a one-element tensor with a graph."""
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        found = "a tensor without a graph" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(
            f"validation_loss must return a tensor with a graph, got {found}; compute it without no_grad or item()."
        )
    if loss.numel() != 1:
        raise ValueError(f"validation_loss must return one element, got shape {tuple(loss.shape)}; take its mean.")
