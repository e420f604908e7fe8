"""``optimizer.step(closure)``: the loss of the first evaluation sets the rate of the same step."""

import pytest
import torch
from tests.schedules.loops import net, null, rates
from torch import nn

import metastep as ms

MAKERS = [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=1)]


def attached(optimizer):
    return ms.LearnedLR(optimizer, net(), initial_loss=2.3, num_classes=10)


@pytest.mark.parametrize("observes", [False, True])
@pytest.mark.parametrize("style", ["positional", "keyword"])
@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=1)]
)
def test_the_loss_of_a_closure_sets_the_rate_of_the_same_step(make, style: str, observes: bool) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(3).double())
    optimizer = make([parameter])
    lr = attached(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum() + 1
        loss.backward()
        if observes:
            lr.observe(loss)
        return loss

    for _ in range(2):
        before = parameter.detach().clone()
        gradient = 2 * before
        optimizer.step(closure) if style == "positional" else optimizer.step(closure=closure)
        rate = lr.get_last_lr()[0]
        if isinstance(optimizer, torch.optim.LBFGS):
            if lr.steps == 1:  # its first step is min(1, 1 / |g|_1) lr along g
                torch.testing.assert_close(before - parameter, gradient * rate / gradient.abs().sum().clamp(min=1))
        else:
            torch.testing.assert_close(before - parameter, rate * gradient)
    assert lr.steps == 2


def test_later_evaluations_of_a_line_search_count_for_nothing() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(3).double())
    optimizer = torch.optim.LBFGS([parameter], lr=0.1, max_iter=5)
    lr, first = attached(optimizer), []

    def closure():
        optimizer.zero_grad()
        loss = (parameter**4).sum()
        loss.backward()
        lr.observe(loss)
        first.append(loss.item())
        return loss

    for _ in range(2):
        start = len(first)
        optimizer.step(closure)
        first[start + 1 :] = []
    other = null()
    assert rates(attached(other), other, first)[-1] == lr.get_last_lr()[0]


def test_micro_batches_before_a_closure_count_with_it() -> None:
    optimizer, other = null(), null()
    lr = attached(optimizer)

    def closure():
        lr.observe(3.0)
        return 3.0

    lr.observe(1.0)
    optimizer.step(closure)
    assert lr.get_last_lr() == rates(attached(other), other, [2.0])


def test_a_loss_observed_before_and_returned_by_the_closure_counts_once() -> None:
    optimizer, other = null(), null()
    lr = attached(optimizer)
    lr.observe(1.0)
    optimizer.step(lambda: 3.0)
    assert lr.get_last_lr() == rates(attached(other), other, [1.0])
