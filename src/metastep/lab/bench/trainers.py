"""From a run's configuration and its data to the trainer that runs it."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from metastep.core.distributed import current_rank, replicated
from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.optimizers import make_optimizer
from metastep.lab.bench.ranks import Rows, rows_here
from metastep.lab.bench.recalibration import recalibration
from metastep.lab.bench.schedules import make_schedule, scaled_by
from metastep.lab.bench.second_derivatives import twice_differentiable
from metastep.lab.bench.step_styles import step_style
from metastep.lab.bench.trainer import Stream, Trainer
from metastep.lab.tasks import Task
from metastep.lab.tasks.batches import Batch
from metastep.meta import MetaLearner
from metastep.schedules import LearnedLR, MLRSNet, Schedule, load_schedule

#: Batches of training data on which an eval-mode training loss is measured, to set the scale of a learned schedule.
#: The published code reads the whole training set.
_SCALE_BATCHES = 20

#: Between the seeds of processes; runs of neighbouring seeds share none.
_SEED_STRIDE = 1_000_003


def make_trainer(config: RunConfig, task: Task, *, schedule_file: Path | None = None, fresh: bool = True) -> Trainer:
    """Seed torch, and make the network, the optimizer, the schedule, the batches and what learns.

    Args:
        config: the run's.
        task: its data.
        schedule_file: read the schedule from here rather than from where the configuration says.
        fresh: whether the run begins here, so that a schedule which sets its own scale is to measure the initial loss.

    Raises:
        ValueError: if something in the configuration cannot be had: a device, a schedule, validation data.
    """
    check_device(config.device)
    torch.manual_seed(config.seed)
    model = task.make_model().to(config.device).train()
    epoch = task.steps_per_epoch(config.batch_size)
    optimizer = make_optimizer(config.optimizer, model, config.lr, config.optimizer_options, steps_per_epoch=epoch)
    schedule, learns = _schedule(config, task, schedule_file)

    def training_loss() -> float:
        """Mean loss of the network as it is, in eval mode."""
        size, device = config.batch_size, config.device
        return task.evaluate(model, "train", batch_size=size, max_batches=_SCALE_BATCHES, device=device)["loss"]

    lr = LearnedLR(
        optimizer,
        schedule,
        num_classes=task.num_classes,
        total_steps=config.total_steps,
        warmup_steps=config.warmup_steps,
        initial_loss=training_loss() if fresh and not schedule.relative else None,
        measure_loss=training_loss,
    )
    replicas = replicated(model)
    bilevel = step_style(optimizer) == "bilevel"
    validation, validation_loss = _validation(config, task, replicas) if learns or bilevel else (None, None)
    learner = _learner(config, lr, validation_loss) if learns and validation_loss is not None else None
    size, device = config.batch_size, config.device
    batches = rows_here(task.batches("train", batch_size=size, seed=config.seed, device=device))
    loss = _weighted(task, batches)
    if current_rank() > 0:  # dropout of its own
        torch.manual_seed(config.seed + _SEED_STRIDE * current_rank())
    return Trainer(
        model=replicas,
        optimizer=optimizer,
        lr=lr,
        loss=twice_differentiable(loss) if bilevel else loss,
        batches=batches,
        learner=learner,
        validation_batches=validation,
        validation_loss=validation_loss,
        learns_at=None if config.meta is None else config.meta.learns_at,
        clip_norm=config.clip_norm,
        recalibrate=recalibration(config, task),
    )


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: naming it.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled for CUDA
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"device must be one that this machine and torch have, got {name!r} ({reason}).") from error


def _schedule(config: RunConfig, task: Task, file: Path | None) -> tuple[Schedule, bool]:
    if file is not None:
        return _scaled(load_schedule(file), config), False
    schedule, learns = make_schedule(config.schedule, config.total_steps, text=task.text)
    if learns and config.meta is not None:
        hidden, layers = config.meta.hidden_size, config.meta.num_layers
        # the published text variant has no bottleneck
        schedule = MLRSNet(hidden, layers, bottleneck=hidden if task.text else None, scale=schedule.scale)
    return _scaled(schedule, config), learns


def _scaled(schedule: Schedule, config: RunConfig) -> Schedule:
    return schedule if config.scale == "measured" else scaled_by(schedule, config.lr)


def _weighted(task: Task, batches: Stream[Batch]) -> Callable[[nn.Module, Batch], torch.Tensor]:
    """The loss of a task, with the weight that this process's rows have in their batch."""
    if not isinstance(batches, Rows):
        return task.loss
    return lambda model, batch: batches.weighted(task.loss(model, batch))


def _validation(config: RunConfig, task: Task, model: nn.Module) -> tuple[Stream[Batch], Callable[[], torch.Tensor]]:
    """Batches of inner_valid, and what draws one and computes its loss."""
    if task.splits["inner_valid"] == 0:
        learner = config.optimizer if config.meta is None else f"a schedule ({config.schedule})"
        raise ValueError(f"inner_valid must be > 0 to run {learner} on {task.name}, got 0; it learns from that split.")
    size = config.batch_size if config.meta is None else config.meta.batch_size or config.batch_size
    validation = rows_here(task.batches("inner_valid", batch_size=size, seed=config.seed + 1, device=config.device))
    weighted = _weighted(task, validation)
    return validation, lambda: weighted(model, next(validation))


def _learner(config: RunConfig, lr: LearnedLR, validation_loss: Callable[[], torch.Tensor]) -> MetaLearner:
    if config.meta is None:
        raise ValueError(f"meta must be given to learn the schedule {config.schedule}, got None.")
    return MetaLearner(lr, validation_loss, every=config.meta.every, meta_lr=config.meta.meta_lr)
