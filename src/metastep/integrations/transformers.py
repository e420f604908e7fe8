"""LearnedLR in the Trainer of Transformers: a Trainer that lets the schedule see the loss of each step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metastep.integrations.scheduler import AsScheduler, refuse_other_scheduler, warn_of_other_processes
from metastep.meta import MetaLearner
from metastep.schedules import LearnedLR

try:
    from transformers import Trainer

    from metastep.integrations.accelerate import read_step_again, unwrapped
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'metastep.integrations.transformers needs Transformers and Accelerate: pip install "metastep[transformers]".',
        name=error.name,
    ) from error

#: Makes the rates of an optimizer for a run of so many optimizer steps.
MakeLR = Callable[[Optimizer, int], LearnedLR | MetaLearner]


class LearnedLRTrainer(Trainer):
    """A Trainer whose learning rate a LearnedLR sets, from the mean training loss of the step that uses it.

    Give it ``optimizers=(optimizer, AsScheduler(lr))``; or, for the Trainer's own optimizer, ``learned_lr``, a function
    that makes the LearnedLR (or MetaLearner). The rate is saved in the Trainer's checkpoints as ``scheduler.pt``, and
    the logged rate is the one that was used. ``lr_scheduler_type`` and ``warmup_steps`` of the arguments mean nothing;
    ``learning_rate`` is the optimizer's initial rate.

    In another Trainer's place: ``class Mine(LearnedLRTrainer, SFTTrainer): ...``.

    Args:
        args: positional arguments of ``transformers.Trainer``.
        learned_lr: called with the optimizer and the number of optimizer steps of the run.
        kwargs: keyword arguments of ``transformers.Trainer``.

    Raises:
        ValueError: if neither or both of ``learned_lr`` and a scheduler are given, or the scheduler is no AsScheduler
            or that of another optimizer.

    Example:
        >>> from metastep.integrations.transformers import LearnedLRTrainer
        >>> from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9, n_positions=8))
        >>> rows = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 8
        >>> trainer = LearnedLRTrainer(
        ...     model=model,
        ...     args=TrainingArguments("out", max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True),
        ...     train_dataset=rows,
        ...     learned_lr=lambda optimizer, steps: LearnedLR(optimizer, Cosine(), total_steps=steps),
        ... )
        >>> trainer.train().global_step  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        2
    """

    def __init__(self, *args: Any, learned_lr: MakeLR | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.lr_scheduler is None and learned_lr is None:
            raise ValueError(
                "learned_lr must be given, or optimizers=(optimizer, AsScheduler(lr)), got neither; "
                "it makes the LearnedLR of an optimizer."
            )
        if self.lr_scheduler is not None and learned_lr is not None:
            raise ValueError("learned_lr must be left out when optimizers has a scheduler, got both.")
        self._make_lr = learned_lr
        self._made: AsScheduler | None = None
        if self.lr_scheduler is not None:
            self._check_optimizer(self._check(self.lr_scheduler), self.optimizer)
        self._shares: list[Tensor] = []  # 0-d; they add up to the mean loss of the open window

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """Make the LearnedLR, unless there is one.

        Args:
            num_training_steps: optimizer steps of the run.
            optimizer: default: the Trainer's.
        """
        self._shares = []  # training begins, perhaps again after an error in the middle of a window
        if self.lr_scheduler is None and self._make_lr is not None:
            given: Any = self.optimizer if optimizer is None else optimizer
            chosen = unwrapped(given)
            if self._made is not None and self._made.optimizer is chosen:  # train() once more, from the initial rates
                self._made.release()
                self._made.lr.groups.write(self._made.lr.groups.reference)
            scheduler = self._made = AsScheduler(self._make_lr(chosen, num_training_steps))
            self._check_optimizer(scheduler, chosen)
            read_step_again(given)
            self.lr_scheduler = scheduler  # type: ignore[assignment]
            self._created_lr_scheduler = True  # the next train() makes another
        return super().create_scheduler(num_training_steps, optimizer)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as ``transformers.Trainer`` does, and warn if that ends while the rate is still high."""
        output = super().train(*args, **kwargs)
        scheduler = self.lr_scheduler if isinstance(self.lr_scheduler, AsScheduler) else self._made
        if scheduler is not None:
            scheduler.lr.check_end()
        return output

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward pass of a micro-batch; with the last one before a step, the loss is observed."""
        share: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._shares.append(share.detach())  # of the window's mean: divided by its micro-batches, or its tokens
        if self.accelerator.sync_gradients:
            scheduler = self._check(self.lr_scheduler)
            if scheduler.lr.steps == 0:
                refuse_other_scheduler(scheduler.optimizer)  # which a callback may have attached since
            if scheduler.saved_by is not None:
                warn_of_other_processes({"processes": scheduler.saved_by})  # again: Trainer swallows it while it loads
                scheduler.saved_by = None
            loss = torch.stack(self._shares).sum()
            self._shares = []
            scheduler.lr.observe(loss)
            if scheduler.trainer_step is not None:
                scheduler.trainer_step.scaler = self.accelerator.scaler
        return share

    @staticmethod
    def _check(scheduler: object) -> AsScheduler:
        if not isinstance(scheduler, AsScheduler):
            raise ValueError(
                "optimizers must be (optimizer, AsScheduler(lr)) with a metastep LearnedLR, "
                f"got the scheduler {type(scheduler).__name__}; `lr` has one owner."
            )
        return scheduler

    @staticmethod
    def _check_optimizer(scheduler: AsScheduler, optimizer: Any) -> None:
        if scheduler.optimizer is not unwrapped(optimizer):
            found = "no optimizer" if optimizer is None else "another"
            raise ValueError(
                f"optimizers must be (optimizer, AsScheduler(lr)) with the optimizer of that LearnedLR, got {found}; "
                "for the Trainer's own optimizer give learned_lr=lambda optimizer, steps: LearnedLR(optimizer, ...)."
            )
