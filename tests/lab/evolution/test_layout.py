"""Sums over the layers of a population's rows, in pieces, are those over the parameters themselves."""

import pytest
import torch

from metastep.lab.evolution.distribution import TaskSpec
from metastep.lab.evolution.layout import Layout
from metastep.lab.evolution.members import Members
from metastep.lab.evolution.networks import MLP, Network, Transformer
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.rules import Base

NETWORKS = [MLP(5, (8, 3), 2, "relu", "batch", 1.0), Transformer(11, 8, 2, 2, 7)]


def rows_of(network: Network, layout: Layout, seed: int) -> torch.Tensor:
    flat = torch.randn(3, network.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return layout.join(network.split(flat), flat.new_empty(3, layout.width))


@pytest.mark.parametrize("network", NETWORKS, ids=["perceptron", "transformer"])
@pytest.mark.parametrize("piece", [1, 4, 32])
def test_sums_and_values_of_layers_are_those_of_their_parameters(network: Network, piece: int) -> None:
    layout = Layout(network, piece, torch.zeros(0, dtype=torch.float64))
    x, y = rows_of(network, layout, 0), rows_of(network, layout, 1)
    pairs = list(zip(layout.split(x), layout.split(y), strict=True))
    along = torch.stack([(a * b).flatten(1).sum(1) for a, b in pairs], 1)
    squares = [
        torch.stack([part.square().flatten(1).sum(1) for part in parts], 1) for parts in zip(*pairs, strict=True)
    ]
    torch.testing.assert_close(layout.sums(x * y, x, y), torch.stack((along, *squares)))
    values = torch.rand(3, layout.layers, dtype=torch.float64)
    for part, value in zip(layout.split(layout.of_parameters(values)), values.unbind(1), strict=True):
        assert torch.equal(part.flatten(1), value[:, None].expand(-1, part[0].numel()))
    assert torch.equal(layout.of_pieces(values).repeat_interleave(piece, 1), layout.of_parameters(values))


@pytest.mark.parametrize("network", NETWORKS, ids=["perceptron", "transformer"])
def test_what_is_not_finite_in_a_layer_stays_there(network: Network) -> None:
    layout = Layout(network, 4, torch.zeros(0, dtype=torch.float64))
    x = rows_of(network, layout, 0)
    sound = layout.sums(x * x, x)
    for bad in (torch.nan, torch.inf, -torch.inf):
        spoiled = x.clone()
        layout.split(spoiled)[2].view(3, -1)[1, 0] = bad
        found = layout.sums(spoiled * spoiled, spoiled)
        assert not found[:, 1, 2].isfinite().any()
        found[:, 1, 2] = sound[:, 1, 2]
        assert torch.equal(found, sound)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_what_is_left_over_behind_a_layer_stays_0_in_training(base: Base, policy: Policy, spec: TaskSpec) -> None:
    policy = policy._replace(scope="layer")
    members = Members(spec, base, policy, torch.tensor([0.1, 1.0]))
    ones = [torch.ones_like(part) for part in members.layout.split(members.parameters)]
    left = members.layout.join(ones, torch.empty_like(members.parameters)) == 0
    before = members.parameters.clone()
    members.run(torch.zeros(2, policy.size))
    assert int(left.sum()) == 2 * (32 - 16 + 32 - 10)  # the biases: 16 hidden units, 10 classes
    assert not members.parameters[left].any()
    assert not torch.equal(members.parameters, before)
