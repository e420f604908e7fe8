"""The trials of the line search leave no trace, and all of a step draw the same random numbers."""

import math

import pytest
import torch
from torch import nn

from metastep.lab.baselines import Armijo


def noisy_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))


def data():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(16, 4, generator=generator), torch.randn(16, 1, generator=generator)


@pytest.mark.parametrize("known", [False, True])
def test_batch_norm_and_the_random_stream_are_untouched_by_trials(known):
    model, (x, y) = noisy_network(), data()
    optimizer = Armijo(model.parameters(), lr=50.0, model=model if known else None)
    (model(x) - y).square().mean().backward()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    stream = torch.get_rng_state()
    optimizer.step(lambda: (model(x) - y).square().mean())
    assert optimizer.param_groups[0]["trials"] > 3
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), stream)


def test_every_trial_draws_the_same_random_numbers():
    w, drawn = nn.Parameter(torch.tensor([3.0])), []
    optimizer = Armijo([w], lr=50.0)

    def loss():
        drawn.append(torch.rand(()).item())
        return w.square().sum()

    w.square().sum().backward()
    optimizer.step(loss)
    assert len(drawn) > 10
    assert len(set(drawn)) == 1


def test_after_begin_the_trials_see_the_masks_of_the_gradient():
    model, (x, y) = noisy_network(), data()
    optimizer = Armijo(model.parameters())
    optimizer.begin()
    loss = (model(x) - y).square().mean()
    loss.backward()
    assert optimizer.step(lambda: (model(x) - y).square().mean()).item() == loss.item()
    again = (model(x) - y).square().mean()
    again.backward()
    without = optimizer.step(lambda: (model(x) - y).square().mean())
    assert without.item() != again.item()  # its own mask: begin holds for one step


def test_a_trial_whose_loss_is_not_finite_is_too_far():
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = Armijo([w], lr=10.0)
    w.log().square().add(w).sum().backward()  # NaN where a step goes below 0
    optimizer.step(lambda: w.log().square().add(w).sum())
    assert 0 < w.item() < 1
    assert optimizer.rejected == 0


def test_a_closure_that_fails_leaves_the_parameters_where_they_were():
    w, calls = nn.Parameter(torch.tensor([3.0])), []
    optimizer = Armijo([w])
    w.square().sum().backward()

    def loss():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return w.square().sum() if len(calls) == 1 else torch.tensor(math.inf)

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(loss)
    assert w.item() == 3.0


def test_a_vanishing_gradient_moves_nothing():
    w = nn.Parameter(torch.tensor([3.0]))
    optimizer = Armijo([w])
    w.grad = torch.zeros(1)
    optimizer.step(lambda: w.square().sum())
    assert w.item() == 3.0
    assert optimizer.applied_rate() == 0
