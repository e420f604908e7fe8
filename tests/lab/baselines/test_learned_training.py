"""Learning an optimizer: the meta-gradient is that of the truncated unroll, and it learns."""

import copy
import math

import pytest
import torch

from metastep.lab.baselines.learned import (
    L2L,
    L2LNetwork,
    Problem,
    RNNProp,
    RNNPropNetwork,
    learn_optimizer,
    randomly_scaled,
    with_convex_helper,
)


def bowl(generator):
    """|theta - v|^2 in two tensors of 6 coordinates together."""
    v = torch.randn(6, generator=generator)
    start = torch.randn(6, generator=generator)
    return Problem(
        start=[start[:2], start[2:].view(2, 2)],
        loss=lambda parts: (torch.cat([part.reshape(-1) for part in parts]) - v).square().mean(),
    )


@pytest.mark.parametrize(
    ("network_of", "lr", "extra"),
    [(L2LNetwork, 0.1, {}), (RNNPropNetwork, 0.1, {"scaling": 1.0, "convex_helper": True})],
)
def test_losses_fall_over_the_problems(network_of, lr, extra):
    torch.manual_seed(0)
    network = network_of(hidden_size=6, num_layers=1)
    ends = learn_optimizer(network, bowl, lr=lr, problems=40, horizon=20, unroll=10, meta_lr=1e-2, **extra)
    assert len(ends) == 40
    assert sum(ends[-10:]) < 0.5 * sum(ends[:10])


def test_one_update_follows_the_gradient_of_the_mean_loss_along_the_steps():
    torch.manual_seed(0)
    network = RNNPropNetwork(hidden_size=4, num_layers=1).double()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    copied = copy.deepcopy(network)
    v = torch.arange(3, dtype=torch.float64)
    problem = Problem(start=[torch.zeros(3, dtype=torch.float64)], loss=lambda parts: (parts[0] - v).square().sum())
    learn_optimizer(network, lambda _: problem, lr=0.1, problems=1, horizon=3, unroll=3, meta_lr=1e-3, clip=1e9)
    theta, state, losses = torch.zeros(3, dtype=torch.float64), copied.init_state(3), []
    for step in range(1, 4):
        direction, state = copied(2 * (theta.detach() - v), state, step)  # the gradient is an input
        theta = theta - 0.1 * direction
        losses.append((theta - v).square().sum())
    torch.stack(losses).mean().backward()
    for key, weight in copied.named_parameters():
        moved = network.state_dict()[key] - before[key]
        # Adam's first step is -meta_lr g / (|g| + eps)
        torch.testing.assert_close(moved, -1e-3 * weight.grad / (weight.grad.abs() + 1e-8), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("network_of", "optimizer_of"), [(L2LNetwork, L2L), (RNNPropNetwork, RNNProp)])
def test_what_is_learned_is_what_the_optimizer_steps(network_of, optimizer_of):
    torch.manual_seed(0)
    network = network_of()
    problem, losses = bowl(torch.Generator().manual_seed(3)), []
    learn_optimizer(
        network, lambda _: problem, lr=0.05, problems=1, horizon=5, unroll=5, meta_lr=1e-12,
        watch=lambda number, loss: losses.append(loss),
    )  # fmt: skip
    parts = [torch.nn.Parameter(p.clone()) for p in problem.start]
    optimizer = optimizer_of(parts, 0.05, network=network)
    for _ in range(5):
        optimizer.zero_grad()
        problem.loss(parts).backward()
        optimizer.step()
    assert problem.loss(parts).item() == pytest.approx(losses[0], rel=1e-5)


def test_the_same_seed_learns_the_same_network():
    def learned(seed):
        torch.manual_seed(0)
        network = L2LNetwork(hidden_size=4, num_layers=1)
        learn_optimizer(network, bowl, lr=0.1, problems=3, horizon=10, unroll=5, seed=seed)
        return network.output.weight.detach()

    assert torch.equal(learned(1), learned(1))
    assert not torch.equal(learned(1), learned(2))


def test_scaled_coordinates_give_the_same_loss_and_other_gradients():
    problem = bowl(torch.Generator().manual_seed(0))
    scaled = randomly_scaled(problem, 1.0, torch.Generator().manual_seed(1))
    assert scaled.loss(scaled.start).item() == pytest.approx(problem.loss(problem.start).item(), rel=1e-5)
    ratios = [float(b.max() / a.max()) for a, b in zip(problem.start, scaled.start, strict=True)]
    assert all(abs(math.log(abs(ratio))) > 0.01 for ratio in ratios)


def test_the_convex_helper_adds_a_bowl_of_as_many_coordinates():
    problem = bowl(torch.Generator().manual_seed(0))
    helped = with_convex_helper(problem, torch.Generator().manual_seed(1))
    assert helped.start[-1].shape == (6,)
    extra = helped.loss(helped.start) - problem.loss(problem.start)
    assert 0 < extra.item() < 4


def test_a_meta_gradient_that_is_not_finite_is_left_out():
    network = L2LNetwork(hidden_size=4, num_layers=1)
    before = copy.deepcopy(network.state_dict())
    cliff = Problem(start=[torch.zeros(2)], loss=lambda parts: (parts[0] * math.nan).sum())
    learn_optimizer(network, lambda _: cliff, lr=0.1, problems=1, horizon=5, unroll=5)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("arguments", [{"horizon": 10, "unroll": 3}, {"horizon": 5, "unroll": 10}, {"unroll": 0}])
def test_a_horizon_that_is_no_multiple_is_refused(arguments):
    with pytest.raises(ValueError, match="horizon must be a multiple of unroll"):
        learn_optimizer(L2LNetwork(), bowl, lr=0.1, problems=1, **arguments)


def test_rates_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="lr, meta_lr, clip and problems must be > 0"):
        learn_optimizer(L2LNetwork(), bowl, lr=0.0, problems=1)
