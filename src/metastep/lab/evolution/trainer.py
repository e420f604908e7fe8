"""Meta-training over a population: tasks are drawn, populations trained, and the weights of the schedule moved."""

import math
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from metastep.core.policy import Reach, unpack_weights
from metastep.lab.evolution.distribution import FAMILIES, RATES, sample_task
from metastep.lab.evolution.jobs import Engine, Job, Outcome, evaluate, fitness, here
from metastep.lab.evolution.long_task import LongTask
from metastep.lab.evolution.members import WORST_LOSS
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.rules import Base
from metastep.lab.evolution.survey import Findings, fit, survey
from metastep.lab.evolution.widening import widen

_BETAS = 0.9, 0.99
_AVERAGED = 0.98
#: Fitness of a member that is lost.
_LOST = float(fitness(*torch.full((2,), WORST_LOSS)))


@dataclass(frozen=True)
class PopulationConfig:
    """All that decides a meta-training; with it and the seed a run is the same again.

    Attributes:
        base: optimizer of the inner networks, "sgd" (with and without momentum) or "adamw".
        policy: what the schedule reads, and how it moves.
        survey_tasks: tasks that are surveyed first, for weights to start from; 0 starts from scratch.
        fit_steps: steps of fitting those weights.
        meta_steps: steps of the meta-optimizer after that.
        tasks: populations a step, of the survey and of evolution, each on a task of its own.
        pairs: antithetic pairs of a population.
        sigma: standard deviation of the perturbations.
        meta_lr: rate of the meta-optimizer, Adam; it falls to 0 over the second half.
        families: of networks to draw.
        shortest: least length of a task.
        longest: greatest length of a task that is trained in one go; families that cost more stay below it.
        long_share: share of the meta-steps that go on with a long task instead.
        longest_long: greatest length of those.
        unroll: steps of a long task in one meta-step.
        horizon_unknown: share of tasks whose horizon the schedule is not told.
        loss_unknown: share of tasks whose loss it is not shown.
        start: weights to start from in place of a survey's, N of them, or N of the same policy with one rate for the
            network; empty: none.
        seed: of everything.
        device: where populations train.

    Raises:
        ValueError: if both a start and a survey are asked for, or the start has another length.
    """

    base: Base
    policy: Policy
    survey_tasks: int = 150
    fit_steps: int = 1500
    meta_steps: int = 350
    tasks: int = 1
    pairs: int = 12
    sigma: float = 0.05
    meta_lr: float = 0.004
    families: tuple[str, ...] = tuple(FAMILIES)
    shortest: int = 100
    longest: int = 600
    long_share: float = 0.1
    longest_long: int = 10_000
    unroll: int = 200
    horizon_unknown: float = 0.1
    loss_unknown: float = 0.05
    start: tuple[float, ...] = ()
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        sizes = {self.policy.size, self.policy._replace(scope="network").size}
        if self.start and self.survey_tasks:
            raise ValueError(f"survey_tasks must be 0 with weights to start from, got {self.survey_tasks}.")
        if self.start and len(self.start) not in sizes:
            raise ValueError(
                f"start must hold {' or '.join(map(str, sorted(sizes)))} weights, got {len(self.start)}; start from a "
                "schedule of the same signals and hidden units."
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a record."""
        policy = {**self.policy._asdict(), "signals": list(self.policy.signals), "reach": self.policy.reach._asdict()}
        lists = {"families": list(self.families), "start": list(self.start)}
        return {**asdict(self), "policy": policy, **lists}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The configuration of :meth:`as_dict`."""
        given = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        policy = {**given["policy"], "signals": tuple(given["policy"]["signals"])}
        given["policy"] = Policy(**{**policy, "reach": Reach(**policy["reach"])})
        return cls(**{**given, "families": tuple(given["families"]), "start": tuple(given.get("start", ()))})


class PopulationTrainer:
    """Takes meta-steps; stops after any of them and goes on bit for bit.

    Args:
        config: what to train, and on what.
        engine: where the populations of a step train; default: here, one after the other.

    Attributes:
        center: the weights, (N,).
        average: their moving average over about 50 meta-steps, (N,): what is saved as the schedule.
        findings: of the survey, one for each of its tasks that did not diverge wholly.
        done: steps taken, those of the survey and the meta-steps.
        skipped: meta-steps whose populations all diverged wholly, or were lost; the weights stayed as they were.
    """

    def __init__(self, config: PopulationConfig, engine: Engine = here) -> None:
        self.config, self._engine = config, engine
        self.center = _first_weights(config)
        self.average = self.center.clone()
        self.findings: list[Findings] = []
        self.done = self.skipped = 0
        self._mean, self._square = torch.zeros_like(self.center), torch.zeros_like(self.center)
        self._updates = 0
        self._rng = np.random.default_rng(config.seed)
        self._long: LongTask | None = None

    @property
    def finished(self) -> bool:
        """Whether all meta-steps are done."""
        return self.done >= self.config.survey_tasks + self.config.meta_steps

    @property
    def surveying(self) -> bool:
        """Whether the next step is one of the survey."""
        return self.done < self.config.survey_tasks

    def advance(self) -> Outcome:
        """Survey a task or take one meta-step; return the mean of its populations' outcomes."""
        if self.surveying:
            return self._survey()
        config = self.config
        if self._rng.random() < config.long_share:
            outcomes: list[Outcome | None] = [self._advance_long()]
        else:
            jobs = [self._draw(config.longest) for _ in range(config.tasks)]
            outcomes = list(self._engine(partial(evaluate, center=self.center), jobs))
        self.done += 1
        there = [outcome for outcome in outcomes if outcome is not None]
        gradients = [outcome.gradient for outcome in there if outcome.gradient is not None]
        if gradients:
            self._update(torch.stack(gradients).mean(0))
        else:
            self.skipped += 1
        count = max(len(there), 1)
        return Outcome(
            torch.stack(gradients).mean(0) if gradients else None,
            sum(outcome.meta_loss for outcome in there) / count,
            sum(outcome.diverged for outcome in there) / count,
        )

    def _survey(self) -> Outcome:
        config = self.config
        jobs = [self._draw(config.longest) for _ in range(min(config.tasks, config.survey_tasks - self.done))]
        self.done += len(jobs)
        reached = []
        for found in self._engine(survey, jobs):
            least = math.inf if found is None else float(found.fitness.min())
            if found is not None and least < _LOST:
                self.findings.append(found)
                reached.append(least)
            else:
                self.skipped += 1
        if not self.surveying and self.findings:
            network = config.policy._replace(scope="network")
            self.center = _fitting(fit(self.findings, network, config.seed, config.fit_steps), config.policy)
            self.average = self.center.clone()
        return Outcome(None, sum(reached) / len(reached) if reached else _LOST, 1 - len(reached) / len(jobs))

    def _advance_long(self) -> Outcome:
        if self._long is None or self._long.finished:
            self._long = LongTask(self._draw(self.config.longest_long, self.config.longest), self.config.unroll)
        return self._long.advance(self.center)

    def _draw(self, longest: int, shortest: int | None = None) -> Job:
        config, rng = self.config, self._rng
        shortest = config.shortest if shortest is None else shortest
        spec = sample_task(rng, config.base, families=config.families, shortest=shortest, longest=longest)
        low, high = np.log(RATES[config.base])
        return Job(
            spec=spec,
            base=config.base,
            policy=config.policy,
            log_rates=tuple(rng.uniform(low, high, config.pairs).tolist()),
            sigma=config.sigma,
            seed=int(rng.integers(1 << 31)),
            horizon_known=bool(rng.random() >= config.horizon_unknown),
            loss_known=bool(rng.random() >= config.loss_unknown),
            device=config.device,
        )

    def _update(self, gradient: Tensor) -> None:
        fast, slow = _BETAS
        self._updates += 1
        self._mean.lerp_(gradient, 1 - fast)
        self._square.lerp_(gradient**2, 1 - slow)
        mean, square = self._mean / (1 - fast**self._updates), self._square / (1 - slow**self._updates)
        rate = self.config.meta_lr * min(
            1.0, 2 * (1 - (self.done - 1 - self.config.survey_tasks) / self.config.meta_steps)
        )
        self.center = self.center - rate * mean / (square.sqrt() + 1e-8)
        self.average.lerp_(self.center, max(1 - _AVERAGED, 1 / self._updates))

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the configuration."""
        return {
            "center": self.center,
            "average": self.average,
            "mean": self._mean,
            "square": self._square,
            "counts": [self.done, self.skipped, self._updates],
            "rng": _plain(self._rng.bit_generator.state),
            "findings": [found.as_dict() for found in self.findings],
            "long": None if self._long is None else self._long.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, in a trainer of the same configuration."""
        self.center, self.average = state["center"].clone(), state["average"].clone()
        self._mean, self._square = state["mean"].clone(), state["square"].clone()
        self.done, self.skipped, self._updates = state["counts"]
        self._rng.bit_generator.state = state["rng"]
        self.findings = [Findings(**found) for found in state["findings"]]
        like = {"policy": self.config.policy, "base": self.config.base}
        saved = state["long"]
        self._long = None if saved is None else LongTask.from_state(saved, like, self.config.unroll)


def _first_weights(config: PopulationConfig) -> Tensor:
    """Those to start from, or random ones that drive nowhere."""
    policy = config.policy
    if config.start:
        return _fitting(torch.tensor(config.start), policy)
    weights = torch.zeros(policy.size)
    first = unpack_weights(weights, policy.features, policy.hidden, policy.recurrent)["input"]
    first.copy_(torch.randn(first.shape, generator=torch.Generator().manual_seed(config.seed)) * 0.3)
    return weights


def _fitting(weights: Tensor, policy: Policy) -> Tensor:
    """The weights of a policy of either scope as those of this one."""
    return weights if len(weights) == policy.size else widen(weights, policy)


def _plain(state: Any) -> Any:
    """The state of numpy's generator as plain values; its 128-bit numbers are Python's."""
    if isinstance(state, dict):
        return {name: _plain(part) for name, part in state.items()}
    return state if isinstance(state, str) else int(state)
