r"""A supervised warm start: weights that raise the rate where it is too low and lower it where it is too high.

First comes a sweep over rates. On each task half of the networks train at fixed levels c: the initial update-to-weight
ratio is :math:`|u| / |\theta| = c / \sqrt T`, and the rate then only anneals. The other half changes its level once, to
one that may be far off: a schedule that went astray must know the way back. What the signals were on the way is kept,
and how well each fixed level ended. A network is then fitted that reads the signals of a level c at some moment and
names the shift of log c,
:math:`s = 1.5\, (1 - t / T)\, d`, after which the outcome, interpolated between the fixed levels, is best: its action d
is above 0 where the rate is too low.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metastep.core.policy import ActionBounds, apply_action, signal_policy, unpack_weights, weight_shapes
from metastep.core.signals import HORIZON_SIGNALS, LOSS_SIGNALS, feature_names, features
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.population import Population, fitness
from metastep.lab.evolution.vectorised_trainer import VectorisedTrainer

#: The levels c, in equal ratios: the best of them is nearly always inside.
LEVELS = torch.logspace(math.log10(0.03), math.log10(20), 12)
_SPACING = float((LEVELS[1] / LEVELS[0]).log())
#: Where the other half begins, and where it changes to.
_BEFORE, _AFTER = (0.05, 10.0), (0.0005, 20.0)
#: Log c can be shifted by so much at the start of a run.
_SHIFT = 1.5
#: A level that ends with more than e^this times the best loss is lost, whatever it reached.
_LOST = 1.5
#: How much worse it gets by each level beyond those that were tried.
_BEYOND = 0.15
_MASKED = 0.1
_BATCH, _RATE = 2048, 0.01


@dataclass(frozen=True)
class RateSweep:
    """A sweep over rates on one task: the features on the way, and how each level ended.

    Attributes:
        features: at M moments, of each of P networks, (M, P, F), float16.
        positions: where among :data:`LEVELS` each of them was, from 0 to K - 1 or beyond, (M, P).
        moments: t / T, (M,).
        fitness: of each of the K levels, (K,).
    """

    features: Tensor
    positions: Tensor
    moments: Tensor
    fitness: Tensor


class _SweepTrainer(VectorisedTrainer):
    """Networks at given levels, first the fixed ones, then the others; what a policy would see is noted."""

    def __init__(self, population: Population) -> None:
        bounds = ActionBounds(
            start=population.policy.bounds.start, lower=-math.inf, upper=math.inf, initial_update=1.0, anneals=True
        )
        policy = population.policy._replace(scope="network", bounds=bounds)
        rates = torch.full((2 * len(LEVELS),), math.exp(population.log_rates[0]))
        super().__init__(population.spec, population.base, policy, rates, device=population.device)
        generator = torch.Generator().manual_seed(population.seed)
        before, after = (_log_uniform(*span, generator) for span in (_BEFORE, _AFTER))
        moment = 0.05 + 0.8 * torch.rand(len(LEVELS), generator=generator)
        fixed = LEVELS.log()
        self._levels = torch.cat((fixed, before)).to(self.rates)
        self._change = torch.cat((torch.zeros_like(fixed), after - before)).to(self.rates)
        self._changes_at = torch.cat((torch.zeros_like(fixed), (moment * population.spec.steps).round())).to(self.rates)
        late = torch.linspace(0.0, 0.95, 28).square() * 0.5 + torch.linspace(0.0, 0.95, 28) * 0.5
        self.moments = sorted({2, *(round(moment * population.spec.steps) for moment in late.tolist()[1:])})
        self.seen: list[Tensor] = []
        self.positions: list[Tensor] = []

    def choose(self, policy: dict[str, Tensor], start: Tensor) -> Tensor:
        changed = self._changes_at < self.steps
        start = start + self.signals.first_update * self._levels + (self._changes_at == self.steps) * self._change
        if self.steps in self.moments:
            self.seen.append(features(self.signals, start, self.steps, self.spec.steps, self.policy.signals))
            self.positions.append((self._levels + changed * self._change - LEVELS[0].log()) / _SPACING)
        still = torch.zeros_like(start)
        return apply_action(
            start, still, self.signals.backoff, self.spec.steps, True, self.policy.bounds, step=self.steps
        )


def _log_uniform(low: float, high: float, generator: torch.Generator) -> Tensor:
    """The logarithm of as many numbers as there are levels, (K,)."""
    return math.log(low) + torch.rand(len(LEVELS), generator=generator) * math.log(high / low)


def sweep_rates(population: Population) -> RateSweep:
    """Train networks at all levels on a population's task, from the initial rate of its first pair."""
    trainer = _SweepTrainer(population)
    training, validation = trainer.run(torch.zeros(len(trainer.rates), trainer.policy.size, device=population.device))
    reached = fitness(training, validation)[: len(LEVELS)]
    moments = torch.tensor(trainer.moments[: len(trainer.seen)]) / population.spec.steps
    seen, positions = torch.stack(trainer.seen).half().cpu(), torch.stack(trainer.positions).cpu()
    return RateSweep(seen, positions, moments, reached.cpu())


