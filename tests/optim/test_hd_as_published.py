"""Hypergradient descent as first published (arXiv 1703.04782) is the additive rule at the global level."""

import pytest
import torch
from tests.optim.models import flat, loss_of, network

from metastep.optim import HyperAdam, HyperSGD

STEPS = 12


def published(theta, gradient_of, lr, beta, adam):
    """alpha_t = alpha_{t-1} + beta <g_t, u_{t-1}>, theta_t = theta_{t-1} - alpha_t u_t; u = g or Adam's direction."""
    m = v = last = torch.zeros_like(theta)
    for t in range(1, STEPS + 1):
        g = gradient_of(theta, t - 1)
        lr = lr + beta * float(g @ last)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8) if adam else g
        theta, last = theta - lr * u, u
        yield theta, lr


@pytest.mark.parametrize(("cls", "lr", "beta"), [(HyperSGD, 0.02, 1e-3), (HyperAdam, 0.002, 1e-3)])
def test_it_is_the_additive_rule_at_the_global_level(cls, lr, beta):
    model, scratch = network(), network()

    def gradient_of(theta, step):
        torch.nn.utils.vector_to_parameters(theta, scratch.parameters())
        return flat(torch.autograd.grad(loss_of(scratch, step), list(scratch.parameters())))

    options = {"rule": "additive", "levels": ("global",), "reduce": "sum", "hyper_lr": beta, "safeguard": False}
    optimizer = cls(model.parameters(), lr=lr, **options)
    for step, (theta, rate) in enumerate(
        published(flat(model.parameters()), gradient_of, lr, beta, adam=cls is HyperAdam)
    ):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        assert float(optimizer.rates()[0]["global"]) == pytest.approx(rate, rel=1e-12)
        torch.testing.assert_close(flat(model.parameters()), theta, rtol=1e-10, atol=1e-12)
    assert abs(rate / lr - 1) > 0.05
