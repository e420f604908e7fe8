"""A closure that the exact horizon calls again must compute the loss of its own step; another one is refused."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.meta.networks import loss_of
from torch import Tensor, nn

import metastep as ms

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}
HORIZON = 2


def prepared(make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype, rows: int = 6) -> tuple[Any, ...]:
    """A small classifier with dropout, its learner, and batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 3)).to(dtype)
    batches = [(3 * torch.randn(rows, 4, dtype=dtype), torch.randint(3, (rows,))) for _ in range(4)]
    lr = ms.LearnedLR(make(model.parameters()), ms.MLRSNet(4), initial_loss=1.1, num_classes=3)
    learner = ms.MetaLearner(lr, lambda: loss_of(model, batches[3]), every=3, horizon=HORIZON, meta_lr=0.05)
    return model, learner, batches


def steps_with_late_closures(model: nn.Module, learner: ms.MetaLearner, batches: list[Any]) -> None:
    """The mistake: when a closure is called again, ``batch`` is the last one."""
    for batch in batches[:3]:
        learner.step(lambda: loss_of(model, batch))  # noqa: B023


def steps(model: nn.Module, learner: ms.MetaLearner, batches: list[Any]) -> None:
    """As it should be."""
    for batch in batches[:3]:
        learner.step(functools.partial(loss_of, model, batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_closure_that_reads_the_batch_of_the_loop_is_refused(optimizer: str, dtype: torch.dtype) -> None:
    model, learner, batches = prepared(OPTIMIZERS[optimizer], dtype, rows=2)  # whose losses differ much
    weights = [weight.detach().clone() for weight in learner.lr.schedule.parameters()]
    with pytest.raises(ValueError, match=r"closure must compute the same loss .* step 1 of the 2 .*functools\.partial"):
        steps_with_late_closures(model, learner, batches)
    assert learner.meta_updates == 0
    assert all(torch.equal(a, b) for a, b in zip(weights, learner.lr.schedule.parameters(), strict=True))
    other, as_it_should_be, batches = prepared(OPTIMIZERS[optimizer], dtype, rows=2)
    steps(other, as_it_should_be, batches)  # whose update changes the schedule alone
    assert as_it_should_be.meta_updates == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_closure_with_its_batch_bound_is_taken_in_every_precision(optimizer: str, dtype: torch.dtype) -> None:
    model, learner, batches = prepared(OPTIMIZERS[optimizer], dtype)
    for _ in range(2):
        steps(model, learner, batches)
    assert learner.meta_updates == 2


@pytest.mark.parametrize("returned", [None, 1.0, torch.tensor(1.0)], ids=["None", "float", "no graph"])
def test_a_closure_or_a_validation_loss_that_returns_no_loss_is_refused_by_name(returned: object) -> None:
    _, learner, batches = prepared(OPTIMIZERS["sgd"], torch.float64)
    with pytest.raises(TypeError, match="closure must return a tensor with a graph"):
        learner.step(lambda: returned)
    model, learner, batches = prepared(OPTIMIZERS["sgd"], torch.float64)
    learner.validation_loss = lambda: returned
    with pytest.raises(TypeError, match="validation_loss must return a tensor with a graph"):
        steps(model, learner, batches)


# ---- modes


class Frozen(nn.Module):
    """Keeps its batch norm in eval mode, as fine-tuning does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x))


@pytest.mark.parametrize("horizon", [1, 2], ids=["one step", "exact horizon"])
@pytest.mark.parametrize("how", ["before", "after", "one part", "attribute", "raises"])
def test_a_validation_loss_may_change_modes_and_the_run_finds_them_back(how: str, horizon: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Frozen(), nn.Linear(4, 3), nn.Dropout(0.5)).double().train()
    x, y = torch.randn(6, 4).double(), torch.randint(3, (6,))
    lr = ms.LearnedLR(torch.optim.SGD(model.parameters(), lr=0.1), ms.MLRSNet(4), initial_loss=1.1, num_classes=3)
    teacher = nn.Linear(4, 3).double().eval()

    def validation_loss() -> Tensor:
        if how == "before":
            model.eval()
            teacher.train()
        if how == "one part":
            model[2].eval()
        loss = loss_of(model, (x, y)) + teacher(x).square().mean()
        if how == "after":
            model.eval()
        if how == "attribute":
            model[2].training = False
        if how == "raises":
            model.eval()
            raise KeyError
        return loss

    before = {name: module.training for name, module in model.named_modules()}
    assert before == {"": True, "0": True, "0.norm": False, "0.drop": True, "1": True, "2": True}
    learner = ms.MetaLearner(lr, validation_loss, every=3, horizon=horizon)
    closure = None if horizon == 1 else functools.partial(loss_of, model, (x, y))
    try:
        for _ in range(3):
            if closure is None:
                lr.optimizer.zero_grad()
                loss = loss_of(model, (x, y))
                loss.backward()
                lr.observe(loss)
            learner.step(closure)
    except KeyError:
        assert how == "raises"
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not teacher.training
    assert nn.Module.train.__qualname__ == "Module.train"  # and torch is as it was
