"""Training a network: what a step does, how an optimizer wants it done, and how a configuration becomes a trainer.

An optimizer says in its class attribute ``step_style`` how its step is called; one without it is "plain".

========== ===================================== ====================================================================
"plain"    ``step()``                            torch's
"loss"     ``step(closure)``                     the closure gives the loss of the gradients that are there
"closure"  ``step(closure)``                     the closure computes the batch's loss again, without a graph
"bilevel"  ``step(closure, validation_closure)`` both give losses with a graph: of this batch, and of validation data
========== ===================================== ====================================================================

A bilevel optimizer differentiates the batch's loss itself, so there is no backward pass before its step, and no
gradient that could be clipped.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from metastep.core.distributed import current_rank, rank_count, replicated, unreplicated
from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.optimizers import make_optimizer
from metastep.lab.bench.schedules import MomentumScale, make_schedule, scaled_by
from metastep.lab.tasks import Task
from metastep.lab.tasks.batches import Batch
from metastep.meta import MetaLearner
from metastep.schedules import LearnedLR, MLRSNet, Schedule, load_schedule

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)

#: Batches of training data on which an eval-mode training loss is measured, to set the scale of a learned schedule.
#: The published code reads the whole training set.
_SCALE_BATCHES = 20

#: Between the seeds of processes; runs of neighbouring seeds share none.
_SEED_STRIDE = 1_000_003

#: So many training batches are looked at to measure the statistics of batch norm, or those of an epoch if fewer.
RECALIBRATION_BATCHES = 50


class Stream(Protocol[BatchT_co]):
    """An endless source of batches that knows where it stands."""

    def __next__(self) -> BatchT_co: ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from there."""


