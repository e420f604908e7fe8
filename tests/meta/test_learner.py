"""MetaLearner: when nothing is learned, what it holds on to, and the arguments that it refuses."""

import copy
import gc
import math
import weakref

import pytest
import torch
from tests.meta.runs import OPTIMIZERS, attached, learning, train
from tests.schedules.loops import Regression, net
from torch import Tensor

import metastep as ms

# ---- when nothing is learned


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_skips_the_update_and_not_the_step(value: float) -> None:
    plain, plain_lr = attached(OPTIMIZERS["adam"])
    expected = train(plain, plain_lr, plain.optimizer.step, range(3))
    run, lr = attached(OPTIMIZERS["adam"])
    before = copy.deepcopy(lr.schedule.state_dict())
    learner = ms.MetaLearner(lr, lambda: run.loss(39) * value, every=1)
    assert train(run, lr, learner.step, range(3)) == expected
    assert (learner.meta_updates, learner.skipped_updates) == (0, 3)
    assert not math.isfinite(learner.last_meta_loss)
    assert all(torch.equal(before[name], weight) for name, weight in lr.schedule.state_dict().items())


def test_a_slope_that_is_not_finite_skips_the_update() -> None:
    run, lr = attached(OPTIMIZERS["adam"])
    weight = run.model[0].weight
    learner = ms.MetaLearner(lr, lambda: (weight - weight.detach()).abs().sqrt().sum(), every=1)  # 0, with slope inf
    train(run, lr, learner.step, range(1))
    assert (learner.last_meta_loss, learner.meta_updates, learner.skipped_updates) == (0.0, 0, 1)


