r"""A survey: what do the signals look like where the rate is too low or too high?

On each task a population trains at fixed levels c: the rate lands at :math:`|u| / |\theta| = c / \sqrt T` and then only
anneals. What the signals were on the way is kept, and how well each level ended. A network is then fitted that reads
the signals of a level c at some moment and names the shift of log c, :math:`s = 1.5\, (1 - t / T)\, d`, after which
the outcome, interpolated between the levels, is best: its drive d is above 0 where the rate is too low.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metastep.core.policy import Reach, move, signal_policy, unpack_weights, weight_shapes
from metastep.core.signals import HORIZON_SIGNALS, LOSS_SIGNALS, feature_names, features
from metastep.meta.population.distribution import TaskSpec
from metastep.meta.population.jobs import Job, fitness
from metastep.meta.population.members import Members, Policy
from metastep.meta.population.rules import Base

#: The levels c, in equal ratios: the best of them is nearly always inside.
LEVELS = torch.logspace(math.log10(0.03), math.log10(20), 12)
#: Log c can be shifted by so much at the start of a run.
_SHIFT = 1.5
#: A level that ends with more than e^this times the best loss is lost, whatever it reached.
_LOST = 1.5
_MASKED = 0.1
_BATCH, _RATE = 2048, 0.01


@dataclass(frozen=True)
class Findings:
    """Of one task: what was seen, and how it ended.

    Attributes:
        seen: features at M moments of each of K levels, (M, K, F), float16.
        moments: t / T, (M,).
        fitness: of each level, (K,).
        levels: c, in equal ratios, (K,).
    """

    seen: Tensor
    moments: Tensor
    fitness: Tensor
    levels: Tensor

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: getattr(self, name) for name in ("seen", "moments", "fitness", "levels")}


class _AtLevels(Members):
    """Members whose levels are given, and who note what a policy would see."""

    def __init__(self, spec: TaskSpec, base: Base, policy: Policy, rate: float, device: str) -> None:
        reach = Reach(start=policy.reach.start, lower=-math.inf, upper=math.inf, landing=1.0, anneals=True)
        rates = torch.full((len(LEVELS),), rate)
        super().__init__(spec, base, policy._replace(reach=reach), rates, device=device)
        self._levels = LEVELS.to(self.rates).log()
        late = torch.linspace(0.0, 0.95, 28).square() * 0.5 + torch.linspace(0.0, 0.95, 28) * 0.5
        self.moments = sorted({2, *(round(moment * spec.steps) for moment in late.tolist()[1:])})
        self.seen: list[Tensor] = []

    def choose(self, policy: dict[str, Tensor], start: Tensor) -> Tensor:
        start = start + self.signals.landing * self._levels
        if self.steps in self.moments:
            self.seen.append(features(self.signals, start, self.steps, self.spec.steps, self.policy.signals))
        still = torch.zeros_like(start)
        return move(start, still, self.signals.cut, self.spec.steps, True, self.policy.reach, step=self.steps)


def survey(job: Job) -> Findings:
    """Train a population at all levels on a job's task, from the initial rate of its first pair."""
    rate = math.exp(job.log_rates[0])
    members = _AtLevels(job.spec, job.base, job.policy._replace(scope="network"), rate, job.device)
    reached = members.run(torch.zeros(len(LEVELS), members.policy.size, device=job.device))
    moments = torch.tensor(members.moments[: len(members.seen)]) / job.spec.steps
    return Findings(torch.stack(members.seen).half().cpu(), moments, fitness(*reached).cpu(), LEVELS)


def regrets(found: Findings) -> Tensor:
    """How far each level ended above the best, (K,), smoothed over neighbours, at most :data:`_LOST`."""
    above = (found.fitness - found.fitness.min()).clamp(max=_LOST)
    ends = torch.cat((above[:1], above, above[-1:]))
    return ends[:-2] / 4 + ends[1:-1] / 2 + ends[2:] / 4


def outcome_at(curve: Tensor, position: Tensor) -> Tensor:
    """Curves (n, K) at positions (n,) between 0 and K - 1, linear between levels and constant beyond."""
    position = position.clamp(0, curve.shape[-1] - 1)
    below = position.detach().floor().clamp(max=curve.shape[-1] - 2).long()
    share = position - below
    low, high = (curve.gather(-1, (below + k)[:, None]).squeeze(-1) for k in (0, 1))
    return low * (1 - share) + high * share


def fit(findings: list[Findings], policy: Policy, seed: int, steps: int) -> Tensor:
    """Fit the weights of a policy, (N,), to what was found.

    Args:
        findings: of a task each.
        policy: whose signals were noted.
        seed: of the first weights and the batches.
        steps: of Adam, on batches of 2,048 rows.

    Raises:
        ValueError: if nothing was found, or the policy is recurrent (its states were not noted).
    """
    if not findings or policy.recurrent:
        raise ValueError("findings must hold a task at least, and the policy must not be recurrent; survey_tasks=0.")
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(policy.size)
    sizes = (policy.features, policy.hidden, policy.recurrent)
    parts, shapes = unpack_weights(weights, *sizes), weight_shapes(*sizes)
    parts["input"].copy_(torch.randn(shapes["input"], generator=generator) * 0.5)
    parts["output"].copy_(torch.randn(shapes["output"], generator=generator) * 0.05)
    weights.requires_grad_()
    seen, curves, moments, places, spacing, shares = _rows(findings)
    optimizer = torch.optim.Adam([weights])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _RATE * (1 - step / steps)
        rows = torch.multinomial(shares, _BATCH, replacement=True, generator=generator)
        x = _with_gaps(seen[rows].float(), policy.signals, generator)
        drive, _ = signal_policy(unpack_weights(weights, *sizes), x, x.new_zeros(len(x), 0))
        shift = _SHIFT * drive * (1 - moments[rows])
        loss = outcome_at(curves[rows], places[rows] + shift / spacing[rows]) + 0.02 * drive.square()
        optimizer.zero_grad()
        (loss.mean() + 1e-4 * weights.square().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return weights.detach()


def _rows(findings: list[Findings]) -> tuple[Tensor, ...]:
    """All moments of all levels of all tasks as rows; tasks count alike."""
    parts = []
    for found in findings:
        count, levels = found.seen.shape[:2]
        parts.append(
            (
                found.seen.flatten(0, 1),
                regrets(found).expand(count * levels, -1),
                found.moments.repeat_interleave(levels),
                torch.arange(levels).float().repeat(count),
                (found.levels[1] / found.levels[0]).log().expand(count * levels),
                torch.full((count * levels,), 1 / (count * levels)),
            )
        )
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _with_gaps(x: Tensor, signals: tuple[str, ...], generator: torch.Generator) -> Tensor:
    """Features, with the horizon or the loss unknown in some rows."""
    names = feature_names(signals)
    for gone in ((*HORIZON_SIGNALS, "horizon_known"), (*LOSS_SIGNALS, "loss_known")):
        columns = [k for k, name in enumerate(names) if name in gone]
        rows = torch.rand(len(x), generator=generator) < _MASKED
        x[:, columns] = x[:, columns].masked_fill(rows[:, None], 0)
    return x
