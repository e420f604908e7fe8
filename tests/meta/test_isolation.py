"""A look-ahead is isolated: parameters, buffers, modes, gradients, streams and hooks are as without it."""

import pytest
import torch
from tests.meta.runs import OPTIMIZERS, attached, equal, frozen, learning, train
from tests.schedules.loops import net
from torch import Tensor, nn

import metastep as ms


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_buffers_gradients_streams_and_rates_are_as_without_the_look_ahead(name: str) -> None:
    plain, plain_lr = attached(OPTIMIZERS[name])
    expected = train(plain, plain_lr, plain.optimizer.step, range(10))
    stream = torch.random.get_rng_state()

    run, lr = attached(OPTIMIZERS[name])
    learner = learning(run, lr, meta_optimizer=frozen(lr))
    assert train(run, lr, learner.step, range(10)) == expected
    assert learner.meta_updates == 3
    assert equal(run.model, plain.model)
    assert run.model[1].num_batches_tracked == 10
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert lr.steps == plain_lr.steps == 10
    assert torch.equal(lr.state, plain_lr.state)
    for p, q in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
        for key, value in plain.optimizer.state[q].items():
            assert torch.equal(torch.as_tensor(run.optimizer.state[p][key]), torch.as_tensor(value))


def test_a_real_update_changes_the_rate_of_the_same_step_and_its_displacement_alone() -> None:
    plain, plain_lr = attached(OPTIMIZERS["momentum"])
    ((expected,),) = train(plain, plain_lr, plain.optimizer.step, range(1))
    run, lr = attached(OPTIMIZERS["momentum"])
    learner = learning(run, lr, every=1, meta_lr=0.1)
    start = [p.detach().clone() for p in run.model.parameters()]
    ((rate,),) = train(run, lr, learner.step, range(1))
    assert rate != expected
    for p, q, s in zip(run.model.parameters(), plain.model.parameters(), start, strict=True):
        torch.testing.assert_close((p - s) / rate, (q - s) / expected, rtol=1e-9, atol=1e-12)


def test_kept_gradients_are_the_same_tensors_afterwards() -> None:
    run, lr = attached(OPTIMIZERS["adam"])
    learner = learning(run, lr, every=1, keep_gradients=True)
    lr.observe(run.backward(0))
    gradients = [p.grad for p in run.model.parameters()]
    values = [g.clone() for g in gradients]
    learner.step()
    assert all(p.grad is g for p, g in zip(run.model.parameters(), gradients, strict=True))
    assert all(torch.equal(g, v) for g, v in zip(gradients, values, strict=True))


def test_gradients_that_nobody_wants_are_let_go_and_all_else_is_the_same() -> None:
    ends = []
    for keep in (True, False):
        run, lr = attached(OPTIMIZERS["adam"])
        train(run, lr, learning(run, lr, every=1, keep_gradients=keep).step, range(3))
        assert all((p.grad is not None) is keep for p in run.model.parameters())
        ends.append((run.model.state_dict(), lr.schedule.state_dict()))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_the_users_own_gradient_hooks_see_no_validation_gradient() -> None:
    run, lr = attached(OPTIMIZERS["adam"])
    learner = learning(run, lr, every=1)
    calls = []
    handles = [p.register_post_accumulate_grad_hook(lambda p: calls.append(p)) for p in run.model.parameters()]
    for _ in range(2):
        lr.observe(run.backward(0))
        count = len(calls)
        learner.step()
        assert len(calls) == count
    assert count == 2 * len(handles)  # they are still there
    for handle in handles:
        handle.remove()
    run.backward(0)
    assert len(calls) == count


