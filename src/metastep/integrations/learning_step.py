"""optimizer.step() that learns: for trainers, which call the optimizer themselves and know no MetaLearner."""

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from metastep.meta import MetaLearner

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler


class LearningStep:
    """Puts ``learner.step()`` in the place of its optimizer's ``step``, as torch's schedulers put a counter there.

    A closure is run first and has to observe its loss (or an earlier part of the step has). The learner's own call of
    ``optimizer.step`` goes to the optimizer, and so do its hooks, once.

    Args:
        learner: whose optimizer is to learn; the horizon must be 1.

    Attributes:
        scaler: the trainer's GradScaler, if it has one; the validation pass is then scaled, too.

    Raises:
        ValueError: if the learner's horizon is not 1, or its optimizer learns in its steps already.
    """

    def __init__(self, learner: MetaLearner) -> None:
        if learner.horizon != 1:
            raise ValueError(f"learner must have horizon 1 inside a trainer, got {learner.horizon}; write the loop.")
        if isinstance(getattr(getattr(learner.lr.optimizer.step, "__func__", None), "__self__", None), LearningStep):
            raise ValueError("learner has an AsScheduler already; use that one, or call its release() first.")
        self.learner = learner
        self.scaler: GradScaler | None = None
        self._inside = False
        optimizer = learner.lr.optimizer
        self._plain: Callable[..., Any] = optimizer.step
        optimizer.__dict__["step"] = MethodType(self._step, optimizer)

    def _step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        if self._inside:
            return self._plain()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        fused_found = getattr(optimizer, "found_inf", None)  # a fused optimizer unscales, or skips, by itself
        if fused_found is not None and float(fused_found) != 0:
            return self._plain()
        self._inside = True
        try:
            self.learner.step(scaler=None if fused_found is not None else self.scaler)
        finally:
            self._inside = False
        return loss

    def remove(self) -> None:
        """Give the optimizer its own ``step`` back."""
        self.learner.lr.optimizer.__dict__.pop("step", None)
