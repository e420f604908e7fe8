"""LearnedLR and MetaLearner in Lightning: callbacks."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from metastep.integrations.scheduler import AsScheduler, LearnedLROptions, refuse_other_scheduler
from metastep.meta import MetaLearner
from metastep.schedules import LearnedLR, Schedule

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder, LearningRateMonitor
    from lightning.pytorch.utilities.model_helpers import is_overridden
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'metastep.integrations.lightning needs Lightning: pip install "metastep[lightning]".', name=error.name
    ) from error


#: Share of the planned steps by which a run may be longer or shorter without a warning.
_TOLERANCE = 0.1


class LearnedLRCallback(Callback):
    """Sets the learning rate of one of a LightningModule's optimizers, from the loss of the step that uses it.

    ``configure_optimizers`` returns the optimizer alone. The loss is the one that goes into the backward pass, as
    ``training_step`` returned it: what Lightning divides by for accumulation and multiplies by for float16 is taken
    back. The state is saved in Lightning's checkpoints, and a ``LearningRateMonitor`` of the same Trainer logs each
    rate when it has been used.

    A ``training_step`` that returns None takes no step: parameters and schedule stay as they are. A second ``fit`` of
    the same Trainer with more epochs (or steps) continues where the first ended, under the new horizon.

    Args:
        schedule: any :class:`metastep.Schedule`, or its name. Default: the calibrated one.
        optimizer: which one, of several.
        capture: False if the module calls :meth:`observe` itself, under manual optimisation: needed with several
            optimizers, or when it divides its losses to accumulate.
        options: keyword arguments of :class:`metastep.LearnedLR`; ``total_steps`` is
            ``trainer.estimated_stepping_batches`` unless given, under automatic optimisation. Where that turns out
            wrong by more than 10 %, a warning says so.

    Attributes:
        scheduler: the LearnedLR as an :class:`metastep.integrations.AsScheduler`, None until ``fit`` has begun.

    Raises:
        ValueError: when ``fit`` begins, if the optimizer has a scheduler, does not exist, or its losses are unknown, or
            if the Trainer has a LearningRateFinder.

    Example:
        >>> from metastep.integrations.lightning import LearnedLRCallback
        >>> callback = LearnedLRCallback(Cosine(), warmup_steps=100)
        >>> trainer = Trainer(max_epochs=3, callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> callback.scheduler is None  # trainer.fit(module, datamodule) makes it, as the module makes its optimizer
        True
    """

    def __init__(
        self,
        schedule: Schedule | str | None = None,
        *,
        optimizer: int = 0,
        capture: bool = True,
        **options: Unpack[LearnedLROptions],
    ) -> None:
        self.schedule, self.optimizer, self.capture, self.options = schedule, optimizer, capture, options
        self.scheduler: AsScheduler | None = None
        self._saved: dict[str, Any] = {}  # a checkpoint's, until fit begins
        self._waiting: list[Tensor] = []  # 0-d, this process's losses of the open window
        self._trainer: int | None = None  # identity of the Trainer of the last fit
        self._warned = False  # of an estimate that is wrong
        self._estimate: int | None = None  # of all optimizer steps, which is not yet known to be wrong
        self._epoch_began: int | None = None  # after so many optimizer steps; None: in the middle

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps the state: one for each optimizer."""
        return self._generate_state_key(optimizer=self.optimizer)

    @property
    def lr(self) -> LearnedLR:
        """The LearnedLR.

        Raises:
            RuntimeError: before ``fit``.
        """
        if self.scheduler is None:
            raise RuntimeError(f"{type(self).__name__} has no LearnedLR before trainer.fit() has made the optimizer.")
        return self.scheduler.lr

    def observe(self, loss: float | Tensor) -> None:
        """Take note of this (micro-)batch's mean loss; for modules that do it themselves (``capture=False``).

        Args:
            loss: a float, or a real floating-point tensor of one element, with or without a graph (which is let go).
        """
        value = torch.as_tensor(loss).detach()
        if value.numel() != 1:
            raise ValueError(f"loss must have one element, got shape {tuple(value.shape)}; observe its mean.")
        self._waiting.append(value.reshape(()))

    # ---- Lightning's side

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the learning-rate monitors, and refuse what sets the rate, too."""
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"trainer must be a lightning.pytorch.Trainer, got {type(trainer).__module__}.{type(trainer).__name__};"
                " import everything from lightning, nothing from pytorch_lightning."
            )
        if stage == "fit" and any(isinstance(c, LearningRateFinder) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                f"trainer must have no LearningRateFinder beside {type(self).__name__}: it sweeps the rate that the "
                "schedule writes. Run it, or Tuner.lr_find, in a Trainer without this callback, and make the module "
                "with the rate that it finds."
            )
        for place, callback in enumerate(trainer.callbacks):  # type: ignore[attr-defined]
            if type(callback) is LearningRateMonitor:
                trainer.callbacks[place] = MonitorAfterStep(callback)  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizer, which exists now, and continue from a checkpoint, which was read before."""
        optimizers = trainer.optimizers
        if not 0 <= self.optimizer < len(optimizers):
            raise ValueError(
                f"optimizer must be in 0 ... {len(optimizers) - 1}, got {self.optimizer}; it counts what "
                "configure_optimizers returns."
            )
        if self.capture and len(optimizers) > 1:
            raise ValueError(
                "capture must be False with several optimizers, whose losses cannot be told apart; call "
                "observe(loss) of this callback in training_step."
            )
        if self.scheduler is not None:  # fit is called again, with new optimizers
            if self._trainer == id(trainer) and trainer.global_step > 0 and not self._saved:
                self._saved = self.state_dict()
            self.scheduler.release()
        options, self._estimate, self._warned = self.options, None, False
        if "total_steps" not in options and pl_module.automatic_optimization:
            steps = trainer.estimated_stepping_batches
            if 0 < steps < float("inf"):
                self._estimate = int(steps)
                options = {**options, "total_steps": self._estimate}
                self._foresee(trainer)
        lr = LearnedLR(optimizers[self.optimizer], self.schedule, **options)
        closure_first = self.capture and pl_module.automatic_optimization
        self.scheduler = AsScheduler(self.make_source(lr, trainer, pl_module), closure_first=closure_first)
        self._trainer, self._waiting, self._epoch_began = id(trainer), [], None
        if self._saved:
            self.scheduler.load_state_dict(self._saved)
            self._saved = {}

    def make_source(self, lr: LearnedLR, trainer: Trainer, pl_module: LightningModule) -> LearnedLR | MetaLearner:
        """What sets the rate; a subclass makes a MetaLearner of it."""
        return lr

    def _foresee(self, trainer: Trainer) -> None:
        """Warn if the accumulation is to change, of which Lightning's estimate knows nothing."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                factors = [callback.get_accumulate_grad_batches(epoch) for epoch in range(trainer.max_epochs or 0)]
                steps = sum(math.ceil(trainer.num_training_batches / factor) for factor in factors)
                self._compare(steps if trainer.max_steps == -1 else min(steps, trainer.max_steps))

    def _compare(self, steps: int) -> None:
        """Warn, once, if a run is to take another number of optimizer steps than was estimated."""
        if self._estimate is not None and abs(steps - self._estimate) > max(1, _TOLERANCE * self._estimate):
            warnings.warn(
                f"{type(self).__name__} was told total_steps={self._estimate} by trainer.estimated_stepping_batches, "
                f"but the run takes about {steps}: the schedule ends too early or too late; give total_steps={steps}.",
                stacklevel=2,
            )
            self._estimate, self._warned = None, True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if a run is resumed without the state of the schedule; it then has the steps that are left."""
        if trainer.global_step > 0 and self.lr.steps == 0:
            if self._estimate is not None and self._estimate > trainer.global_step:
                self._estimate -= trainer.global_step
                self.lr.extend(self._estimate)
            warnings.warn(
                f"the run is resumed after {trainer.global_step} steps, and the checkpoint holds no state of "
                f"{type(self).__name__}: the schedule begins anew, for the steps that are left; resume from a "
                "checkpoint that was written with it.",
                stacklevel=2,
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is known of an epoch of which the beginning is not seen, as after a resume in the middle."""
        self._epoch_began = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the steps of an epoch from its first batch."""
        if batch_idx == 0:
            self._epoch_began = self.lr.steps

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the estimate with the steps that an epoch takes."""
        if self._epoch_began is None or trainer.max_epochs in (None, -1) or trainer.should_stop:
            return
        left = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        steps = self.lr.steps + left * (self.lr.steps - self._epoch_began)
        self._compare(steps if trainer.max_steps == -1 else min(steps, trainer.max_steps))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if training ends while the rate is still high; not if it was stopped, or its estimate warned of."""
        if self.scheduler is not None and not self._warned and not trainer.should_stop:
            self.lr.check_end()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss as ``training_step`` gave it."""
        if not self.capture:
            return
        loss = loss.detach()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # asked this way, its scale stays on the device
            loss = loss / scaler.scale(torch.ones((), device=loss.device))
        if pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches
        self.observe(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Observe the window's losses."""
        if self.scheduler is None or optimizer is not self.lr.optimizer:
            return
        if self.lr.steps == 0:
            refuse_other_scheduler(self.lr.optimizer)  # which another callback may have attached since
        if self.scheduler.trainer_step is not None:
            self.scheduler.trainer_step.scaler = getattr(trainer.precision_plugin, "scaler", None)
        if not self._waiting and self.capture:
            if self.scheduler.trainer_step is not None and pl_module.automatic_optimization:
                self.scheduler.trainer_step.empty = True  # training_step returned None
                return
            self.observe(float("nan"))
        if not self._waiting and self.lr.schedule.needs_loss:
            raise RuntimeError(
                f"{type(self).__name__} came to a step without an observed loss; with capture=False call its "
                "observe(loss) in training_step, before optimizer.step()."
            )
        losses, self._waiting = self._waiting, []
        for loss in losses:
            self.lr.observe(loss)

    def state_dict(self) -> dict[str, Any]:
        """The state in a checkpoint."""
        return self._saved if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until ``fit`` has made the optimizers."""
        self._saved = state_dict


class MetaLearnerCallback(LearnedLRCallback):
    """Learns a schedule while the module trains, on batches of the validation data.

    The batches come from the validation dataloader of this fit (the first, of several), or of the datamodule, over and
    over in its order; a resumed run continues where it was. Model selection on the same data is then biased.

    Args:
        schedule: a schedule with weights.
        validation_loss: computes the loss from the module and a batch on its device; differentiable.
        every: a meta-update in every ``every``-th optimizer step, >= 1.
        meta_lr: rate of the meta-optimizer, > 0.
        max_grad_norm: clip the meta-gradient to this norm; None does not.
        optimizer: as in :class:`LearnedLRCallback`.
        capture: as in :class:`LearnedLRCallback`.
        options: keyword arguments of :class:`metastep.LearnedLR`.

    Raises:
        ValueError: in the first meta-update, if there is no validation data.

    Example:
        >>> from metastep.integrations.lightning import MetaLearnerCallback
        >>> callback = MetaLearnerCallback(MLRSNet(), lambda module, batch: module.loss(batch), every=100)
        >>> trainer = Trainer(max_epochs=3, callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        schedule: Schedule,
        validation_loss: Callable[[LightningModule, Any], Tensor],
        *,
        every: int = 300,
        meta_lr: float = 1e-3,
        max_grad_norm: float | None = None,
        optimizer: int = 0,
        capture: bool = True,
        **options: Unpack[LearnedLROptions],
    ) -> None:
        super().__init__(schedule, optimizer=optimizer, capture=capture, **options)
        self.validation_loss = validation_loss
        self.every, self.meta_lr, self.max_grad_norm = every, meta_lr, max_grad_norm
        self._batches = _EndlessBatches()

    @property
    def learner(self) -> MetaLearner:
        """The MetaLearner.

        Raises:
            RuntimeError: before ``fit``.
        """
        if self.scheduler is None or self.scheduler.learner is None:
            raise RuntimeError(f"{type(self).__name__} has no MetaLearner before trainer.fit() has made the optimizer.")
        return self.scheduler.learner

    def make_source(self, lr: LearnedLR, trainer: Trainer, pl_module: LightningModule) -> MetaLearner:
        """A MetaLearner over the validation batches of this fit."""
        self._batches = _EndlessBatches(self._saved.get("validation_position", 0))

        def loss() -> Tensor:
            batch = self._batches.draw(lambda: validation_data(trainer, pl_module))
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            with trainer.precision_plugin.train_step_context():
                return self.validation_loss(pl_module, trainer.precision_plugin.convert_input(batch))

        return MetaLearner(lr, loss, self.every, self.meta_lr, max_grad_norm=self.max_grad_norm)

    def state_dict(self) -> dict[str, Any]:
        """The state in a checkpoint, the place in the validation data included."""
        state = super().state_dict()
        return state if self.scheduler is None else {**state, "validation_position": self._batches.position}


class MonitorAfterStep(Callback):
    """A LearningRateMonitor that looks after each optimizer step instead of before its batch.

    Before the batch a schedule that reads the loss cannot have set the rate; the monitor would log that of the step
    before. By the epoch it logs, as it does elsewhere, what is in use when the epoch begins.
    """

    def __init__(self, monitor: LearningRateMonitor) -> None:
        self.monitor = monitor
        self._seen = 0  # optimizer steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on."""
        self._seen = trainer.global_step
        self.monitor.on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on, unless no rate has been used yet."""
        if trainer.global_step > 0:
            self.monitor.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: object) -> None:
        """Let the monitor look, if this batch ended with a step."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self.monitor.on_train_batch_start(trainer, pl_module)


class _EndlessBatches:
    """The batches of a loader, over and over."""

    def __init__(self, position: int = 0) -> None:
        self.position = position  # batches drawn in this pass
        self._iterator: Iterator[Any] | None = None

    def draw(self, load: Callable[[], Iterable[Any]]) -> Any:
        """The next batch; the loader is asked for when a pass begins."""
        if self._iterator is None:
            self._iterator = itertools.islice(load(), self.position, None)
        for _ in range(2):
            for batch in self._iterator:
                self.position += 1
                return batch
            self.position, self._iterator = 0, iter(load())
        raise ValueError("the validation dataloader must have at least one batch, it has none.")


def validation_data(trainer: Trainer, pl_module: LightningModule) -> Iterable[Any]:
    """The validation dataloader of this fit, the first of several."""
    loaders: Any = trainer.val_dataloaders
    if loaders is None:  # not set up before the first validation
        source = trainer.datamodule or pl_module  # type: ignore[attr-defined]
        loaders = source.val_dataloader() if is_overridden("val_dataloader", source) else None
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        loaders = loaders[0] if loaders else None
    if loaders is None:
        raise ValueError(
            "validation data must be there to learn a schedule, there is none; give trainer.fit() a datamodule with "
            "val_dataloader, or val_dataloaders, and limit_val_batches > 0."
        )
    found: Iterable[Any] = loaders
    return found
