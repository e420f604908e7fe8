"""Optimizers that adapt their own step size agree on it over ranks whose batches, and so losses, differ."""

import pytest
import torch
from tests.distributed.ranks import on_ranks
from tests.lab.baselines.adaptive_step import make, step_once
from tests.optim.models import batch, flat, network
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

NAMES = ("L4", "SPS", "Armijo")


def steps():
    """Per optimizer the rates of four steps under DDP, and the parameters after them."""
    found = {}
    for name in NAMES:
        model = DistributedDataParallel(network())
        optimizer, rates = make(name, model.parameters()), []
        for step in range(4):
            step_once(optimizer, model, batch(2 * step + dist.get_rank()))
            rates.append(optimizer.applied_rate())
        found[name] = rates, flat(model.parameters())
    return found


@pytest.fixture(scope="module")
def ranks():
    return on_ranks(2, steps)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_use_one_rate_and_end_in_one_place(name, ranks):
    (rates, theta), (other_rates, other_theta) = (rank[name] for rank in ranks)
    assert rates == other_rates
    assert torch.equal(theta, other_theta)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_rate_of_one_process_with_both_batches(name, ranks):
    model = network()
    optimizer, rates = make(name, model.parameters()), []
    for step in range(4):
        both = [torch.cat(pair) for pair in zip(batch(2 * step), batch(2 * step + 1), strict=True)]
        step_once(optimizer, model, both)
        rates.append(optimizer.applied_rate())
    assert ranks[0][name][0] == pytest.approx(rates, rel=1e-9)
    torch.testing.assert_close(ranks[0][name][1], flat(model.parameters()), rtol=1e-9, atol=1e-12)