class Trainer:
    """Takes training steps: forward, backward, clip, observe, step, and every now and then a meta-update.

    Args:
        model: the network, in the mode (train) it is to run in, on its device; under DDP where there are several ranks.
        optimizer: over the model's parameters.
        lr: the LearnedLR attached to the optimizer.
        loss: computes the mean training loss of a batch, with a graph.
        batches: endless training batches.
        learner: learns the schedule on the way; None only uses it.
        validation_batches: what the validation loss draws from, for the checkpoint; None: nothing to save.
        validation_loss: draws validation data and computes their mean loss, with a graph, for an optimizer that learns
            its rates from them; None: there is none.
        learns_at: says for a step (0-based) whether the learner is to learn in it; None: the learner counts itself.
        clip_norm: bound on the norm of the whole gradient; None does not clip. Without effect on an optimizer that
            computes its gradients itself (``step_style`` "bilevel").
        recalibrate: called while the network has averaged weights, whose statistics of batch norm nobody has measured:
            a context within which they are measured; None: nothing to measure.

    Raises:
        ValueError: if the optimizer learns from validation data and gets none, or a schedule is to be learned with an
            optimizer that must be given losses.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        lr: LearnedLR,
        loss: Callable[[nn.Module, BatchT], Tensor],
        batches: Stream[BatchT],
        learner: MetaLearner | None = None,
        validation_batches: Stream[BatchT] | None = None,
        validation_loss: Callable[[], Tensor] | None = None,
        learns_at: Callable[[int], bool] | None = None,
        clip_norm: float | None = None,
        recalibrate: Callable[[nn.Module], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.model, self.optimizer, self.lr, self.learner = model, optimizer, lr, learner
        self.batches: Stream[Any] = batches
        self.validation_batches: Stream[Any] | None = validation_batches
        self.steps = 0
        self._loss: Callable[[nn.Module, Any], Tensor] = loss
        self._learns_at = learns_at
        self._clip_norm = clip_norm
        self._recalibrate = recalibrate
        if learner is not None and step_style(optimizer) != "plain":
            raise ValueError(
                f"learner must be None with {type(optimizer).__name__}, whose steps are not linear in a given rate."
            )
        losses = Losses(training=lambda batch: loss(model, batch), validation=validation_loss)
        self._step, self._wants_gradients = step_of(optimizer, losses), wants_gradients(optimizer)

    def advance(self) -> Tensor:
        """Take one step; return the batch's training loss before it, detached and on its device."""
        batch = next(self.batches)
        loss = self._loss(self.model, batch)
        if self._wants_gradients:
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if self._clip_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self.lr.observe(loss)
        if self.learner is None:
            self._step(batch, loss)
        else:
            self.learner.step(meta=None if self._learns_at is None else self._learns_at(self.steps))
        self.steps += 1
        return loss.detach()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, the network has the weights it is to be judged by; afterwards those that are trained, bit for bit.

        They differ for an optimizer that averages its iterates: it then has a method ``averaged()``, such a context.
        """
        averaged: Callable[[], AbstractContextManager[None]] | None = getattr(self.optimizer, "averaged", None)
        if averaged is None:
            yield
            return
        with averaged():
            if self._recalibrate is None:
                yield
                return
            with self._recalibrate(self.network):
                yield

    @property
    def network(self) -> nn.Module:
        """The model itself, whether it is under DDP or not."""
        return unreplicated(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, schedule, meta-optimizer, data order and random streams."""
        device = next(self.model.parameters()).device
        return {
            "steps": self.steps,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr": self.lr.state_dict(),
            "learner": None if self.learner is None else self.learner.state_dict(),
            "batches": self.batches.state_dict(),
            "validation_batches": None if self.validation_batches is None else self.validation_batches.state_dict(),
            "rng": torch.random.get_rng_state(),
            "device_rng": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, in a trainer that was made in the same way.

        Raises:
            ValueError: if a part is missing, or there is one for which this trainer has no place.
        """
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise ValueError(f"state lacks {', '.join(sorted(missing))}; it is no Trainer state, or an older one.")
        for name, part in (("learner", self.learner), ("validation_batches", self.validation_batches)):
            if (part is None) is not (state[name] is None):
                raise ValueError(f"state and trainer must both have a {name}, or neither.")
        self.steps = state["steps"]
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr.load_state_dict(state["lr"])
        self.batches.load_state_dict(state["batches"])
        if self.learner is not None:
            self.learner.load_state_dict(state["learner"])
        if self.validation_batches is not None:
            self.validation_batches.load_state_dict(state["validation_batches"])
        torch.random.set_rng_state(state["rng"])
        device = next(self.model.parameters()).device
        if device.type != "cpu" and state["device_rng"] is not None:
            torch.get_device_module(device).set_rng_state(state["device_rng"], device)


# ---- how an optimizer wants its step


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a step may ask for.

    Args:
        training: computes the mean loss of a batch, with a graph.
        validation: draws validation data and computes their mean loss, with a graph; None: there are none.
    """

    training: Callable[[Any], Tensor]
    validation: Callable[[], Tensor] | None = None


def step_style(optimizer: Optimizer) -> str:
    """The style of an optimizer.

    Raises:
        ValueError: if it names one that does not exist.
    """
    style: str = getattr(optimizer, "step_style", "plain")
    if style not in STYLES:
        raise ValueError(f"step_style of {type(optimizer).__name__} must be one of {', '.join(STYLES)}, got {style!r}.")
    return style


def wants_gradients(optimizer: Optimizer) -> bool:
    """Whether the backward pass is to be done before the step."""
    return step_style(optimizer) != "bilevel"


def step_of(optimizer: Optimizer, losses: Losses) -> Callable[[Any, Tensor], None]:
    """Return what steps an optimizer, given the batch and its loss with the graph.

    Raises:
        ValueError: if the optimizer names a style that does not exist, or learns from validation data and has none.
    """
    return STYLES[step_style(optimizer)](optimizer, losses)


def _plain(optimizer: Optimizer, losses: Losses) -> Callable[[Any, Tensor], None]:
    del losses

    def step(batch: Any, loss: Tensor) -> None:
        del batch, loss
        optimizer.step()

    return step


def _with_loss(optimizer: Optimizer, losses: Losses) -> Callable[[Any, Tensor], None]:
    del losses

    def step(batch: Any, loss: Tensor) -> None:
        del batch
        optimizer.step(lambda: loss.detach())  # type: ignore[arg-type, return-value]

    return step


def _with_closure(optimizer: Optimizer, losses: Losses) -> Callable[[Any, Tensor], None]:
    def step(batch: Any, loss: Tensor) -> None:
        del loss

        def again() -> Tensor:
            with torch.no_grad():
                return losses.training(batch)

        optimizer.step(again)  # type: ignore[arg-type]

    return step


def _bilevel(optimizer: Optimizer, losses: Losses) -> Callable[[Any, Tensor], None]:
    if losses.validation is None:
        raise ValueError(
            f"validation_loss must be given to step {type(optimizer).__name__}, got None; it learns from it."
        )

    call: Callable[..., Any] = optimizer.step

    def step(batch: Any, loss: Tensor) -> None:
        del batch
        call(lambda: loss, losses.validation)

    return step


#: By name of the style.
STYLES: dict[str, Callable[[Optimizer, Losses], Callable[[Any, Tensor], None]]] = {
    "plain": _plain,
    "loss": _with_loss,
    "closure": _with_closure,
    "bilevel": _bilevel,
}


# ---- from a configuration to a trainer


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
        found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        found += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(f"device must be one that torch finds here ({', '.join(found)}), got {name!r}.") from error


def _schedule(config: RunConfig, task: Task, file: Path | None) -> tuple[Schedule, bool]:
    if file is not None:
        return _scaled(load_schedule(file), config), False
    schedule, learns = make_schedule(config.schedule, config.total_steps, text=task.text)
    if learns and config.meta is not None:
        hidden, layers = config.meta.hidden_size, config.meta.num_layers
        assert isinstance(schedule, MLRSNet)
        # the published text variant has no bottleneck
        schedule = MLRSNet(hidden, layers, bottleneck=hidden if task.text else None, scale=schedule.scale)
    return _scaled(schedule, config), learns


def _scaled(schedule: Schedule, config: RunConfig) -> Schedule:
    if config.scale == "momentum":
        return scaled_by(schedule, config.optimizer_options.get("momentum", 0.0), MomentumScale)
    return scaled_by(schedule, config.lr) if config.scale == "lr" else schedule


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


# ---- what some optimizers and several ranks need


def twice_differentiable(loss: Callable[[nn.Module, Batch], Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the same loss without the fused kernels of attention, and of cuDNN for recurrent networks.

    Args:
        loss: the mean loss of a batch, () with a graph.
    """

    def computed(model: nn.Module, batch: Batch) -> Tensor:
        with ExitStack() as kernels:
            kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):  # convolutions keep cuDNN
                kernels.enter_context(torch.backends.cudnn.flags(enabled=False))
            return loss(model, batch)

    return computed


def recalibration(config: RunConfig, task: Task) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Return a context within which a network's batch norms have the statistics of training data at its weights.

    Those are the means over the first batches of a training stream of its own, augmented as in training. Afterwards
    buffers, modes and torch's random streams are as before.

    Args:
        config: the run's, for seed, batch size and device.
        task: its data.
    """

    @contextmanager
    def recalibrated(network: nn.Module) -> Iterator[None]:
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not norms:
            yield
            return
        kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
        try:
            _measure_norms(network, config, task)
            yield
        finally:
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)

    return recalibrated


def _measure_norms(network: nn.Module, config: RunConfig, task: Task) -> None:
    modes = [(module, module.training) for module in network.modules()]
    stream = task.batches("train", batch_size=config.batch_size, seed=config.seed, device=config.device)
    count = min(RECALIBRATION_BATCHES, task.steps_per_epoch(config.batch_size))
    device = torch.device(config.device)
    forked = [] if device.type == "cpu" else [device.index or 0]
    try:
        with torch.random.fork_rng(devices=forked, device_type="cuda" if device.type == "cpu" else device.type):
            update_bn((batch.inputs for batch in islice(stream, count)), network)
    finally:
        for module, mode in modes:
            module.training = mode


class Rows:
    """This rank's rows of every batch of a stream that all ranks read alike.

    The rows are dealt out as evenly as they go. ``weight`` times their mean loss, averaged over the ranks, is the
    mean loss of the whole batch, whatever its size.
    """

    def __init__(self, stream: Stream[Batch]) -> None:
        self._stream = stream
        self.weight = 1.0  # of the batch given last

    def __next__(self) -> Batch:
        batch = next(self._stream)
        count, rank, rows = rank_count(), current_rank(), len(batch.inputs)
        begin, end = rank * rows // count, (rank + 1) * rows // count
        self.weight = (end - begin) * count / rows
        here = slice(begin, max(end, begin + 1))  # a row of no weight, where there are fewer rows than ranks
        return replace(batch, inputs=batch.inputs[here], targets=batch.targets[here])

    def weighted(self, loss: Tensor) -> Tensor:
        """The loss with the weight of the batch given last."""
        return loss if self.weight == 1.0 else loss * self.weight

    def state_dict(self) -> dict[str, Any]:
        """The stream's."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from :meth:`state_dict`."""
        self._stream.load_state_dict(state)


def rows_here(stream: Stream[Batch]) -> Stream[Batch]:
    """This rank's rows of a stream; with one rank, the stream itself."""
    return stream if rank_count() == 1 else Rows(stream)
