"""Optimizers that are linear in their rate are accepted and left alone; others are refused."""

import copy
import math

import pytest
import torch
from tests.meta.runs import OPTIMIZERS, learning, train
from tests.schedules.loops import Regression, net

import metastep as ms
from metastep.schedules.linearity import check_linear_in_rate


class RateInBuffer(torch.optim.Optimizer):
    """v <- 0.9 v + rate g; theta <- theta - v."""

    def step(self, closure=None) -> None:
        """Move."""
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.mul_(0.9).add_(p.grad, alpha=float(group["lr"]))
                with torch.no_grad():
                    p.sub_(buffer)


class Rooted(torch.optim.Optimizer):
    """Moves by the root of the rate."""

    def step(self, closure=None) -> None:
        """Move."""
        for group in self.param_groups:
            for p in group["params"]:
                with torch.no_grad():
                    p.sub_(p.grad, alpha=group["lr"] ** 0.5)


class Lion(torch.optim.Optimizer):
    """A third party's: sign of an interpolated momentum, decoupled decay; notes in attributes of its own."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.history: list[float] = []
        self.total = torch.zeros(())

    def step(self, closure=None) -> None:
        """Move."""
        self.history.append(1.0)
        self.total += 1
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                direction = (0.9 * momentum + 0.1 * p.grad).sign()
                momentum.lerp_(p.grad, 0.01)
                with torch.no_grad():
                    p.mul_(1 - group["lr"] * 0.1).sub_(direction, alpha=group["lr"])


LINEAR = {
    **OPTIMIZERS,
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "lion": lambda p: Lion(p, lr=0.01),
    "zero": lambda p: torch.optim.SGD(p, lr=0.0),
}
NOT_LINEAR = {
    "rate-in-buffer": lambda p: RateInBuffer(p, {"lr": 0.01}),
    "rooted": lambda p: Rooted(p, {"lr": 0.01}),
    "rooted-zero": lambda p: Rooted(p, {"lr": 0.0}),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_optimizer_is_accepted_and_left_untouched(name: str, warm: int) -> None:
    run = Regression(LINEAR[name])
    torch.optim.lr_scheduler.ConstantLR(run.optimizer, factor=1.0)  # binds optimizer.step to this very optimizer
    for step in range(warm):
        run.backward(step)
        run.optimizer.step()
    run.backward(warm)
    before = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    notes = copy.deepcopy({k: v for k, v in vars(run.optimizer).items() if k in ("history", "total")})
    stream = torch.random.get_rng_state()
    assert check_linear_in_rate(run.optimizer)
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert notes == {k: v for k, v in vars(run.optimizer).items() if k in ("history", "total")}
    after = (run.model.state_dict(), run.optimizer.state_dict())
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1]["param_groups"] == before[1]["param_groups"]
    torch.testing.assert_close(after[1]["state"], before[1]["state"], rtol=0, atol=0)


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("name", NOT_LINEAR)
def test_an_optimizer_that_is_not_linear_in_its_rate_is_refused(name: str, warm: int) -> None:
    run = Regression(NOT_LINEAR[name])
    lr = ms.LearnedLR(run.optimizer, net(), initial_loss=0.5, num_classes=3)
    if name != "lbfgs":
        train(run, lr, run.optimizer.step, range(warm))
    lr.observe(run.backward(warm))
    before = copy.deepcopy(run.model.state_dict())
    learner = learning(run, lr, every=1)
    with pytest.raises(ms.NotLinearInRate, match=type(run.optimizer).__name__):
        learner.step()
    torch.testing.assert_close(run.model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"horizon": 2, "first_order": True}, {"horizon": 2}])
def test_several_steps_judged_together_ask_for_linearity_too(options) -> None:
    run = Regression(lambda p: torch.optim.Rprop(p, lr=0.01))
    lr = ms.LearnedLR(run.optimizer, net(), initial_loss=0.5, num_classes=3)
    learner = learning(run, lr, every=3, **options)
    closure = None if "first_order" in options else lambda: run.loss(0)

    def three_steps() -> None:
        for step in range(3):
            if closure is None:
                lr.observe(run.backward(step))
            learner.step(closure)

    with pytest.raises(ms.NotLinearInRate, match="Rprop"):
        three_steps()


@pytest.mark.parametrize("factor", [0.0, math.nan])
def test_gradients_that_say_nothing_leave_the_question_open(factor: float) -> None:
    run = Regression(OPTIMIZERS["adam"])
    run.backward(0)
    for p in run.model.parameters():
        p.grad.mul_(factor)
    assert not check_linear_in_rate(run.optimizer)
