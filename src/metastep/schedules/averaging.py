"""An average of a run's weights: a network that is good at any time of a run whose end is not known."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import swa_utils

from metastep.schedules.base import require


def polynomial_average(power: float = 10.0) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Return an averaging function for torch's ``AveragedModel`` that forgets the beginning, however long a run is.

    The t-th weights take the share (power + 1) / (power + t), so the average reaches back over about one part in
    ``power + 1`` of the run so far. An exponential average reaches back over a number of steps, which is right for one
    length only. Nothing is read from a device. Counts among the buffers (integers) are those of the last weights. For a
    model in bfloat16 or float16, whose rounding would lose the small changes, average in float32:
    ``AveragedModel(...).float()``.

    Args:
        power: how much it forgets, >= 0; 0 is the plain mean of all weights.

    Raises:
        ValueError: for another power.

    Source: Shamir and Zhang, arXiv 1212.1824.

    Example:
        >>> from torch.optim.swa_utils import AveragedModel
        >>> model = torch.nn.Linear(2, 1)
        >>> average = AveragedModel(model, multi_avg_fn=polynomial_average())
        >>> average.update_parameters(model)
    """
    known = isinstance(power, int | float) and not isinstance(power, bool)
    require(known and 0 <= power < float("inf"), "power", "a number >= 0", power, "10 averages the last eleventh")

    def update(averages: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
        """Move averages towards weights, of which they hold ``count`` already."""
        if not (averages[0].is_floating_point() or averages[0].is_complex()):
            torch._foreach_copy_(averages, weights)
            return
        exact = torch.promote_types(averages[0].dtype, torch.float32)
        share = (power + 1) / (power + 1 + torch.as_tensor(count, dtype=exact))
        changes = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(averages, changes)

    return update


class AveragedModel(swa_utils.AveragedModel):
    """torch's ``AveragedModel`` with :func:`polynomial_average`; it notices stale statistics of batch norm.

    Averaged weights need statistics of their own: after averaging, batch norm still has those of other weights. Call
    ``torch.optim.swa_utils.update_bn(loader, average)`` before an evaluation. One without warns, once.

    Args:
        model: whose weights are averaged, by ``update_parameters(model)`` after each step.
        options: those of torch's class. With ``use_buffers=True`` the statistics are averaged as well.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> average = AveragedModel(model)
        >>> average.update_parameters(model)
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        if options.keys().isdisjoint({"avg_fn", "multi_avg_fn"}):
            options["multi_avg_fn"] = polynomial_average()
        super().__init__(model, **options)
        norms = [norm for norm in self.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
        self._watches = bool(norms) and not self.use_buffers
        self._stale = False

    def update_parameters(self, model: nn.Module) -> None:
        """Take the present weights of the model into the average."""
        super().update_parameters(model)
        self._stale = self._watches

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the averaged network; in training mode, as in ``update_bn``, its statistics are renewed."""
        if self.training:
            self._stale = False
        elif self._stale:
            self._stale = self._watches = False  # once
            warnings.warn(
                "averaged weights are evaluated with the batch norm statistics of other weights: call "
                "torch.optim.swa_utils.update_bn(loader, average) first, or average the buffers: use_buffers=True.",
                stacklevel=2,
            )
        return super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
