"""Muon for matrices and AdamW for the rest are torch's own, on the tensors that each is meant for."""

import copy

import pytest
import torch
from torch import nn

from metastep.lab.baselines.muon import MuonAdamW


class Net(nn.Module):
    """An embedding, a convolution, a hidden layer, a norm, outputs."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 16)
        self.conv = nn.Conv2d(1, 3, 3)
        self.hidden = nn.Linear(12, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        x = self.conv(self.embedding(x).view(-1, 1, 4, 4)).flatten(1)
        return self.out(self.norm(self.hidden(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def step(net, *optimizers):
    for optimizer in optimizers:
        optimizer.zero_grad()
    net(torch.arange(7)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def test_the_hidden_weights_are_neither_embeddings_nor_outputs_nor_vectors(net):
    optimizer = MuonAdamW(net.parameters(), model=net)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(net.conv.weight), id(net.hidden.weight)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))


def test_outputs_that_share_their_weights_with_an_embedding_leave_the_hidden_layers_alone(net):
    net.out = nn.Linear(16, 7)
    net.out.weight = net.embedding.weight
    optimizer = MuonAdamW(net.parameters(), model=net)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(net.conv.weight), id(net.hidden.weight)]


def test_without_a_model_the_last_weights_are_the_outputs(net):
    optimizer = MuonAdamW(net.parameters())
    assert len(optimizer.param_groups[0]["params"]) == 3
    assert all(p is not net.out.weight for p in optimizer.param_groups[0]["params"])


def test_each_part_takes_the_steps_of_torchs_optimizer_for_it(net):
    copied = copy.deepcopy(net)
    options = {"lr": 0.02, "weight_decay": 0.1}
    mine = MuonAdamW(net.parameters(), model=net, **options)
    matrices = [copied.hidden.weight]
    others = [p for p in copied.parameters() if p is not copied.hidden.weight and p is not copied.conv.weight]
    conv = nn.Parameter(copied.conv.weight.detach().flatten(1))
    muon = torch.optim.Muon([conv, *matrices], adjust_lr_fn="match_rms_adamw", **options)
    adamw = torch.optim.AdamW(others, **options)
    for _ in range(4):
        step(net, mine)
        muon.zero_grad()
        adamw.zero_grad()
        copied.zero_grad()
        copied(torch.arange(7)).square().sum().backward()
        conv.grad = copied.conv.weight.grad.flatten(1)
        muon.step()
        adamw.step()
        with torch.no_grad():
            copied.conv.weight.copy_(conv.view_as(copied.conv.weight))
    for a, b in zip(net.parameters(), copied.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_rate_that_is_written_into_the_groups_is_the_rate_of_the_next_step(net):
    copied = copy.deepcopy(net)
    one, other = MuonAdamW(net.parameters(), lr=0.5, model=net), MuonAdamW(copied.parameters(), lr=0.01, model=copied)
    for group in one.param_groups:
        group["lr"] = 0.01
    step(net, one)
    step(copied, other)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), copied.parameters(), strict=True))


def test_it_goes_on_from_its_state_bit_for_bit(net):
    one = MuonAdamW(net.parameters(), lr=0.02, model=net)
    for _ in range(3):
        step(net, one)
    copied = copy.deepcopy(net)
    other = MuonAdamW(copied.parameters(), lr=0.02, model=copied)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for _ in range(3):
        step(net, one)
        step(copied, other)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), copied.parameters(), strict=True))


def test_a_network_without_hidden_weights_is_adamws():
    net = nn.Linear(3, 2)
    optimizer = MuonAdamW(net.parameters(), model=net)
    assert len(optimizer.param_groups) == 1
    net(torch.ones(3)).sum().backward()
    before = net.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, net.weight)
