"""Each member of a batched network computes what it would compute alone, and what torch's modules compute."""

import pytest
import torch
from torch import nn

from metastep.lab.evolution.networks import MLP, ConvNet, Network, Recurrent, Transformer

TOKENS = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(3))
ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(4))
PICTURES = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (MLP(5, (8, 8), 3, "relu", "none", 1.0), ROWS),
        (MLP(5, (8,), 3, "gelu", "layer", 1.0), ROWS),
        (MLP(5, (8,), 3, "tanh", "batch", 1.0), ROWS),
        (ConvNet(2, (4, 6), 3, "relu", "batch"), PICTURES),
        (ConvNet(2, (4,), 3, "tanh", "none"), PICTURES),
        (Transformer(11, 8, 2, 2, 7), TOKENS),
        (Recurrent(11, 8, "gru"), TOKENS),
        (Recurrent(11, 8, "lstm"), TOKENS),
    ],
)
def test_members_do_not_see_each_other(network: Network, inputs: torch.Tensor) -> None:
    flat = torch.stack([network.init(torch.Generator().manual_seed(seed)) for seed in range(3)])
    together = network.forward(network.split(flat), inputs)
    alone = torch.cat([network.forward(network.split(member[None]), inputs) for member in flat])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_the_perceptron_is_that_of_torch() -> None:
    network = MLP(5, (8,), 3, "relu", "layer", 1.0)
    bias, weight, scale, shift, last_bias, last = network.split(torch.randn(1, network.size))
    norm = nn.LayerNorm(8)
    norm.weight.data, norm.bias.data = scale[0], shift[0]
    hidden = torch.relu(norm(ROWS @ weight[0] + bias[0]))
    expected = hidden @ last[0] + last_bias[0]
    found = network.forward([bias, weight, scale, shift, last_bias, last], ROWS)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_convnet_is_that_of_torch() -> None:
    network = ConvNet(2, (4, 6), 3, "relu", "batch")
    parts = network.split(torch.randn(1, network.size, generator=torch.Generator().manual_seed(0)))
    x = PICTURES
    for block in range(2):
        bias, kernel, scale, shift = (part[0] for part in parts[4 * block : 4 * block + 4])
        conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, stride=1 + block, padding=1)
        conv.weight.data, conv.bias.data = kernel, bias
        norm = nn.BatchNorm2d(kernel.shape[0])
        norm.weight.data, norm.bias.data = scale, shift
        x = torch.relu(norm(conv(x)))
    expected = x.mean((2, 3)) @ parts[-1][0] + parts[-2][0]
    torch.testing.assert_close(network.forward(parts, PICTURES)[0], expected, rtol=1e-3, atol=1e-4)


def test_no_token_sees_those_behind_it() -> None:
    for network in (Transformer(11, 8, 1, 2, 7), Recurrent(11, 8, "gru"), Recurrent(11, 8, "lstm")):
        parts = network.split(network.init(torch.Generator().manual_seed(0))[None])
        changed = TOKENS.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 11
        before, after = network.forward(parts, TOKENS), network.forward(parts, changed)
        torch.testing.assert_close(before[:, :, :-1], after[:, :, :-1])
        assert not torch.allclose(before[:, :, -1], after[:, :, -1])
