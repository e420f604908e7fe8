"""Student's t distribution: its quantiles, without scipy."""

import math

import numpy as np

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
