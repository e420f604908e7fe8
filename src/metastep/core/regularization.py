"""Regularised rates: a child's rate is drawn towards its parents' and towards its own past, and keeps the result.

A pull of strength lambda on a rate with hyper-rate beta is, up to how it is evaluated, a convex combination; it is
given here as the weight w that the target gets. For a child with targets p of weight w_p, and hat a = the rate
after its plain hypergradient step:

    implicit   a = (1 - sum w) hat a + sum_p w_p a_p        a_p: the parent's rate, itself already pulled
    virtual    a = (1 - sum w) hat a + sum_p w_p hat a_p    the paper's form; parents before they are pulled
    explicit   a = hat a - sum_p w_p (a_old - a_p_old)      last step's rates on the right

The target "previous" is the child's own rate of the step before; in the explicit form its term is zero. The strengths
are lambda = w / (2 beta (1 - sum w)) for the implicit form and lambda = w / (2 beta) for the other two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

PULL_FORMS = ("implicit", "virtual", "explicit")
PREVIOUS = "previous"


def pulled(form: str, hat: Tensor, old: Tensor, weights: Mapping[str, float], targets: Mapping[str, Tensor]) -> Tensor:
    """The child's rate after its pulls.

    Args:
        form: One of `PULL_FORMS`.
        hat: The child's rates after their plain step.
        old: The child's rates before it.
        weights: Per target, its weight; together less than 1.
        targets: Per target other than "previous", the rates to be drawn to, broadcast to the child: of this step and
            pulled (implicit), of this step and plain (virtual), of the step before (explicit).
    """
    result = hat
    for target, weight in weights.items():
        if form == "explicit":
            if target != PREVIOUS:
                result = result - weight * (old - targets[target])
        else:
            result = result + weight * ((old if target == PREVIOUS else targets[target]) - hat)
    return result
