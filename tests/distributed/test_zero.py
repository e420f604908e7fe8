"""ZeroRedundancyOptimizer around a Hyper optimizer: refused where a rate would need tensors of other ranks."""

import torch
from tests.distributed.ranks import on_ranks
from torch import nn

import metastep as ms

REFUSED = ((("global",), False), (("global", "layer"), False), (("layer", "unit"), False), (("layer",), True))


def refusals() -> list[str]:
    """What its first step says to each of the levels."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    found = []
    for levels, safeguard in REFUSED:
        model, options = network(), {"levels": levels, "safeguard": safeguard}
        optimizer = ZeroRedundancyOptimizer(model.parameters(), ms.HyperAdam, lr=0.01, **options)
        model(torch.ones(3, 4)).sum().backward()
        try:
            optimizer.step()
        except ValueError as error:
            found.append(str(error))
    return found


def trained_by_layer(dealt_out: bool) -> list[torch.Tensor]:
    """Weights after some steps with a rate for each layer, the tensors dealt out or not."""
    model, options = network(), {"lr": 0.05, "levels": ("layer",), "safeguard": False}
    if dealt_out:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer = ZeroRedundancyOptimizer(model.parameters(), ms.HyperSGD, **options)
    else:
        optimizer = ms.HyperSGD(model.parameters(), **options)
    for step in range(4):
        optimizer.zero_grad()
        model(torch.ones(3, 4) + step).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def network() -> nn.Sequential:
    """Two layers, the same on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def test_levels_that_need_tensors_of_other_ranks_are_refused_and_what_to_do_is_said() -> None:
    for found in on_ranks(2, refusals):
        assert len(found) == len(REFUSED)
        wanted = "levels must be one of 'layer', 'unit', 'parameter' alone and safeguard False under ZeroRedundancy"
        assert all(wanted in f for f in found)
        assert all("fully_shard" in f for f in found)


def test_a_rate_for_each_layer_is_the_same_with_the_tensors_dealt_out() -> None:
    alone = trained_by_layer(dealt_out=False)
    for found in on_ranks(2, trained_by_layer, True):
        for mine, expected in zip(found, alone, strict=True):
            assert torch.equal(mine, expected)
    assert not torch.equal(alone[0], network()[0].weight)
