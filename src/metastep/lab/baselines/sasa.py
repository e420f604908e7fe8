"""SASA: a rate that drops when a statistical test finds the iterates stationary."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metastep.core.inner import inner_product
from metastep.lab.baselines.adaptive_step import APPLIED, REJECTED, AdaptiveStepOptimizer, count, positive, recomputed
from metastep.optim.options import Group, choice, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT

VARIANCES = ("batch_means", "overlapping", "iid")
BUFFER = "momentum_buffer"

#: What the first group remembers: drops so far, steps so far, the statistic of each step since the last drop.
DROPS, STEPS, SAMPLES, SAMPLE_COUNT = "drops", "steps", "samples", "sample_count"


class SASA(AdaptiveStepOptimizer):
    r"""SASA: quasi-hyperbolic momentum whose rate drops whenever a test finds it stationary.

    .. math:: h_t = \beta h_{t-1} + (1 - \beta) \tilde g_t, \quad d_t = (1 - \nu) \tilde g_t + \nu h_t, \quad
        \theta_t = \theta_{t-1} - \alpha d_t

    with :math:`\tilde g = g + \lambda \theta`. At stationarity the mean of :math:`y_t = \langle \theta_t, d_t \rangle +
    \frac{\alpha}{2} \lVert d_t \rVert^2` is zero. The test looks at the last ``1 / keep`` of the samples since the last
    drop: the rate drops when the t-interval of their mean contains 0 and the means of both halves have the same sign;
    for the first drop, 0 must also lie in the interval around each half's mean. Momentum and samples then start anew.

    Args:
        params: Parameters or groups; there is one test for all of them.
        lr: The rate before any drop, >= 0. A scheduler's changes multiply the drops.
        momentum: beta, in [0, 1).
        nu: In [0, 1]; 1 is momentum, 0 gradient descent.
        weight_decay: Coupled, >= 0.
        drop: Divides the rate, > 1.
        significance: One minus the level of the interval, in (0, 1).
        variance: Of the mean: "batch_means" and "overlapping" allow for samples that are correlated in time, "iid" does
            not.
        keep: Whole number >= 1.
        min_samples: Samples that the test needs more of, >= 4.
        warmup: Steps before the first test, >= 0.
        test_every: Steps from test to test, >= 1.

    Raises:
        ValueError: For an argument out of its range.

    Source: arXiv 1909.09785, algorithm 2, and its authors' code.
    *Differs from the code:* the variance is that of batch means by default; the code means to use it and computes the
    independent one. Samples that are not finite are left out and counted in ``rejected``; parameters take them, as in
    torch.optim. Nothing is read back from a device but at tests.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> optimizer = SASA([w], lr=0.5, min_samples=20, warmup=20, test_every=10, keep=2)
        >>> for _ in range(400):  # noise around the optimum: nothing to gain at this rate
        ...     w.grad = w.detach() + torch.randn(3)
        ...     optimizer.step()
        >>> optimizer.applied_rate() < 0.5
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        *,
        momentum: float = 0.9,
        nu: float = 1.0,
        weight_decay: float = 0.0,
        drop: float = 10.0,
        significance: float = 0.05,
        variance: str = "batch_means",
        keep: int = 8,
        min_samples: int = 1000,
        warmup: int = 1000,
        test_every: int = 100,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "nu": nu, "weight_decay": weight_decay, "drop": drop,
            "significance": significance, "variance": variance, "keep": keep, "min_samples": min_samples,
            "warmup": warmup, "test_every": test_every, DROPS: 0, STEPS: 0, SAMPLES: None, SAMPLE_COUNT: 0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        number("momentum", group["momentum"], high=1.0, open_high=True)
        number("nu", group["nu"], high=1.0)
        number("weight_decay", group["weight_decay"])
        if positive("drop", group["drop"]) <= 1:
            raise ValueError(f"drop must be > 1, got {group['drop']!r}; it divides the rate.")
        if not 0 < number("significance", group["significance"], high=1.0) < 1:
            raise ValueError(f"significance must be in (0, 1), got {group['significance']!r}; 0.05 is usual.")
        choice("variance", group["variance"], VARIANCES)
        count("keep", group["keep"])
        count("min_samples", group["min_samples"], low=4)
        count("warmup", group["warmup"], low=0)
        count("test_every", group["test_every"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move, take the sample, and test now and then.

        Args:
            closure: Recomputes the loss and the gradients, once; run with gradients enabled.

        Returns:
            What the closure returned, or None.
        """
        loss = recomputed(closure)
        self._advance()
        return loss

    def _advance(self) -> None:
        """What a step does once the gradients are there."""
        works = self.with_gradients()
        if not works:
            return
        first, sample = self.param_groups[0], None
        for group, parameters, gradients in works:
            directions = self._directions(group, parameters, gradients)
            rate = self._rate(group)
            torch._foreach_add_(parameters, directions, alpha=-rate)
            group[APPLIED] = rate
            square = inner_product(directions, directions)
            own = inner_product(parameters, directions) + rate / 2 * square
            sample = own if sample is None else sample + own
        assert sample is not None
        self._keep(sample, SAMPLES, SAMPLE_COUNT)
        wrong = (~sample.isfinite()).to(torch.int64)
        first[REJECTED] = first[REJECTED] + (int(wrong) if wrong.device.type == "cpu" else wrong)
        first[STEPS] += 1
        if first[STEPS] > first["warmup"] and first[STEPS] % first["test_every"] == 0:
            kept = self._kept(SAMPLES, SAMPLE_COUNT)
            if len(kept) > first["min_samples"] and self._stationary(kept):
                self._drop()

    def _rate(self, group: Group) -> float:
        """The rate of a group's next step."""
        first = self.param_groups[0]
        return float(group["lr"] / first["drop"] ** first[DROPS])

    def _directions(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """D of every tensor; h is advanced."""
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        for p in parameters:
            if BUFFER not in self.state[p]:
                self.state[p][BUFFER] = torch.zeros_like(p)
        buffers = [self.state[p][BUFFER] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        return buffers if group["nu"] == 1 else list(torch._foreach_lerp(gradients, buffers, group["nu"]))

    def _keep(self, sample: Tensor, samples_key: str, count_key: str) -> None:
        """Append a sample: in place, behind all that a state_dict taken before counts as its own."""
        first = self.param_groups[0]
        samples, taken = first[samples_key], first[count_key]
        if samples is None or taken == len(samples):
            room = sample.new_zeros(max(64, taken))
            samples = first[samples_key] = room if samples is None else torch.cat([samples.to(room.device), room])
        samples[taken] = sample
        first[count_key] = taken + 1

    def _kept(self, samples_key: str, count_key: str) -> Tensor:
        """The last ``1 / keep`` of the samples, on the CPU."""
        first = self.param_groups[0]
        taken = first[count_key]
        samples: Tensor = first[samples_key]
        return samples[taken - taken // first["keep"] : taken].cpu()

    def _stationary(self, samples: Tensor) -> bool:
        first = self.param_groups[0]
        samples = samples[samples.isfinite()]
        if len(samples) <= first["min_samples"]:
            return False
        half = len(samples) // 2
        means = [float(part.mean()) for part in (samples, samples[:half], samples[half:])]
        width = half_width(samples, first["significance"], first["variance"])
        around = means if first[DROPS] == 0 else means[:1]
        return means[1] * means[2] > 0 and all(abs(mean) < width for mean in around)

    def _drop(self) -> None:
        """Drop the rate; start samples and momentum anew."""
        first = self.param_groups[0]
        first[DROPS] += 1
        first[SAMPLES], first[SAMPLE_COUNT] = None, 0
        for state in self.state.values():
            state[BUFFER].zero_()


def half_width(samples: Tensor, significance: float, variance: str) -> float:
    """Half the width of the t-interval of the samples' mean.

    With n samples and batches of b = floor(sqrt n): "batch_means" takes the variance of the means of floor(n / b)
    batches side by side, times b (floor(n / b) - 1 degrees of freedom); "overlapping" that of all n - b + 1 batches,
    times n b / (n - b) (n - b degrees); "iid" that of the samples (n - 1 degrees).

    Args:
        samples: (n,), n >= 4, in the order of time.
        significance: one minus the level of the interval.
        variance: see above.
    """
    n = len(samples)
    size = math.isqrt(n)
    if variance == "iid":
        spread, freedom = float(samples.var()), n - 1
    else:
        means = samples.unfold(0, size, size if variance == "batch_means" else 1).mean(1)
        squares = float((means - samples.mean()).square().sum())
        if variance == "batch_means":
            spread, freedom = size * squares / (len(means) - 1), len(means) - 1
        else:
            spread, freedom = n * size * squares / ((n - size) * (n - size + 1)), n - size
    return t_quantile(1 - significance / 2, freedom) * math.sqrt(spread / n)


# ---- Student's t distribution: its quantiles, without scipy

#: Nodes of the Gauss-Legendre rule on [-1, 1]; the integrand is a power of a cosine.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def t_cumulative(t: float, freedom: int) -> float:
    r"""P(T <= t) of Student's t distribution with ``freedom`` degrees of freedom.

    With t = sqrt(nu) tan(a) its density becomes a power of a cosine,

    .. math:: P = \frac12 + \frac{\Gamma((\nu + 1)/2)}{\sqrt\pi \, \Gamma(\nu/2)}
        \int_0^{\arctan(t/\sqrt\nu)} \cos^{\nu - 1} a \, da.
    """
    end = math.atan(abs(t) / math.sqrt(freedom))
    # beyond this the power is below 1e-16 of its peak, and the nodes are spent where it is not
    end = min(end, math.acos(math.exp(-37.0 / max(freedom - 1, 1)))) if freedom > 1 else end
    angles = end / 2 * (_NODES + 1)
    area = end / 2 * float(np.sum(_WEIGHTS * np.cos(angles) ** (freedom - 1)))
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + math.copysign(scale * area, t)


def t_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = ``probability``, by bisection.

    Args:
        probability: in (0, 1).
        freedom: degrees of freedom, >= 1.

    Raises:
        ValueError: for an argument out of its range.
    """
    if not 0.0 < probability < 1.0:
        raise ValueError(f"probability must be in (0, 1), got {probability!r}; 0.975 gives a two-sided 95 % interval.")
    if freedom < 1:
        raise ValueError(f"freedom must be >= 1, got {freedom!r}; two samples have one degree of freedom.")
    if probability < 0.5:
        return -t_quantile(1.0 - probability, freedom)
    low, high = 0.0, 1.0
    while t_cumulative(high, freedom) < probability and high < 1e12:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cumulative(middle, freedom) < probability else (low, middle)
    return (low + high) / 2
