"""Online scaling: AdaGrad moves the rates, by hypergradients that do not grow with the loss."""

from typing import Any

import torch
from torch import Tensor

#: Hypergradients times this have squares that float32 can hold, those of single numbers among them. AdaGrad does not
#: see it; what is smaller than its epsilon is taken for 0.
SCALE, _EPSILON = 1e12, 1e-16


class OnlineScaling:
    r"""The rule "hdm": the rates of a group are what an online learner has found.

    .. math::
        h_t = -\alpha_t \frac{\langle g_t, u_{t-1} \rangle}{|u_{t-1}|^2}, \qquad
        \log \alpha_{t+1} = \log \alpha_t - \eta \frac{h_t}{\sqrt{\sum_{s \le t} h_s^2}}

    The product is over the numbers that share the rate, :math:`|u|` over all of the parameter group. The first step of
    a rate is :math:`\eta`, the hyper-rate; with the root of the steps they become smaller. The sums begin anew when a
    parameter joins the group late.

    Source: HDM, arXiv 2411.01803 and 2502.11229, with AdaGrad as the learner. *Differs from the papers:* it learns the
    logarithm of a rate, which then stays above 0 and has no unit; u is the base optimizer's direction, momentum
    included; in the place of the null step, which needs the loss after each step, is the safeguard.
    """

    def __call__(self, rates: list[Tensor] | list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdaGrad over log rates, or over parameter groups of them with a hyper-rate each."""
        return torch.optim.Adagrad(rates, eps=_EPSILON)
