"""Try a step, take the validation gradient there, and see what a larger rate would have done."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metastep.core.distributed import Ranks, any_sharded, is_flattened, local_copies, local_parts, mean_over_ranks
from metastep.core.inner import gradient_products
from metastep.core.isolation import isolated_gradients, isolated_modules, isolated_rng


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
