"""A LearnedLR in the shape that trainers want: a scheduler object, and an ``optimizer.step()`` that learns."""

import warnings
from collections.abc import Callable, Mapping
from inspect import Signature, signature
from types import MethodType
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from metastep.core.distributed import Ranks, rank_count
from metastep.meta import MetaLearner
from metastep.schedules import LearnedLR

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler


class LearnedLROptions(TypedDict, total=False):
    """Keyword arguments of :class:`metastep.LearnedLR`, which explains them; an adapter hands them on."""

    initial_loss: float | None
    num_classes: int | None
    total_steps: int | None
    warmup_steps: int
    min_lr: float
    max_lr: float
    measure_loss: Callable[[], float | Tensor] | None
    process_group: Ranks


class AsScheduler:
    """A LearnedLR, or a MetaLearner, as the scheduler object that a trainer steps, reads and saves.

    :meth:`step` does nothing, however often it is called: the rate of a step is written by the optimizer's step hook,
    from that step's own loss. With a MetaLearner, ``optimizer.step()`` is the learner's step from then on.

    Whoever runs the loop must observe the loss; :class:`metastep.integrations.transformers.LearnedLRTrainer` does.

    Args:
        source: the :class:`metastep.LearnedLR`, or the :class:`metastep.MetaLearner` around one.
        closure_first: whether ``optimizer.step(closure)`` is to run the closure before anything else, so that what it
            finds can still keep the step from being taken (:class:`TrainerStep`). Always so with a MetaLearner.

    Attributes:
        lr: the LearnedLR.
        learner: the MetaLearner or None.
        optimizer: the torch optimizer.
        trainer_step: what stands in the place of ``optimizer.step``; None: nothing does.
        saved_by: by how many processes the state that was loaded was saved; None: nothing was loaded, or it is unknown.

    Raises:
        TypeError: for anything else.
        ValueError: if a torch scheduler is attached to the optimizer, or another AsScheduler has the MetaLearner.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> scheduler = AsScheduler(LearnedLR(optimizer, Cosine(), total_steps=2))
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> scheduler.get_last_lr()
        [0.05]
    """

    def __init__(self, source: LearnedLR | MetaLearner, *, closure_first: bool = False) -> None:
        if not isinstance(source, LearnedLR | MetaLearner):
            raise TypeError(f"source must be a LearnedLR or a MetaLearner, got {type(source).__name__}.")
        self.learner = source if isinstance(source, MetaLearner) else None
        self.lr = source.lr if isinstance(source, MetaLearner) else source
        self.optimizer = self.lr.optimizer
        refuse_other_scheduler(self.optimizer)
        self.trainer_step = TrainerStep(self.lr, self.learner) if self.learner is not None or closure_first else None
        self.saved_by: int | None = None
        self._step_count = 0  # Accelerate's wrapper of schedulers counts here

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the rate was written when the optimizer stepped."""

    def get_last_lr(self) -> list[float]:
        """The rate of each parameter group as the last optimizer step used it."""
        return self.lr.get_last_lr()

    def release(self) -> None:
        """Let go of the optimizer: its rates stay as they are and nothing writes them any more."""
        self.lr.detach()
        if self.trainer_step is not None:
            self.trainer_step.remove()

    def state_dict(self) -> dict[str, Any]:
        """The states of the LearnedLR and of the MetaLearner: numbers, strings and tensors."""
        learner = None if self.learner is None else self.learner.state_dict()
        return {"lr": self.lr.state_dict(), "learner": learner, "processes": rank_count()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; of a run on another number of processes with a warning.

        Raises:
            ValueError: if it is the state of another scheduler; the learner's state is optional.
        """
        if not {"lr", "learner"} <= state_dict.keys():
            raise ValueError(
                f"state_dict must have lr and learner, got {', '.join(sorted(map(str, state_dict))) or 'nothing'}; "
                "the checkpoint is of a run with another scheduler, start this one anew."
            )
        warn_of_other_processes(state_dict)
        self.saved_by = state_dict.get("processes")
        self.lr.load_state_dict(state_dict["lr"])
        if self.learner is not None and state_dict["learner"] is not None:
            self.learner.load_state_dict(state_dict["learner"])


class TrainerStep:
    """Stands in the place of an optimizer's ``step``, as torch's schedulers put a counter there.

    A closure is run first and has to observe its loss (or an earlier part of the step has). Then the MetaLearner, if
    there is one, takes the step. Its own call of ``optimizer.step`` goes to the optimizer, and so do its hooks, once.

    Args:
        lr: the LearnedLR of the optimizer.
        learner: the MetaLearner around it, or None; the horizon must be 1.

    Attributes:
        scaler: the trainer's GradScaler, if it has one; the validation pass is then scaled, too.
        empty: set by whoever knows, while the closure runs: it had no loss, so no step is taken.

    Raises:
        ValueError: if the learner's horizon is not 1, or its optimizer learns in its steps already.
    """

    def __init__(self, lr: LearnedLR, learner: MetaLearner | None) -> None:
        if learner is not None and learner.horizon != 1:
            raise ValueError(f"learner must have horizon 1 inside a trainer, got {learner.horizon}; write the loop.")
        if isinstance(getattr(lr.optimizer.step, "__func__", None), TrainerStep):
            raise ValueError("learner has an AsScheduler already; use that one, or call its release() first.")
        self.lr, self.learner = lr, learner
        self.scaler: GradScaler | None = None
        self.empty = False
        self._inside = False
        self._plain: Callable[..., Any] = lr.optimizer.step
        lr.optimizer.__dict__["step"] = MethodType(self, lr.optimizer)

    def __get__(self, optimizer: Optimizer, kind: type[Optimizer]) -> MethodType:
        """Bind as a function does: a torch scheduler that is attached later binds what it wraps anew."""
        return MethodType(self, optimizer)

    @property
    def __signature__(self) -> Signature:
        """What GradScaler reads, to see whether a step takes it as an argument."""
        return signature(self.__call__)

    def __call__(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of the optimizer."""
        if self._inside:
            return self._plain()
        if closure is None:
            loss = None
        else:
            self.empty = False
            with torch.enable_grad():
                loss = closure()
            if self.empty:
                return loss
        if self.learner is None:
            return self._plain() if closure is None else self._plain(_evaluated(closure, loss))
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
        self.lr.optimizer.__dict__.pop("step", None)


def _evaluated(closure: Callable[[], Any], loss: Any) -> Callable[[], Any]:
    """The closure, whose first evaluation has been made."""
    ahead = [loss]
    return lambda: ahead.pop() if ahead else closure()


def warn_of_other_processes(state_dict: Mapping[str, Any]) -> None:
    """Warn if a state was saved by another number of processes; the rate can continue, the batches are others."""
    before, now = state_dict.get("processes", rank_count()), rank_count()
    if before != now:
        warnings.warn(
            f"the state was saved by a run on {before} process{'es' * (before != 1)}, this one has {now}: the schedule "
            "continues where it was; keep processes x batch size x accumulation as it was, so that a step is the same.",
            stacklevel=3,
        )


def refuse_other_scheduler(optimizer: Optimizer) -> None:
    """Raise a ValueError if one of torch's schedulers is attached to the optimizer."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        raise ValueError(
            "optimizer must have no other scheduler, a torch scheduler is attached to it; `lr` has one owner: "
            "make the optimizer without it."
        )
