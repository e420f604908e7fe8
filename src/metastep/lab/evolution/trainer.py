"""Meta-training by evolution: tasks are drawn, populations trained, and the weights of the schedule moved."""

import math
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Self

import msgspec
import numpy as np
import torch
from torch import Tensor

from metastep.core.policy import ActionBounds, unpack_weights
from metastep.lab.evolution.base_optimizers import Base
from metastep.lab.evolution.policy import Policy, per_layer_weights
from metastep.lab.evolution.population import LongTask, Outcome, Population, fitness
from metastep.lab.evolution.task_distribution import FAMILIES, RATES, sample_task
from metastep.lab.evolution.vectorised_trainer import WORST_LOSS
from metastep.lab.evolution.warm_start import RateSweep, fit_policy, sweep_rates
from metastep.lab.runtime.executor import Executor, LocalExecutor
from metastep.schedules.migration import upgraded_bounds
from metastep.schedules.signal_schedule import Scope, SignalSchedule

#: What the pretrained schedules read: not their own multiplier, so that nothing depends on the initial rate.
SIGNALS: Final = (
    "progress", "remaining", "length", "loss", "loss_trend", "drop",
    "alignment", "alignment_slow", "gradient_trend", "update",
)  # fmt: skip
#: The initial update-to-weight ratio of each base, times the root of T: somewhat below the level that is best on
#: average, so that a run starts with a warm-up. The multiplier moves slowly, e-fold in 7 % of a run: the signals'
#: averages must be able to follow.
INITIAL_RATIOS: Final = MappingProxyType[Base, float]({"sgd": 0.35, "adamw": 0.7})

_BETAS = 0.9, 0.99
_AVERAGED = 0.98
#: Fitness of a network that is lost.
_LOST = float(fitness(*torch.full((2,), WORST_LOSS)))


