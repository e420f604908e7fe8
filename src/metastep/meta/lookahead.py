"""Try a step, take the validation gradient there, and see what a larger rate would have done."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from metastep.core.distributed import (
    Ranks,
    any_sharded,
    is_flattened,
    local_gradient,
    local_parts,
    mean_over_ranks,
    part_count,
)
from metastep.core.inner import inner_product
from metastep.core.isolation import isolated_gradients, isolated_modules, isolated_rng


class LookAhead:
    """One step that is tried: made before the optimizer takes it.

    It costs one extra copy of the parameters, or of what is here of them.

    Args:
        parameters: all that the step may move.
        ranks: over which the validation loss is a mean.

    Raises:
        ValueError: for FSDP1's flattened parameters, and for sharded ones of which this rank is to decide alone.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        check_placement(parameters, ranks)
        self.parameters, self.ranks = parameters, ranks
        self._start = copy_parameters(parameters)

    @torch.no_grad()
    def slope(
        self, validation_loss: Callable[[], Tensor], loss_scale: float, *, keep_gradients: bool
    ) -> tuple[float, Tensor]:
        """The validation loss after the step, and its slope along it, (1,); see :func:`validation_slopes`."""
        for before, part in zip(self._start, local_parts(self.parameters), strict=True):
            torch.sub(part, before, out=before)  # how far the step went
        return validation_slopes(
            self.parameters,
            [self._start],
            validation_loss,
            loss_scale,
            keep_gradients=keep_gradients,
            ranks=self.ranks,
        )

    @torch.no_grad()
    def stretch(self, factor: float | Tensor) -> None:
        """Make the step that was taken ``factor`` times as long; for 1 nothing changes, to the last bit.

        Call it once, after :meth:`slope`: the displacement is used up.
        """
        for part, step in zip(local_parts(self.parameters), self._start, strict=True):
            more = factor.to(step.device) - 1 if isinstance(factor, Tensor) else factor - 1
            part.add_(step.mul_(more))


def check_placement(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Refuse parameters whose slopes cannot be computed.

    Raises:
        ValueError: for FSDP1's flattened parameters, and for sharded ones of which this rank is to decide alone.
    """
    if any(map(is_flattened, parameters)):
        raise ValueError(
            "optimizer must hold tensors that MetaLearner can look ahead with, got pieces of one that FSDP1 flattened; "
            "shard the model with torch.distributed.fsdp.fully_shard."
        )
    if ranks is False and any_sharded(parameters):
        raise ValueError(
            "process_group must not be False with sharded parameters, a rank knows a part of the slope; leave it out."
        )


@torch.no_grad()
def copy_parameters(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Copies of what is here of the parameters."""
    return [part.clone() for part in local_parts(parameters)]


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

    The gradient is never held as a whole: each parameter's part is multiplied as it arrives, and let go. Afterwards the
    buffers and modes of modules, random streams, and the parameters' ``grad`` and hooks are as before.

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
    whole, slopes = not any_sharded(parameters), list[Tensor]()

    def multiply(place: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad if whole else local_gradient(parameter), None
            if gradient is None:
                return
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            parts = [inner_product([gradient], [step[place]]) for step in displacements]
            slopes.append(torch.stack(parts) * (1 if whole else part_count(parameter)))

        return hook

    with ExitStack() as stack:
        stack.enter_context(isolated_gradients(parameters, keep=keep_gradients))
        stack.enter_context(isolated_rng(parameters))
        stack.enter_context(isolated_modules(sync=False, gradients_except=None if whole else parameters))
        # a compiled model would be traced again with the hook that isolates its modules
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        inputs = [parameter for parameter in parameters if parameter.requires_grad]
        with torch.enable_grad():
            loss = validation_loss()
            check_loss(loss, "validation_loss")
            for place, parameter in enumerate(parameters):
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(multiply(place))  # type: ignore[no-untyped-call]
                    stack.callback(handle.remove)
            # the parts that FSDP keeps are not in the graph, what it puts together for the pass is
            torch.autograd.backward(loss * loss_scale, inputs=inputs if whole else None)
    if not slopes:
        raise ValueError("validation_loss does not depend on the optimizer's parameters; it must use the same model.")
    total = torch.stack([slope.to(slopes[0].device) for slope in slopes]).sum(0) / loss_scale
    mean = mean_over_ranks(torch.cat([loss.detach().reshape(1).to(total), total]), ranks)
    return float(mean[0]), mean[1:]


def check_loss(loss: object, name: str) -> None:
    """Raise unless what the function of this name returned is a one-element tensor with a graph."""
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        found = "a tensor without a graph" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"{name} must return a tensor with a graph, got {found}; compute it without no_grad or item().")
    if loss.numel() != 1:
        raise ValueError(f"{name} must return one element, got shape {tuple(loss.shape)}; take its mean.")