def regrets(sweep: RateSweep) -> Tensor:
    """How far each level ended above the best, (K,), smoothed over neighbours, at most :data:`_LOST`."""
    above = (sweep.fitness - sweep.fitness.min()).clamp(max=_LOST)
    ends = torch.cat((above[:1], above, above[-1:]))
    return ends[:-2] / 4 + ends[1:-1] / 2 + ends[2:] / 4


def outcome_at(curve: Tensor, position: Tensor) -> Tensor:
    """Curves (n, K) at positions (n,): linear between the levels 0 to K - 1, and worse by so much a level beyond."""
    beyond, position = position, position.clamp(0, curve.shape[-1] - 1)
    beyond = (beyond - position).abs()
    below = position.detach().floor().clamp(max=curve.shape[-1] - 2).long()
    share = position - below
    low, high = (curve.gather(-1, (below + k)[:, None]).squeeze(-1) for k in (0, 1))
    return low * (1 - share) + high * share + _BEYOND * beyond


def fit_policy(sweeps: list[RateSweep], policy: Policy, seed: int, steps: int) -> Tensor:
    """Fit the weights of a policy, (N,), to sweeps.

    Args:
        sweeps: of a task each.
        policy: whose signals were noted.
        seed: of the first weights and the batches.
        steps: of Adam, on batches of 2,048 rows.

    Raises:
        ValueError: if there is no sweep, or the policy is recurrent (its states were not noted).
    """
    if not sweeps or policy.recurrent:
        raise ValueError(
            "sweeps must hold a task at least, and the policy must not be recurrent; warm_start_tasks=0 does without."
        )
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(policy.size)
    sizes = (policy.features, policy.hidden, policy.recurrent)
    parts, shapes = unpack_weights(weights, *sizes), weight_shapes(*sizes)
    parts["input"].copy_(torch.randn(shapes["input"], generator=generator) * 0.5)
    parts["output"].copy_(torch.randn(shapes["output"], generator=generator) * 0.05)
    weights.requires_grad_()
    seen, curves, moments, positions, shares = _rows(sweeps)
    optimizer = torch.optim.Adam([weights])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _RATE * (1 - step / steps)
        rows = torch.multinomial(shares, _BATCH, replacement=True, generator=generator)
        x = _with_gaps(seen[rows].float(), policy.signals, generator)
        action, _ = signal_policy(unpack_weights(weights, *sizes), x, x.new_zeros(len(x), 0))
        shift = _SHIFT * action * (1 - moments[rows])
        loss = outcome_at(curves[rows], positions[rows] + shift / _SPACING) + 0.02 * action.square()
        optimizer.zero_grad()
        (loss.mean() + 1e-4 * weights.square().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return weights.detach()


def _rows(sweeps: list[RateSweep]) -> tuple[Tensor, ...]:
    """All moments of all networks of all tasks as rows; tasks count alike."""
    parts = []
    for sweep in sweeps:
        networks, count = sweep.positions.shape[1], sweep.positions.numel()
        moments = sweep.moments.repeat_interleave(networks)
        curves, shares = regrets(sweep).expand(count, -1), torch.full((count,), 1 / count)
        parts.append((sweep.features.flatten(0, 1), curves, moments, sweep.positions.flatten(), shares))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _with_gaps(x: Tensor, signals: tuple[str, ...], generator: torch.Generator) -> Tensor:
    """Features, with the horizon or the loss unknown in some rows."""
    names = feature_names(signals)
    for gone in ((*HORIZON_SIGNALS, "horizon_known"), (*LOSS_SIGNALS, "loss_known")):
        columns = [k for k, name in enumerate(names) if name in gone]
        rows = torch.rand(len(x), generator=generator) < _MASKED
        x[:, columns] = x[:, columns].masked_fill(rows[:, None], 0)
    return x