@dataclass(frozen=True)
class EvolutionConfig:
    """All that decides a meta-training; with it and the seed a run is the same again.

    Attributes:
        base: optimizer of the inner networks, "sgd" (with and without momentum) or "adamw".
        policy: what the schedule reads, and how it moves.
        warm_start_tasks: tasks whose rates are swept first, for weights to start from; 0 starts from scratch.
        fit_steps: steps of fitting those weights.
        meta_steps: steps of the meta-optimizer after that.
        populations: at work in a step, of the warm start and of evolution, each on a task of its own.
        pairs: antithetic pairs of a population.
        sigma: standard deviation of the perturbations.
        meta_lr: rate of the meta-optimizer, Adam; it falls to 0 over the second half.
        families: of networks to draw.
        shortest: least length of a task.
        longest: greatest length of a task that is trained in one go; families that cost more stay below it.
        long_share: share of the meta-steps that continue a long task instead.
        longest_long: greatest length of those.
        unroll: steps of a long task in one meta-step.
        horizon_unknown: share of tasks whose horizon the schedule is not told.
        loss_unknown: share of tasks whose loss it is not shown.
        start: weights to start from in place of a warm start's, N of them, or N of the same policy with one rate for
            the network; empty: none.
        seed: of everything.
        device: where networks train.

    Raises:
        ValueError: for a number out of range, if both a start and a warm start are asked for, or if the start has
            another length.
    """

    base: Base
    policy: Policy
    warm_start_tasks: int = 150
    fit_steps: int = 1500
    meta_steps: int = 350
    populations: int = 1
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
        for name in ("pairs", "populations", "longest", "sigma", "meta_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}.")
        for name in ("warm_start_tasks", "meta_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}.")
        sizes = {self.policy.size, self.policy._replace(scope="network").size}
        if self.start and self.warm_start_tasks:
            raise ValueError(f"warm_start_tasks must be 0 with weights to start from, got {self.warm_start_tasks}.")
        if self.start and len(self.start) not in sizes:
            raise ValueError(
                f"start must hold {' or '.join(map(str, sorted(sizes)))} weights, got {len(self.start)}; start from a "
                "schedule of the same signals and hidden units."
            )

    @property
    def steps(self) -> int:
        """Steps in all: tasks of the warm start, and meta-steps."""
        return self.warm_start_tasks + self.meta_steps

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        policy = {**self.policy._asdict(), "bounds": self.policy.bounds._asdict()}
        values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode({**vars(self), "policy": policy}))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The configuration of :meth:`as_dict`.

        Raises:
            ValueError: for anything else.
        """
        try:
            given = upgraded_bounds(values["policy"])
            policy = Policy(**{**given, "signals": tuple(given["signals"]), "bounds": ActionBounds(**given["bounds"])})
            return msgspec.convert({**values, "policy": policy}, cls)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the settings of an evolution ({error!r})") from error


def default_config(
    base: str, *, hidden: int = 20, scope: Scope = "network", start: SignalSchedule | None = None, **changed: Any
) -> EvolutionConfig:
    """The settings with which the pretrained schedules were trained, with some changed.

    Args:
        base: "sgd" or "adamw".
        hidden: units of the schedule's network.
        scope: one rate for the network, or one for each layer.
        start: a schedule from whose weights to start, in place of a warm start; its signals, units and bounds are
            taken.
        changed: fields of :class:`EvolutionConfig`.

    Raises:
        ValueError: for another base, or a number out of range.
    """
    if base not in INITIAL_RATIOS:
        raise ValueError(f"base must be one of {', '.join(INITIAL_RATIOS)}, got {base!r}.")
    ratio = INITIAL_RATIOS[base]  # type: ignore[index]
    bounds = ActionBounds(
        start=math.log(0.1),
        max_increase=15.0,
        max_decrease=15.0,
        lower=-25.0,
        upper=25.0,
        initial_update=ratio,
        anneals=True,
    )
    policy = Policy(SIGNALS, hidden, recurrent=False, bounds=bounds, scope=scope)
    if start is not None:
        policy = Policy(start.signals, start.hidden, start.recurrent, start.bounds, scope)
        changed = {"warm_start_tasks": 0, **changed, "start": tuple(start.flat_weights().tolist())}
    return EvolutionConfig(base=base, policy=policy, **changed)  # type: ignore[arg-type]


class EvolutionTrainer:
    """Takes meta-steps; stops after any of them and continues bit for bit.

    Args:
        config: what to train, and on what.
        executor: where the populations of a step train; None: in this process, one after the other.

    Attributes:
        center: the weights, (N,).
        average: their moving average over about 50 meta-steps, (N,): what is saved as the schedule.
        sweeps: of the warm start, one for each of its tasks that did not diverge wholly.
        done: steps taken, those of the warm start and the meta-steps.
        skipped: steps whose populations all diverged wholly; the weights stayed as they were.
    """

    def __init__(self, config: EvolutionConfig, executor: Executor | None = None) -> None:
        self.config, self._executor = config, executor or LocalExecutor()
        self.center = _first_weights(config)
        self.average = self.center.clone()
        self.sweeps: list[RateSweep] = []
        self.done = self.skipped = 0
        self._mean, self._square = torch.zeros_like(self.center), torch.zeros_like(self.center)
        self._updates = 0
        self._rng = np.random.default_rng(config.seed)
        self._long: LongTask | None = None

    @property
    def finished(self) -> bool:
        """Whether all meta-steps are done."""
        return self.done >= self.config.steps

    @property
    def warming_start(self) -> bool:
        """Whether the next step is one of the warm start."""
        return self.done < self.config.warm_start_tasks

    def advance(self) -> Outcome:
        """Sweep the rates of some tasks or take one meta-step; return the mean of the populations' outcomes."""
        if self.warming_start:
            return self._sweep()
        config = self.config
        if self._rng.random() < config.long_share:
            outcomes = [self._advance_long()]
        else:
            populations = [self._draw(config.shortest, config.longest) for _ in range(config.populations)]
            outcomes = list(self._executor.map(partial(Population.evaluate, center=self.center), populations))
        self.done += 1
        gradients = [outcome.gradient for outcome in outcomes if outcome.gradient is not None]
        gradient = torch.stack(gradients).mean(0) if gradients else None
        if gradient is None:
            self.skipped += 1
        else:
            self._update(gradient)
        meta_loss = sum(outcome.meta_loss for outcome in outcomes) / len(outcomes)
        return Outcome(gradient, meta_loss, sum(outcome.diverged for outcome in outcomes) / len(outcomes))

    def _sweep(self) -> Outcome:
        config = self.config
        count = min(config.populations, config.warm_start_tasks - self.done)
        populations = [self._draw(config.shortest, config.longest) for _ in range(count)]
        self.done += count
        reached = []
        for sweep in self._executor.map(sweep_rates, populations):
            if (least := float(sweep.fitness.min())) < _LOST:
                self.sweeps.append(sweep)
                reached.append(least)
            else:
                self.skipped += 1
        if not self.warming_start and self.sweeps:
            network = config.policy._replace(scope="network")
            self.center = _of_scope(fit_policy(self.sweeps, network, config.seed, config.fit_steps), config.policy)
            self.average = self.center.clone()
        return Outcome(None, sum(reached) / len(reached) if reached else _LOST, 1 - len(reached) / count)

    def _advance_long(self) -> Outcome:
        if self._long is None or self._long.finished:
            population = self._draw(self.config.longest, self.config.longest_long)
            self._long = LongTask(population, self.config.unroll)
        return self._long.advance(self.center)

    def _draw(self, shortest: int, longest: int) -> Population:
        config, rng = self.config, self._rng
        spec = sample_task(rng, config.base, families=config.families, shortest=shortest, longest=longest)
        low, high = np.log(RATES[config.base])
        return Population(
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
        done = (self.done - 1 - self.config.warm_start_tasks) / self.config.meta_steps
        self.center = self.center - self.config.meta_lr * min(1.0, 2 * (1 - done)) * mean / (square.sqrt() + 1e-8)
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
            "sweeps": [vars(sweep) for sweep in self.sweeps],
            "long": None if self._long is None else self._long.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, in a trainer of the same configuration."""
        self.center, self.average = state["center"].clone(), state["average"].clone()
        self._mean, self._square = state["mean"].clone(), state["square"].clone()
        self.done, self.skipped, self._updates = state["counts"]
        self._rng.bit_generator.state = state["rng"]
        self.sweeps = [RateSweep(**sweep) for sweep in state["sweeps"]]
        config, saved = self.config, state["long"]
        self._long = None if saved is None else LongTask.from_state(saved, config.base, config.policy, config.unroll)


def _first_weights(config: EvolutionConfig) -> Tensor:
    """Those to start from, or random ones that leave the rate as it is."""
    policy = config.policy
    if config.start:
        return _of_scope(torch.tensor(config.start), policy)
    weights = torch.zeros(policy.size)
    first = unpack_weights(weights, policy.features, policy.hidden, policy.recurrent)["input"]
    first.copy_(torch.randn(first.shape, generator=torch.Generator().manual_seed(config.seed)) * 0.3)
    return weights


def _of_scope(weights: Tensor, policy: Policy) -> Tensor:
    """The weights of a policy of either scope as those of this one."""
    return weights if len(weights) == policy.size else per_layer_weights(weights, policy)


def _plain(state: Any) -> Any:
    """The state of numpy's generator as plain values; its 128-bit numbers are Python's."""
    if isinstance(state, dict):
        return {name: _plain(part) for name, part in state.items()}
    return state if isinstance(state, str) else int(state)
