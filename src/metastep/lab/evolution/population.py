"""One task of a meta-step: what a worker is given, and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from metastep.lab.evolution.distribution import TaskSpec
from metastep.lab.evolution.members import WORST_LOSS, Members
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.rules import Base
from metastep.lab.evolution.strategies import Perturbations

Found = TypeVar("Found")

#: Below this a loss is as good as 0: which of two tiny losses is smaller is chance.
_LEAST = 3e-3
#: How much the training loss counts beside the validation loss.
_TRAINING = 0.2


@dataclass(frozen=True)
class Job:
    """A population to train on one task, from start to end.

    Attributes:
        spec: the task.
        base: of the optimizers.
        policy: what the schedules are made of.
        log_rates: logarithm of the initial rate of each pair.
        sigma: of the perturbations.
        seed: of the perturbations.
        horizon_known: whether the policies may know T.
        loss_known: whether they may see the loss.
        device: where.
    """

    spec: TaskSpec
    base: Base
    policy: Policy
    log_rates: tuple[float, ...]
    sigma: float
    seed: int
    horizon_known: bool
    loss_known: bool
    device: str = "cpu"

    def perturbations(self, *, persistent: bool = False) -> Perturbations:
        """Those of this job."""
        return Perturbations(len(self.log_rates), self.policy.size, self.sigma, self.seed, persistent=persistent)

    def members(self) -> Members:
        """The population before its first step; the members of a pair share the initial rate."""
        rates = torch.tensor(self.log_rates).exp().repeat(2)
        return Members(
            self.spec,
            self.base,
            self.policy,
            rates,
            horizon_known=self.horizon_known,
            loss_known=self.loss_known,
            device=self.device,
        )


@dataclass(frozen=True)
class Outcome:
    """What a population did.

    Attributes:
        gradient: estimate of the meta-gradient, (N,); None if the population diverged wholly.
        meta_loss: mean fitness, the logarithm of losses.
        diverged: share of the members whose network was lost.
    """

    gradient: Tensor | None
    meta_loss: float
    diverged: float


def fitness(training: Tensor, validation: Tensor) -> Tensor:
    """The objective of a member, (P,): log validation loss, and a part of the log training loss."""
    return validation.clamp(min=_LEAST).log() + _TRAINING * training.clamp(min=_LEAST).log()


def judge(perturbations: Perturbations, training: Tensor, validation: Tensor) -> Outcome:
    """The outcome of a population that reached these losses, each (P,)."""
    reached = fitness(training, validation)
    lost = validation >= WORST_LOSS
    gradient = None if bool(lost.all()) else perturbations.gradient(reached)
    return Outcome(gradient, float(reached.mean()), float(lost.float().mean()))


def evaluate(job: Job, center: Tensor) -> Outcome:
    """Train the population of a job around the weights ``center``, (N,), from start to end."""
    members, perturbations = job.members(), job.perturbations()
    weights = perturbations.around(center.to(job.device))
    return judge(perturbations, *members.run(weights))


class Engine(Protocol):
    """Does the same work for several jobs, wherever it has room."""

    def __call__(self, work: Callable[[Job], Found], jobs: Sequence[Job]) -> Sequence[Found | None]:
        """What the work returned for each job, in their order; None for one that was lost with its worker."""


def here(work: Callable[[Job], Found], jobs: Sequence[Job]) -> list[Found | None]:
    """The :class:`Engine` of this process: one after the other."""
    return [work(job) for job in jobs]
