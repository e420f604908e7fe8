"""The trainer steps an optimizer as the optimizer says it wants to be stepped."""

import pytest
import torch
from torch import nn

from metastep.lab.bench.training import Trainer
from metastep.meta import MetaLearner
from metastep.schedules import Constant, LearnedLR, MLRSNet


class Numbers:
    """Batches 1, 2, 3, ..."""

    def __init__(self):
        self.last = 0.0

    def __next__(self):
        self.last += 1.0
        return self.last


class Recording(torch.optim.SGD):
    """SGD that keeps what its step was given."""

    def step(self, *closures):
        self.given = closures
        super().step()


def trainer(style=None, validation=None, schedule=None, learner=False):
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    optimizer = Recording(model.parameters(), lr=0.1)
    if style is not None:
        optimizer.step_style = style
    lr = LearnedLR(optimizer, schedule or Constant(), num_classes=2)
    return Trainer(
        model=model,
        optimizer=optimizer,
        lr=lr,
        loss=lambda model, batch: batch * model.weight.square().sum(),
        batches=Numbers(),
        learner=MetaLearner(lr, lambda: model.weight.sum()) if learner else None,
        validation_loss=validation,
    )


def test_a_plain_optimizer_is_given_nothing():
    run = trainer()
    run.advance()
    assert run.optimizer.given == ()


def test_one_that_wants_the_loss_is_given_the_loss_before_the_step_without_a_graph():
    run = trainer("loss")
    loss = run.advance()
    (closure,) = run.optimizer.given
    assert closure() == loss
    assert not closure().requires_grad


def test_one_that_wants_a_closure_can_have_the_loss_of_the_same_batch_at_other_weights():
    run = trainer("closure")
    run.advance()
    run.advance()
    (closure,) = run.optimizer.given
    with torch.no_grad():
        run.model.weight.fill_(3.0)
    with torch.enable_grad():
        again = closure()
    assert again == 2 * 9  # of batch 2
    assert not again.requires_grad
    assert run.batches.last == 2


def test_a_bilevel_one_is_given_both_losses_with_their_graphs_and_no_gradient():
    run = trainer("bilevel", validation=lambda: run.model.weight.sum())
    loss = run.advance()
    assert run.model.weight.grad is None
    training, validation = run.optimizer.given
    assert training() == loss
    (gradient,) = torch.autograd.grad(training(), run.model.weight, create_graph=True)
    assert gradient.requires_grad  # of which Hessian-vector products can be had
    with torch.no_grad():
        run.model.weight.fill_(2.0)
    assert validation() == 2.0
    assert validation().requires_grad


def test_what_cannot_be_stepped_is_refused():
    with pytest.raises(ValueError, match="validation_loss must be given to step Recording, got None"):
        trainer("bilevel")
    with pytest.raises(
        ValueError, match="step_style of Recording must be one of plain, loss, closure, bilevel, got 'x'"
    ):
        trainer("x")
    with pytest.raises(ValueError, match="learner must be None with Recording"):
        trainer("loss", schedule=MLRSNet(hidden_size=3), learner=True)
