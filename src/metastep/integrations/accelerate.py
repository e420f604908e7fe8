"""LearnedLR in a loop under Accelerate."""

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor
from torch.optim import Optimizer

from metastep.core.distributed import rank_count
from metastep.integrations.scheduler import LearnedLROptions, refuse_other_scheduler, warn_of_other_processes
from metastep.schedules import LearnedLR, Schedule

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'metastep.integrations.accelerate needs Accelerate: pip install "metastep[accelerate]".', name=error.name
    ) from error


class AcceleratedLR(LearnedLR):
    """A LearnedLR for a loop under Accelerate: same rate in every process, saved and loaded with everything else.

    Observe the loss itself, before ``accelerator.backward(loss)`` divides and scales it. It need not be prepared;
    ``prepare`` hands it back as it is, and :meth:`step` does nothing, so that no wrapper can step it twice.

    Args:
        accelerator: the run's; ``save_state`` and ``load_state`` take the rate along.
        optimizer: the optimizer, prepared or not.
        schedule: any :class:`metastep.Schedule`, or its name. Default: the calibrated one.
        options: keyword arguments of :class:`metastep.LearnedLR`; steps are optimizer steps, whatever the number of
            processes.

    Raises:
        ValueError: if the optimizer has a scheduler already, or another LearnedLR.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from metastep import MLRSNet
        >>> from metastep.integrations.accelerate import AcceleratedLR
        >>> accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        >>> model = torch.nn.Linear(3, 1)
        >>> model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> lr = AcceleratedLR(accelerator, optimizer, MLRSNet(), num_classes=10)
        >>> for _ in range(4):
        ...     with accelerator.accumulate(model):
        ...         loss = model(torch.ones(5, 3)).square().mean()
        ...         lr.observe(loss)
        ...         accelerator.backward(loss)
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> lr.steps
        2
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: Optimizer,
        schedule: Schedule | str | None = None,
        **options: Unpack[LearnedLROptions],
    ) -> None:
        optimizer = unwrapped(optimizer)
        if isinstance(optimizer, Optimizer):
            refuse_other_scheduler(optimizer)
        self.accelerator = accelerator
        super().__init__(optimizer, schedule, **options)
        accelerator.register_for_checkpointing(self)

    def observe(self, loss: float | Tensor, grad_norm: float | Tensor | None = None) -> None:
        """Take note of this (micro-)batch's loss, and of the gradient's length where you have it.

        Raises:
            ValueError: at the first step, if a torch scheduler was attached to the optimizer in the meantime.
        """
        if self.steps == 0:
            refuse_other_scheduler(self.optimizer)
        super().observe(loss, grad_norm)

    def state_dict(self) -> dict[str, Any]:
        """The state of the LearnedLR, and how many processes there are."""
        return {**super().state_dict(), "processes": rank_count()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; of a run on another number of processes with a warning."""
        warn_of_other_processes(state_dict)
        super().load_state_dict(state_dict)


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside what ``accelerator.prepare`` returned."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def read_step_again(optimizer: Optimizer) -> None:
    """Let Accelerate's wrapper, if it is one, use the ``step`` that its optimizer has now.

    Under a GradScaler the wrapper calls, and puts back, the ``step`` that it found when it was made: a MetaLearner that
    was given the optimizer since would never be asked.
    """
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer.__setstate__(optimizer.__getstate__())  # as after pickling, when it looks for it, too
