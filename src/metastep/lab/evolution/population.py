r"""A population of perturbed weights, and the gradient of a smoothed objective from what it achieved.

.. math:: \nabla \approx \frac{1}{n \sigma^2}
    \sum_{i=1}^{n} \xi_i\, \frac{F(\phi + \epsilon_i) - F(\phi - \epsilon_i)}{2}

Over whole runs :math:`\xi = \epsilon`. Over a run that is cut into unrolls, with a fresh :math:`\epsilon` in each,
persistent evolution strategies take for :math:`\xi` the sum of all perturbations so far: the estimate of an unroll
then holds what the earlier ones did to it, and the sum is unbiased (Vicol, Metz and Sohl-Dickstein, 2021,
arXiv 2112.13835).
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import msgspec
import torch
from torch import Tensor

from metastep.lab.evolution.base_optimizers import Base
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.task_distribution import TaskSpec
from metastep.lab.evolution.vectorised_trainer import WORST_LOSS, VectorisedTrainer

#: A difference of log losses below this is noise, not a reason to go anywhere.
_NOISE = 0.05
_LARGEST = 3.0
#: Below this a loss is as good as 0: which of two tiny losses is smaller is chance.
_LEAST = 3e-3
#: How much the training loss counts beside the validation loss.
_TRAINING = 0.2


class Perturbations:
    """The perturbations of P = 2n schedules: n of them, and their mirror images.

    Args:
        pairs: n.
        size: N, the number of weights.
        sigma: their standard deviation.
        seed: of the source of chance.
        persistent: whether to add them up, for unrolls of one run.
    """

    def __init__(self, pairs: int, size: int, sigma: float, seed: int, *, persistent: bool = False) -> None:
        self.sigma, self.persistent = sigma, persistent
        self._shape = pairs, size
        self._generator = torch.Generator().manual_seed(seed)
        self.total = torch.zeros(pairs, size)

    def around(self, center: Tensor) -> Tensor:
        """Draw anew; return all perturbed weights, (2n, N): first the n perturbed ones, then the mirrored."""
        drawn = torch.randn(self._shape, generator=self._generator) * self.sigma
        self.total = self.total + drawn if self.persistent else drawn
        drawn = drawn.to(center)
        return torch.cat((center + drawn, center - drawn))

    def gradient(self, fitness: Tensor, *, robust: bool = True) -> Tensor:
        """Estimate the gradient of the fitness, (N,), from that of all perturbed weights, (2n,).

        Args:
            fitness: in the order of :meth:`around`; less is better.
            robust: whether to bring differences to unit size and clip them. Tasks then count alike; without it the
                estimate is unbiased.
        """
        above, below = fitness.cpu().chunk(2)
        difference = (above - below) / 2
        if robust:
            scale = difference.abs().mean() + _NOISE
            difference = (difference / scale).clamp(-_LARGEST, _LARGEST) * self.sigma
        return difference @ self.total / (len(self.total) * self.sigma**2)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"total": self.total, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.total = state["total"]
        self._generator.set_state(state["generator"])


@dataclass(frozen=True)
class Outcome:
    """What a population achieved on a task.

    Attributes:
        gradient: estimate of the meta-gradient, (N,); None if the population diverged wholly.
        meta_loss: mean fitness, the logarithm of losses.
        diverged: share of the networks that were lost.
    """

    gradient: Tensor | None
    meta_loss: float
    diverged: float


def fitness(training: Tensor, validation: Tensor) -> Tensor:
    """The objective of each network, (P,): log validation loss, and a part of the log training loss."""
    return validation.clamp(min=_LEAST).log() + _TRAINING * training.clamp(min=_LEAST).log()


def judge(perturbations: Perturbations, training: Tensor, validation: Tensor) -> Outcome:
    """The outcome of a population whose networks reached these losses, each (P,)."""
    reached = fitness(training, validation)
    lost = validation >= WORST_LOSS
    gradient = None if bool(lost.all()) else perturbations.gradient(reached)
    return Outcome(gradient, float(reached.mean()), float(lost.float().mean()))


@dataclass(frozen=True)
class Population:
    """Schedules with perturbed weights, each of which is to train a network on one task.

    Attributes:
        spec: the task.
        base: of the optimizers.
        policy: what the schedules are made of.
        log_rates: logarithm of the initial rate of each pair.
        sigma: of the perturbations.
        seed: of the perturbations.
        horizon_known: whether the policies may know T.
        loss_known: whether they may see the loss.
        device: where to train.
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
        """Those of this population."""
        return Perturbations(len(self.log_rates), self.policy.size, self.sigma, self.seed, persistent=persistent)

    def trainer(self) -> VectorisedTrainer:
        """Its networks before the first step; the two of a pair share the initial rate."""
        rates = torch.tensor(self.log_rates).exp().repeat(2)
        return VectorisedTrainer(
            self.spec,
            self.base,
            self.policy,
            rates,
            horizon_known=self.horizon_known,
            loss_known=self.loss_known,
            device=self.device,
        )

    def evaluate(self, center: Tensor) -> Outcome:
        """Train around the weights ``center``, (N,), from the first step to the last."""
        trainer, perturbations = self.trainer(), self.perturbations()
        return judge(perturbations, *trainer.run(perturbations.around(center.to(self.device))))


class LongTask:
    """A population in training over many meta-steps, one unroll in each: persistent evolution strategies.

    Args:
        population: on a long task.
        unroll: steps in a meta-step.
    """

    def __init__(self, population: Population, unroll: int) -> None:
        self.population, self.unroll = population, unroll
        self.trainer = population.trainer()
        self.perturbations = population.perturbations(persistent=True)

    @property
    def finished(self) -> bool:
        """Whether its T steps are done."""
        return self.trainer.finished

    def advance(self, center: Tensor) -> Outcome:
        """Take one unroll around the present weights and judge the networks by the losses they are at."""
        weights = self.perturbations.around(center.to(self.population.device))
        training = self.trainer.advance(weights, self.unroll)
        return judge(self.perturbations, training, self.trainer.validate())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, but for the base and the policy."""
        values = {field.name: getattr(self.population, field.name) for field in fields(self.population)}
        del values["base"], values["policy"]
        return {
            "population": msgspec.to_builtins(values),
            "trainer": self.trainer.state_dict(),
            "perturbations": self.perturbations.state_dict(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], base: Base, policy: Policy, unroll: int) -> Self:
        """The task of :meth:`state_dict`."""
        values = {**state["population"], "base": base, "policy": policy}
        task = cls(msgspec.convert(values, Population), unroll)
        task.trainer.load_state_dict(state["trainer"])
        task.perturbations.load_state_dict(state["perturbations"])
        return task
