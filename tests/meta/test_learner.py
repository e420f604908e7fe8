"""MetaLearner leaves no trace of its look-ahead, ticks once, and says no where it must."""

import copy
import gc
import math
import weakref

import pytest
import torch
from tests.schedules.loops import Regression, net
from torch import Tensor, nn

import metastep as ms
from metastep.meta.linearity import check_linear_in_rate

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw-tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01, dtype=torch.float64)),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "groups": lambda p: torch.optim.SGD([{"params": p[:2]}, {"params": p[2:], "lr": 0.01}], lr=0.05, momentum=0.9),
}


def attached(make, **options) -> tuple[Regression, ms.LearnedLR]:
    run = Regression(make)
    return run, ms.LearnedLR(run.optimizer, net(), **{"initial_loss": 0.5, "num_classes": 3, **options})


def frozen(lr: ms.LearnedLR) -> torch.optim.Optimizer:
    """A meta-optimizer that moves nothing: what is left is the look-ahead."""
    return torch.optim.SGD(lr.schedule.parameters(), lr=0.0)


def learning(run: Regression, lr: ms.LearnedLR, **options) -> ms.MetaLearner:
    return ms.MetaLearner(lr, lambda: run.loss(39), **{"every": 3, **options})


def train(run: Regression, lr: ms.LearnedLR, step, steps: range) -> list[list[float]]:
    used = []
    for k in steps:
        lr.observe(run.backward(k))
        step()
        used.append(lr.get_last_lr())
    return used


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---- no trace


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


def test_a_real_lesson_changes_the_rate_of_the_same_step_and_its_displacement_alone() -> None:
    plain, plain_lr = attached(OPTIMIZERS["momentum"])
    ((expected,),) = train(plain, plain_lr, plain.optimizer.step, range(1))
    run, lr = attached(OPTIMIZERS["momentum"])
    learner = learning(run, lr, every=1, meta_lr=0.1)
    start = [p.detach().clone() for p in run.model.parameters()]
    ((rate,),) = train(run, lr, learner.step, range(1))
    assert rate != expected
    for p, q, s in zip(run.model.parameters(), plain.model.parameters(), start, strict=True):
        torch.testing.assert_close((p - s) / rate, (q - s) / expected, rtol=1e-9, atol=1e-12)


def test_the_gradients_are_the_same_tensors_afterwards() -> None:
    run, lr = attached(OPTIMIZERS["adam"])
    learner = learning(run, lr, every=1)
    lr.observe(run.backward(0))
    gradients = [p.grad for p in run.model.parameters()]
    values = [g.clone() for g in gradients]
    learner.step()
    assert all(p.grad is g for p, g in zip(run.model.parameters(), gradients, strict=True))
    assert all(torch.equal(g, v) for g, v in zip(gradients, values, strict=True))


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


def test_a_failing_validation_pass_leaves_a_whole_step_and_no_trace() -> None:
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
    twin, twin_optimizer, twin_lr = build()
    learner = ms.MetaLearner(lr, lambda: (weights["used"] - 1).square().sum(), every=1, meta_lr=0.1)
    for _ in range(3):
        backward(weights, lr)
        backward(twin, twin_lr)
        learner.step()
        twin_lr.schedule.load_state_dict(lr.schedule.state_dict())  # the rate of the lesson
        twin_optimizer.step()
    assert lr.get_last_lr() == pytest.approx(twin_lr.get_last_lr(), rel=1e-12)
    for name in weights:
        torch.testing.assert_close(weights[name], twin[name], rtol=1e-12, atol=1e-14)
    assert learner.meta_updates == 3


def test_a_model_in_low_precision_learns() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(20).bfloat16())
    optimizer = torch.optim.SGD([weight], lr=0.1)
    lr = ms.LearnedLR(optimizer, net().float(), initial_loss=0.5, num_classes=3)
    learner = ms.MetaLearner(lr, lambda: (weight - 1).square().mean(), every=1, meta_lr=0.1)
    loss = weight.square().mean()
    loss.backward()
    start = weight.detach().clone()
    lr.observe(loss)
    learner.step()
    assert learner.meta_updates == 1
    torch.testing.assert_close(weight, start - lr.get_last_lr()[0] * weight.grad, rtol=2e-2, atol=1e-3)


def test_a_network_in_channels_last_has_the_same_lesson() -> None:
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


# ---- when nothing is learned


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_skips_the_lesson_not_the_step(value: float) -> None:
    plain, plain_lr = attached(OPTIMIZERS["adam"])
    expected = train(plain, plain_lr, plain.optimizer.step, range(3))
    run, lr = attached(OPTIMIZERS["adam"])
    before = copy.deepcopy(lr.schedule.state_dict())
    learner = ms.MetaLearner(lr, lambda: run.loss(39) * value, every=1)
    assert train(run, lr, learner.step, range(3)) == expected
    assert (learner.meta_updates, learner.skipped_updates) == (0, 3)
    assert not math.isfinite(learner.last_meta_loss)
    assert all(torch.equal(before[name], weight) for name, weight in lr.schedule.state_dict().items())


def test_a_slope_that_is_not_finite_skips_the_lesson() -> None:
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
def test_under_amp_the_lesson_is_that_of_unscaled_gradients_and_skips_are_skips(fused: bool, unscaled: bool) -> None:
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


def test_many_lessons_leave_no_tensor_and_no_graph_behind() -> None:
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


def test_the_validation_graph_is_freed_with_the_lesson() -> None:
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


def test_it_learns_in_every_nth_call_unless_told_otherwise() -> None:
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


# ---- linear in the rate?


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