class Drifting(nn.Module):
    """Replaces one buffer at every call and writes into another; leaves a third empty."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.register_buffer("replaced", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("written", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("absent", None)

    def forward(self) -> Tensor:
        self.replaced = self.replaced + 1
        self.written.add_(1)
        return self.weight.square().sum()


def test_buffers_that_are_replaced_come_back_too() -> None:
    model = Drifting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lr = ms.LearnedLR(optimizer, net(), initial_loss=0.5, num_classes=3)
    learner = ms.MetaLearner(lr, model, every=1)
    for _ in range(3):
        loss = model()
        optimizer.zero_grad()
        loss.backward()
        lr.observe(loss)
        learner.step()
    assert (model.replaced, model.written) == (3, 3)


def test_a_failing_validation_pass_leaves_a_whole_step_and_nothing_else() -> None:
    plain, plain_lr = attached(OPTIMIZERS["adam"])
    expected = train(plain, plain_lr, plain.optimizer.step, range(2))
    run, lr = attached(OPTIMIZERS["adam"])

    def fails() -> Tensor:
        run.loss(39)
        raise KeyError("no such batch")

    learner = ms.MetaLearner(lr, fails, every=2)
    with pytest.raises(KeyError, match="no such batch"):
        train(run, lr, learner.step, range(2))
    assert [lr.get_last_lr()] == expected[1:]
    assert equal(run.model, plain.model)
    stream = torch.random.get_rng_state()
    train(run, lr, run.optimizer.step, range(2, 3))  # the run can go on
    torch.random.set_rng_state(stream)
    train(plain, plain_lr, plain.optimizer.step, range(2, 3))
    assert equal(run.model, plain.model)


# ---- awkward parameters


def test_frozen_unused_and_late_parameters_are_left_to_the_optimizer() -> None:
    def build() -> tuple[nn.ParameterDict, torch.optim.Optimizer, ms.LearnedLR]:
        torch.manual_seed(0)
        names = ("used", "frozen", "unused", "frozen_with_gradient")
        weights = nn.ParameterDict({name: nn.Parameter(torch.randn(1, 3).double()) for name in names})
        for name in ("frozen", "frozen_with_gradient"):
            weights[name].requires_grad_(False)
        weights["frozen_with_gradient"].grad = torch.ones(1, 3).double()  # left over: torch's optimizers move it
        optimizer = torch.optim.SGD(weights.parameters(), lr=0.1, momentum=0.9)
        return weights, optimizer, ms.LearnedLR(optimizer, net(), initial_loss=0.5, num_classes=3)

    def backward(weights: nn.ParameterDict, lr: ms.LearnedLR) -> None:
        weights["used"].grad = None
        loss = (weights["used"] + weights["frozen"]).square().sum()
        loss.backward()
        lr.observe(loss)

    weights, _, lr = build()
    reference, reference_optimizer, reference_lr = build()
    learner = ms.MetaLearner(lr, lambda: (weights["used"] - 1).square().sum(), every=1, meta_lr=0.1)
    for _ in range(3):
        backward(weights, lr)
        backward(reference, reference_lr)
        learner.step()
        reference_lr.schedule.load_state_dict(lr.schedule.state_dict())  # the rate after the update
        reference_optimizer.step()
    assert lr.get_last_lr() == pytest.approx(reference_lr.get_last_lr(), rel=1e-12)
    for name in weights:
        torch.testing.assert_close(weights[name], reference[name], rtol=1e-12, atol=1e-14)
    assert learner.meta_updates == 3


def test_a_model_in_low_precision_learns() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(20).bfloat16())
    optimizer = torch.optim.SGD([weight], lr=0.1)
    lr = ms.LearnedLR(optimizer, net().float(), initial_loss=0.5, num_classes=3)
    learner = ms.MetaLearner(lr, lambda: (weight - 1).square().mean(), every=1, meta_lr=0.1, keep_gradients=True)
    loss = weight.square().mean()
    loss.backward()
    start = weight.detach().clone()
    lr.observe(loss)
    learner.step()
    assert learner.meta_updates == 1
    torch.testing.assert_close(weight, start - lr.get_last_lr()[0] * weight.grad, rtol=2e-2, atol=1e-3)


def test_a_network_in_channels_last_has_the_same_update() -> None:
    weights = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 1, 3)).double().to(memory_format=layout)
        x = torch.randn(4, 2, 6, 6).double().to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        lr = ms.LearnedLR(optimizer, net(), initial_loss=0.5, num_classes=3)
        learner = ms.MetaLearner(lr, lambda m=model, x=x: (m(x) - 1).square().mean(), every=1)
        for _ in range(2):
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            lr.observe(loss)
            learner.step()
        weights.append([w.detach().clone() for w in lr.schedule.parameters()])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-8, atol=1e-11)