def test_before_any_finite_training_loss_the_step_is_taken_at_the_initial_rate() -> None:
    run, _ = attached(OPTIMIZERS["momentum"])
    run.optimizer._optimizer_step_pre_hooks.clear()
    lr = ms.LearnedLR(run.optimizer, net())
    learner = learning(run, lr, every=1)
    run.backward(0)
    lr.observe(math.nan)
    learner.step()
    assert (lr.steps, lr.get_last_lr(), learner.meta_updates) == (0, [0.05], 0)


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_under_amp_the_update_is_that_of_unscaled_gradients_and_skips_are_skips(fused: bool, unscaled: bool) -> None:
    make = lambda p: torch.optim.SGD(p, lr=0.05, fused=fused)  # noqa: E731
    plain, plain_lr = attached(make)
    plain_learner = learning(plain, plain_lr, every=1)
    train(plain, plain_lr, plain_learner.step, range(1))
    plain.loss(1)  # the skipped step draws its mask, and counts in the running statistics
    train(plain, plain_lr, plain_learner.step, range(2, 3))

    run, lr = attached(make)
    learner = learning(run, lr, every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, factor in enumerate((1.0, math.inf, 1.0)):
        run.optimizer.zero_grad()
        loss = run.loss(step)
        scaler.scale(loss * factor).backward()
        before, state = copy.deepcopy(run.model.state_dict()), lr.state_dict()
        if unscaled:
            scaler.unscale_(run.optimizer)
        if factor == 1.0:
            lr.observe(loss)
        learner.step(scaler=scaler)
        scaler.update()
        if factor == math.inf:
            torch.testing.assert_close(run.model.state_dict(), before, rtol=0, atol=0)
            assert (lr.steps, learner.meta_updates) == (1, 1)
            assert torch.equal(lr.state, state["state"])
    assert lr.get_last_lr() == pytest.approx(plain_lr.get_last_lr(), rel=1e-9)
    assert learner.meta_updates == 2
    torch.testing.assert_close(run.model.state_dict(), plain.model.state_dict(), rtol=1e-9, atol=1e-12)


# ---- memory


def test_many_updates_leave_no_tensor_and_no_graph_behind() -> None:
    run, lr = attached(OPTIMIZERS["adam"])
    learner = learning(run, lr, every=1)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    train(run, lr, learner.step, range(3))
    before = tensors()
    train(run, lr, learner.step, range(3, 40))
    assert tensors() == before
    assert lr.state.grad_fn is None


def test_the_validation_graph_is_freed_with_the_update() -> None:
    run, lr = attached(OPTIMIZERS["adam"])
    kept = []

    def validation() -> Tensor:
        middle = run.model(run.inputs[39])
        kept.append(weakref.ref(middle))
        return middle.square().mean()

    learner = ms.MetaLearner(lr, validation, every=1)
    train(run, lr, learner.step, range(1))
    gc.collect()
    assert kept[0]() is None


# ---- counting and arguments


def test_a_meta_update_between_does_not_hide_that_somebody_else_sets_the_rate() -> None:
    run, lr = attached(OPTIMIZERS["momentum"])
    learner = learning(run, lr, every=2)

    def step() -> None:
        run.optimizer.param_groups[0]["lr"] *= 0.5
        learner.step()

    with pytest.warns(UserWarning, match="something else changes the optimizer's rate"):
        train(run, lr, step, range(6))


def test_it_learns_in_every_nth_call_unless_it_is_asked_otherwise() -> None:
    run, lr = attached(OPTIMIZERS["adam"])
    learner = learning(run, lr, every=3)
    updates = []
    for step, meta in enumerate([None, None, None, True, False, False, None]):
        lr.observe(run.backward(step))
        learner.step(meta=meta)
        updates.append(learner.meta_updates)
    assert updates == [0, 0, 1, 2, 2, 2, 2]
    assert lr.steps == 7


def test_the_published_meta_optimizer_is_the_default() -> None:
    _, lr = attached(OPTIMIZERS["adam"])
    default = ms.MetaLearner(lr, lambda: None).meta_optimizer
    assert type(default) is torch.optim.Adam
    assert default.defaults["lr"] == 1e-3
    assert default.defaults["weight_decay"] == 1e-4


def test_a_meta_gradient_is_clipped_where_wanted() -> None:
    run, lr = attached(OPTIMIZERS["adam"])
    before = [w.detach().clone() for w in lr.schedule.parameters()]
    meta = torch.optim.SGD(lr.schedule.parameters(), lr=1.0)
    learner = learning(run, lr, every=1, meta_optimizer=meta, max_grad_norm=1e-6)
    train(run, lr, learner.step, range(1))
    moved = torch.cat([(w - b).flatten() for w, b in zip(lr.schedule.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        (lambda run: 1.0, TypeError, "got float"),
        (lambda run: run.loss(0).detach(), TypeError, "without a graph"),
        (lambda run: run.model(run.inputs[0]), ValueError, "one element"),
        (lambda run: Regression(OPTIMIZERS["adam"]).loss(0), ValueError, "same model"),
    ],
)
def test_a_validation_loss_that_cannot_teach_is_refused(validation, error, message: str) -> None:
    run, lr = attached(OPTIMIZERS["adam"])
    learner = ms.MetaLearner(lr, lambda: validation(run), every=1)
    with pytest.raises(error, match=rf"validation_loss.*{message}"):
        train(run, lr, learner.step, range(1))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"every": 0}, "every"),
        ({"meta_lr": 0.0}, "meta_lr"),
        ({"meta_lr": math.inf}, "meta_lr"),
        ({"horizon": 0}, "horizon"),
        ({"horizon": 4}, "horizon"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"horizon": 3}, "every must be > horizon"),
    ],
)
def test_a_bad_argument_is_named(options: dict[str, float], name: str) -> None:
    run, lr = attached(OPTIMIZERS["adam"])
    with pytest.raises(ValueError, match=f"^{name}"):
        learning(run, lr, **options)


def test_a_schedule_without_weights_or_another_ones_optimizer_is_refused() -> None:
    run = Regression(OPTIMIZERS["adam"])
    lr = ms.LearnedLR(run.optimizer, ms.Constant())
    with pytest.raises(ValueError, match="Constant has none"):
        learning(run, lr)
    lr.detach()
    lr = ms.LearnedLR(run.optimizer, net())
    with pytest.raises(ValueError, match="meta_optimizer must hold"):
        learning(run, lr, meta_optimizer=torch.optim.SGD(net().parameters(), lr=1.0))
