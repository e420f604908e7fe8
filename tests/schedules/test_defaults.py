"""The schedule of an optimizer for which none was named."""

import pytest
import torch

import metastep as ms
from metastep.schedules.files import DEFAULTS


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3))]


def test_adamw_has_a_default_that_trains() -> None:
    weights = parameters()
    optimizer = torch.optim.AdamW(weights, lr=1e-5)
    lr = ms.LearnedLR(optimizer, total_steps=50)
    assert torch.equal(lr.schedule.flat_weights(), ms.load_schedule("signal-adamw").flat_weights())
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (weights[0] - 2).square().sum()
        loss.backward()
        lr.observe(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]  # from a rate at which Adam would move by 0.0005


def test_a_default_is_shipped_and_trained_for_its_base() -> None:
    for base, name in DEFAULTS.items():
        assert base in ms.load_schedule(name).trained_for.split(", ")


def test_an_optimizer_without_a_default_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"schedule must be named for rmsprop: only .*adamw.* has a default"):
        ms.LearnedLR(torch.optim.RMSprop(parameters()))
    with pytest.raises(TypeError, match="optimizer must be a torch"):
        ms.LearnedLR(object())
