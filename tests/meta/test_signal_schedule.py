"""MetaLearner and a schedule that watches the optimizer: exact for one step, refused where there is no one rate."""

import copy
import math

import pytest
import torch
from tests.meta.networks import images, loss_of
from tests.oracles.meta_gradient import unrolled

import metastep as ms


def prepared(**options):
    """A model after four real steps, and its schedule: recurrent, so that every weight has a gradient."""
    model, batches = images(0)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(3)
    made = ms.SignalSchedule(hidden=3, total_steps=50, **{"recurrent": True, **options})
    made.load_flat(0.3 * torch.randn_like(made.flat_weights()))
    lr = ms.LearnedLR(opt, made.double())
    for batch in batches[:4]:
        train_step(model, opt, lr, batch)
        opt.step()
    return model, opt, lr, batches


def train_step(model, opt, lr, batch) -> None:
    opt.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    lr.observe(loss)


def learner_of(model, lr, batches, **options) -> ms.MetaLearner:
    meta = torch.optim.SGD(lr.schedule.parameters(), lr=1.0)
    return ms.MetaLearner(lr, lambda: loss_of(model, batches[7]), meta_optimizer=meta, **options)


def test_one_step_meta_gradient_equals_autograd_through_the_step() -> None:
    model, opt, lr, batches = prepared()
    reference, reference_opt, reference_lr = copy.deepcopy((model, opt, lr))
    rng = torch.random.get_rng_state()
    train_step(reference, reference_opt, reference_lr, batches[5])
    rate, _ = reference_lr.query_with_graph(reference_lr.flush(), reference_lr.state)
    torch.random.set_rng_state(rng)
    losses = [lambda m: loss_of(m, batches[5])]
    weights = list(reference_lr.schedule.parameters())
    expected = unrolled(reference, reference_opt, losses, lambda m: loss_of(m, batches[7]), [rate], weights)

    torch.random.set_rng_state(rng)
    learner = learner_of(model, lr, batches, every=1)
    before = lr.schedule.flat_weights()
    train_step(model, opt, lr, batches[5])
    learner.step()
    found = before - lr.schedule.flat_weights()
    assert expected[0].norm() > 0
    assert (found - expected[0]).norm() < 1e-10 * expected[0].norm()


def test_several_steps_are_judged_together_to_first_order() -> None:
    model, opt, lr, batches = prepared()
    learner = learner_of(model, lr, batches, every=3, horizon=3, first_order=True)
    before = lr.schedule.flat_weights()
    for batch in batches[4:7]:
        train_step(model, opt, lr, batch)
        learner.step()
    assert learner.meta_updates == 1
    assert not torch.equal(lr.schedule.flat_weights(), before)


def test_a_skipped_step_teaches_nothing_and_moves_nothing() -> None:
    model, opt, lr, batches = prepared()
    learner = learner_of(model, lr, batches, every=1)
    train_step(model, opt, lr, batches[5])
    next(model.parameters()).grad.fill_(math.nan)
    before = [p.detach().clone() for p in model.parameters()], lr.schedule.flat_weights()
    momenta = [state["momentum_buffer"].clone() for state in opt.state.values()]
    learner.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before[0], strict=True))
    assert torch.equal(lr.schedule.flat_weights(), before[1])
    after = [state["momentum_buffer"] for state in opt.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, momenta, strict=True))
    assert (lr.brakes, learner.meta_updates, learner.skipped_updates) == (1, 0, 1)


def test_one_rate_for_each_layer_is_refused() -> None:
    model, opt, lr, batches = prepared(scope="layer")
    learner = learner_of(model, lr, batches, every=1)
    train_step(model, opt, lr, batches[5])
    with pytest.raises(ValueError, match=r"must set one rate for a look-ahead, got one for each of \d+ layers"):
        learner.step()
