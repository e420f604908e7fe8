"""Online scaling: AdaGrad moves the rates, by hypergradients that do not grow with the loss."""

import torch
from torch import Tensor


class OnlineScaling:
    r"""The rule "hdm": the rates of a group are what an online learner has found.

    .. math::
        h_t = -\alpha_t \frac{\langle g_t, u_{t-1} \rangle}{|u_{t-1}|^2}, \qquad
        \log \alpha_{t+1} = \log \alpha_t - \eta \frac{h_t}{\sqrt{\sum_{s \le t} h_s^2}}

    The product is over the numbers that share the rate, :math:`|u|` over all of the parameter group. The first step of
    a rate is :math:`\eta`; with the root of the steps they become smaller.

    Args:
        lr: eta, >= 0.

    Source: HDM, arXiv 2411.01803 and 2502.11229, with AdaGrad as the learner. *Differs from the papers:* it learns the
    logarithm of a rate, which then stays above 0 and has no unit; u is the base optimizer's direction, momentum
    included; in the place of the null step, which needs the loss after each step, is the safeguard.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def __call__(self, rates: list[Tensor]) -> torch.optim.Optimizer:
        """AdaGrad over the log rates; single numbers have hypergradients far below its usual epsilon."""
        return torch.optim.Adagrad(rates, lr=self.lr, eps=1e-30)
