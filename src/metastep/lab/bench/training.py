"""Trainer: one training run, with or without learning the schedule, that can stop at any step and go on bit for bit."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metastep.core.distributed import unreplicated
from metastep.lab.bench.step_styles import Losses, step_of, step_style, wants_gradients
from metastep.meta.learner import MetaLearner
from metastep.schedules import LearnedLR

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)


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
