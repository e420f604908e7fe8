"""The schedule of an optimizer for which none was named, and schedules by name."""

import pytest
import torch

import metastep as ms


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
def test_torchs_optimizers_have_a_default_that_trains(kind: type[torch.optim.Optimizer]) -> None:
    weights = parameters()
    optimizer = kind(weights, lr=1e-5)
    lr = ms.LearnedLR(optimizer, total_steps=50)
    assert isinstance(lr.schedule, ms.Calibrated)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (weights[0] - 2).square().sum()
        loss.backward()
        lr.observe(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]  # from a rate at which Adam would move by 0.0005


def test_an_optimizer_without_a_default_is_told_which_schedules_there_are() -> None:
    with pytest.raises(ValueError, match=r"schedule must be named for Rprop: .*calibrated, constant, .*cosine"):
        ms.LearnedLR(torch.optim.Rprop(parameters()))
    with pytest.raises(TypeError, match="optimizer must be a torch"):
        ms.LearnedLR(object())


def test_a_name_will_do() -> None:
    assert isinstance(ms.LearnedLR(torch.optim.SGD(parameters(), lr=0.1), "constant").schedule, ms.Constant)
    cosine = ms.LearnedLR(torch.optim.SGD(parameters(), lr=0.1), "cosine", total_steps=7).schedule
    assert cosine.config() == ms.Cosine(7).config()
    assert isinstance(ms.LearnedLR(torch.optim.SGD(parameters(), lr=0.1), "mlrsnet-cifar10").schedule, ms.Phased)
    with pytest.raises(ValueError, match=r'total_steps must be given with schedule "linear"'):
        ms.LearnedLR(torch.optim.SGD(parameters(), lr=0.1), "linear")
    with pytest.raises(FileNotFoundError, match=r"Did you mean cosine\?"):
        ms.LearnedLR(torch.optim.SGD(parameters(), lr=0.1), "cosin")
