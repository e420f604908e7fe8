"""A LearnedLR in the shape that trainers want of a scheduler."""

import warnings
from typing import Any

from torch.optim import Optimizer

from metastep.core.distributed import rank_count
from metastep.integrations.learning_step import LearningStep
from metastep.meta import MetaLearner
from metastep.schedules import LearnedLR


class AsScheduler:
    """A LearnedLR, or a MetaLearner, as the scheduler object that a trainer steps, reads and saves.

    :meth:`step` does nothing, however often it is called: the rate of a step is written by the optimizer's step hook,
    from that step's own loss. With a MetaLearner, ``optimizer.step()`` is the learner's step from then on.

    Whoever runs the loop must observe the loss; :class:`metastep.integrations.transformers.LearnedLRTrainer` does.

    Args:
        source: the :class:`metastep.LearnedLR`, or the :class:`metastep.MetaLearner` around one.

    Attributes:
        lr: the LearnedLR.
        learner: the MetaLearner or None.
        optimizer: the torch optimizer.
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

    def __init__(self, source: LearnedLR | MetaLearner) -> None:
        if not isinstance(source, LearnedLR | MetaLearner):
            raise TypeError(f"source must be a LearnedLR or a MetaLearner, got {type(source).__name__}.")
        self.learner = source if isinstance(source, MetaLearner) else None
        self.lr = source.lr if isinstance(source, MetaLearner) else source
        self.optimizer = self.lr.optimizer
        refuse_other_scheduler(self.optimizer)
        self.learning_step = None if self.learner is None else LearningStep(self.learner)
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
        if self.learning_step is not None:
            self.learning_step.remove()

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


def warn_of_other_processes(state_dict: dict[str, Any]) -> None:
    """Warn if a state was saved by another number of processes; the rate can go on, the batches are others."""
    before, now = state_dict.get("processes", rank_count()), rank_count()
    if before != now:
        warnings.warn(
            f"the state was saved by a run on {before} process{'es' * (before != 1)}, this one has {now}: the schedule "
            "goes on where it was; keep processes x batch size x accumulation as it was, so that a step is the same.",
            stacklevel=3,
        )


def refuse_other_scheduler(optimizer: Optimizer) -> None:
    """Raise a ValueError if one of torch's schedulers is attached to the optimizer."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        raise ValueError(
            "optimizer must have no other scheduler, a torch scheduler is attached to it; `lr` has one owner: "
            "make the optimizer without it."
        )
