"""The calibrated schedule: the unit rate against its definition, and all the usual loops that must not break it."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

import metastep as ms
from metastep.schedules import compiled_query
from metastep.schedules.calibration import Calibrator, CannotCalibrate, looks_trained

STEPS = 60
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": lambda p, lr: SGD(p, lr=lr, momentum=0.9),
    "nesterov": lambda p, lr: SGD(p, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "dampened": lambda p, lr: SGD(p, lr=lr, momentum=0.9, dampening=0.5),
    "adamw": AdamW,
    "amsgrad": lambda p, lr: AdamW(p, lr=lr, amsgrad=True),
    "adam": torch.optim.Adam,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "rmsprop-momentum": lambda p, lr: torch.optim.RMSprop(p, lr=lr, momentum=0.9),
    "asgd": torch.optim.ASGD,
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
both = pytest.mark.parametrize("name", ["momentum", "adamw"])


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(256, 12, generator=generator)
    return x, (x @ torch.randn(12, 5, generator=generator)).argmax(1)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))


def train(
    optimizer: Optimizer,
    net: nn.Module,
    lr: ms.LearnedLR,
    steps: int,
    *,
    start: int = 0,
    loss_of: Callable[[Tensor], Tensor] = lambda loss: loss,
    before_step: Callable[[int], Any] = lambda step: None,
) -> tuple[list[float], list[float]]:
    x, y = data()
    losses, rates = [], []
    for step in range(start, start + steps):
        rows = torch.arange(32) * 5 + step
        loss = loss_of(cross_entropy(net(x[rows % 256]), y[rows % 256]))
        optimizer.zero_grad()
        before_step(step)
        loss.backward()
        lr.observe(loss)
        optimizer.step()
        losses.append(loss.item())
        rates.append(lr.get_last_lr()[0])
    return losses, rates


def run(name: str, lr0: float = 0.01, net: nn.Module | None = None, **options: Any) -> tuple[list[float], list[float]]:
    net = network() if net is None else net
    optimizer = OPTIMIZERS[name](net.parameters(), lr=lr0)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    return train(optimizer, net, lr, STEPS, **options)


# ---- the unit rate


def measured(optimizer: Optimizer) -> Calibrator:
    found = Calibrator(optimizer)
    found.scale(ms.Calibrated(100), [1.0] * len(optimizer.param_groups), math.nan)
    return found


def gradients(optimizer: Optimizer) -> tuple[Tensor, Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return (
        torch.cat([p.detach().double().flatten() for p in parameters]),
        torch.cat([p.grad.double().flatten() for p in parameters]),
    )


def with_gradients(make: Callable[..., Optimizer], dtype: torch.dtype = torch.float64) -> Optimizer:
    net = network().to(dtype)
    x, y = data()
    cross_entropy(net(x.to(dtype)), y).backward()
    return make(net.parameters(), lr=3.0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_unit_rate_of_sgd_is_by_which_a_settled_step_is_as_long_as_the_parameters(momentum: float) -> None:
    optimizer = with_gradients(lambda p, lr: SGD(p, lr=lr, momentum=momentum))
    theta, gradient = gradients(optimizer)
    settled = gradient * (1 - momentum**100) / (1 - momentum)
    found = measured(optimizer).found
    assert found.unit == pytest.approx(float(theta.norm() / settled.norm()), rel=1e-10)
    assert found.decrease == pytest.approx(float(gradient @ settled) * found.unit, rel=1e-10)
    assert found.follows
    matrices = [p.grad.double().flatten() for group in optimizer.param_groups for p in group["params"] if p.ndim == 2]
    assert found.gradient == pytest.approx(float(torch.cat(matrices).norm()), rel=1e-10)


def test_the_unit_rate_of_adam_is_the_root_mean_square_of_the_parameters() -> None:
    optimizer = with_gradients(lambda p, lr: torch.optim.Adam(p, lr=lr, eps=0.0))
    theta, gradient = gradients(optimizer)
    moving = gradient != 0
    found = measured(optimizer).found
    assert found.unit == pytest.approx(float(theta.norm() / moving.double().sum().sqrt()), rel=1e-10)
    assert found.decrease == pytest.approx(float(gradient.abs().sum()) * found.unit, rel=1e-10)
    assert not found.follows


@every_optimizer
def test_measuring_leaves_the_optimizer_alone(name: str) -> None:
    optimizer = with_gradients(OPTIMIZERS[name], torch.float32)
    before = copy.deepcopy((optimizer.state_dict(), gradients(optimizer)))
    stream = torch.get_rng_state()
    assert measured(optimizer).found.unit is not None
    after = (optimizer.state_dict(), gradients(optimizer))
    assert str(before) == str(after)
    assert torch.equal(stream, torch.get_rng_state())


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_a_sample_of_a_large_tensor_says_what_all_of_it_would(make: Callable[..., Optimizer]) -> None:
    torch.manual_seed(0)
    large, small = nn.Parameter(torch.randn(1500, 700) / 50), nn.Parameter(torch.randn(70, 30) / 10)
    for parameter in (large, small):
        parameter.grad = torch.randn_like(parameter) * torch.rand_like(parameter).square()
    optimizer = make([large, small], lr=1.0)
    theta, gradient = gradients(optimizer)
    update = gradient if make is SGD else torch.ones_like(gradient)
    calibrator = measured(optimizer)
    assert calibrator.found.unit == pytest.approx(float(theta.norm() / update.norm()), rel=0.02)
    assert len(_pickled(calibrator.state_dict())) < 4096  # no copy of the parameters


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["transposed", "channels last", "complex", "0-d", "bfloat16", "float16", "sparse"])
@both
def test_parameters_of_every_form(name: str, form: str) -> None:
    torch.manual_seed(0)
    shapes = {"channels last": (64, 32, 5, 5), "0-d": ()}
    values = torch.randn(shapes.get(form, (300, 200)))
    if form == "transposed":
        values = values.T
    elif form == "channels last":
        values = values.to(memory_format=torch.channels_last)
    elif form == "complex":
        values = torch.randn(300, 200, dtype=torch.complex64)
    elif form in ("bfloat16", "float16"):
        values = values.to(getattr(torch, form))
    parameter = nn.Parameter(values / 100)
    parameter.grad = torch.ones_like(values) * 0.1
    if form == "channels last":
        parameter.grad = parameter.grad.contiguous()
    if form == "sparse":
        if name != "momentum":
            pytest.skip("torch's AdamW takes no sparse gradients")
        parameter.grad = parameter.grad.to_sparse()
    found = measured(OPTIMIZERS[name]([parameter], lr=1.0)).found
    assert found.unit is not None
    numbers = parameter.numel()
    length = math.sqrt(numbers)  # a gradient of 0.1 over 1 - 0.9 for momentum, its sign for AdamW
    size = float(parameter.detach().abs().double().norm())
    assert found.unit == pytest.approx(size / length, rel=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
@both
def test_a_gradient_that_says_nothing_is_waited_out(name: str, bad: float) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters(), lr=0.1)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, bad)
    found = Calibrator(optimizer)
    assert found.scale(ms.Calibrated(100), [1.0], math.nan) == 0.0
    assert found.found.unit is None
    if bad == 0:
        optimizer.step()
        assert lr.get_last_lr() == [0.0]
    assert min(train(optimizer, net, lr, 20)[1]) > 0


def test_an_optimizer_that_is_not_torchs_is_tried_on_whole_tensors() -> None:
    class Sign(Optimizer):
        def __init__(self, params: Any, lr: float = 0.1) -> None:
            super().__init__(params, {"lr": lr})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data -= group["lr"] * parameter.grad.sign()

    optimizer = with_gradients(Sign)
    theta, gradient = gradients(optimizer)
    expected = float(theta.norm() / gradient.sign().norm())
    assert measured(optimizer).found.unit == pytest.approx(expected, rel=1e-10)


def test_what_cannot_be_measured_is_refused_in_words() -> None:
    class Odd(SGD):
        def __init__(self, params: Any, lr: float, needed: int) -> None:
            super().__init__(params, lr=lr)

    optimizer = with_gradients(lambda p, lr: Odd(p, lr, 3))
    with pytest.raises(CannotCalibrate, match=r"the rate of Odd cannot be measured: .*needed.*metastep.Cosine"):
        measured(optimizer)


@pytest.mark.parametrize("fused", [False, True])
@both
def test_a_scaled_gradient_is_measured_unscaled(name: str, fused: bool) -> None:
    make = SGD if name == "momentum" else AdamW
    rates = []
    for scaled in (False, True):
        net = network()
        optimizer = make(net.parameters(), lr=1.0, fused=fused)
        lr = ms.LearnedLR(optimizer, total_steps=STEPS)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        x, y = data()
        for _ in range(5):
            optimizer.zero_grad()
            loss = cross_entropy(net(x), y)
            scaler.scale(loss).backward()
            lr.observe(loss)
            scaler.step(optimizer)
            scaler.update()
        rates.append(lr.get_last_lr()[0])
    assert rates[1] == pytest.approx(rates[0], rel=1e-3)


@pytest.mark.parametrize("deep", ["zero output", "frozen by requires_grad", "frozen by a rate of 0"])
def test_what_does_not_move_has_no_say(deep: str) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(*[m for i in range(4) for m in (nn.Linear(64 if i else 12, 64), nn.ReLU())])
    head = nn.Linear(64, 5)
    alone = AdamW(head.parameters(), lr=1.0)
    x, y = data()
    groups: list[dict[str, Any]] = [{"params": list(head.parameters())}]
    if deep == "zero output":
        nn.init.zeros_(head.weight)
        groups[0]["params"] += list(body.parameters())
    elif deep == "frozen by a rate of 0":
        groups.append({"params": list(body.parameters()), "lr": 0.0})
    else:
        body.requires_grad_(False)
    cross_entropy(head(body(x)), y).backward()
    optimizer = AdamW(groups, lr=1.0)
    ratios = [1.0, 0.0] if len(groups) == 2 else [1.0]
    found = Calibrator(optimizer)
    found.scale(ms.Calibrated(100), ratios, math.nan)
    assert found.found.unit == pytest.approx(measured(alone).found.unit, rel=0.15)


@pytest.mark.parametrize("shape", [(), (32,), (4, 32)])
@both
def test_numbers_that_start_at_zero_or_close_to_it_move(name: str, shape: tuple[int, ...]) -> None:
    for size in (0.0, 1e-6):
        parameter = nn.Parameter(torch.full(shape, size))
        optimizer = OPTIMIZERS[name]([parameter], lr=1.0)
        lr = ms.LearnedLR(optimizer, total_steps=100)
        for _ in range(100):
            optimizer.zero_grad()
            loss = (parameter - 0.5).square().mean()
            loss.backward()
            lr.observe(loss)
            optimizer.step()
        if size == 0.0 or len(shape) == 2:
            assert loss.item() < 0.15


@pytest.mark.parametrize("name", ["rmsprop", "adagrad", "radam", "asgd"])
def test_first_steps_are_no_longer_than_planned(name: str) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters(), lr=1.0)
    schedule = ms.Calibrated(20)
    lr = ms.LearnedLR(optimizer, schedule)
    size = float(nn.utils.get_total_norm(list(net.parameters())))
    for step in range(5):
        before = [p.detach().clone() for p in net.parameters()]
        train(optimizer, net, lr, 1, start=step)
        moved = [p.detach() - old for p, old in zip(net.parameters(), before, strict=True)]
        assert float(nn.utils.get_total_norm(moved)) <= 1.5 * schedule.factor_at(step) * size


def test_a_subclass_keeps_its_options_and_no_hook_hears_of_the_copies() -> None:
    class Mine(SGD):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)

    heard = []
    handle = register_optimizer_step_post_hook(lambda *_: heard.append(1))
    try:
        found = [
            measured(with_gradients(lambda p, lr, kind=kind: kind(p, lr=lr, momentum=0.9))).found.unit
            for kind in (SGD, Mine)
        ]
    finally:
        handle.remove()
    assert found[1] == pytest.approx(found[0], rel=0.06)
    assert heard == []


def test_an_optimizer_that_does_not_move_in_proportion_to_its_rate_is_refused() -> None:
    optimizer = with_gradients(torch.optim.Rprop, torch.float32)
    with pytest.raises(ms.NotLinearInRate, match="Rprop keeps state that depends on its learning rate"):
        measured(optimizer)


# ---- nothing to tune


@every_optimizer
def test_the_rate_that_the_optimizer_was_made_with_does_not_matter(name: str) -> None:
    losses, rates = run(name)
    assert losses[-1] < 0.8 * losses[0]
    for lr0 in (0.0, 1e-9, 1e-4, 1e3):
        assert run(name, lr0) == (losses, rates)


@given(power=st.integers(-18, 18), offset=st.sampled_from([0.0, -1e4, 1e4]), sign=st.booleans())
@settings(max_examples=15, deadline=None)
def test_a_loss_of_any_scale_sign_and_offset_trains_alike(power: int, offset: float, sign: bool) -> None:
    def loss_of(loss: Tensor) -> Tensor:
        return loss * 2.0**power + offset * (1 if sign else -1)

    expected = run("momentum")[0]
    found = run("momentum", loss_of=loss_of)[0]
    last = (found[-1] - offset * (1 if sign else -1)) / 2.0**power
    assert last == pytest.approx(expected[-1], rel=0.1, abs=0.1 + abs(offset) * 2.0 ** (-power - 20))


@every_optimizer
def test_maximising_is_minimising_the_negative(name: str) -> None:
    plain, other = network(), network()
    first, second = OPTIMIZERS[name](plain.parameters(), lr=0.1), OPTIMIZERS[name](other.parameters(), lr=0.1)
    for group in second.param_groups:
        group["maximize"] = True
    lrs = [ms.LearnedLR(o, "calibrated", total_steps=STEPS) for o in (first, second)]
    expected = train(first, plain, lrs[0], STEPS)
    found = train(second, other, lrs[1], STEPS, loss_of=lambda loss: -loss)
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert [-loss for loss in found[0]] == pytest.approx(expected[0], rel=1e-3)


@pytest.mark.parametrize("make", [AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adam])
def test_a_flat_loss_does_not_raise_the_rate_until_decay_eats_the_weights(make: Callable[..., Optimizer]) -> None:
    net = network()
    decoupled = {} if make is AdamW else {"decoupled_weight_decay": True}
    optimizer = make(net.parameters(), lr=0.1, weight_decay=0.1, **decoupled)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    _, rates = train(optimizer, net, lr, STEPS, loss_of=lambda loss: loss * 1e-10)
    assert max(rates) * 0.1 < 1


# ---- what changes on the way


@both
def test_parameters_that_are_frozen_and_thawed_in_every_step_change_no_rate(name: str) -> None:
    highest = max(run(name)[1])
    net = network()
    layers = list(net.parameters())

    def in_turn(step: int) -> None:
        for place, parameter in enumerate(layers):
            parameter.requires_grad_(place != step % 4)

    assert max(run(name, net=net, before_step=in_turn)[1]) <= 1.5 * highest


@both
def test_groups_that_are_added_in_the_first_steps_change_no_rate(name: str) -> None:
    highest = max(run(name)[1])
    net = network()
    parameters = list(net.parameters())
    optimizer = OPTIMIZERS[name](parameters[:1], lr=0.01)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)

    def add(step: int) -> None:
        if 0 < step < 4:
            optimizer.add_param_group({"params": [parameters[step]]})

    _, rates = train(optimizer, net, lr, STEPS, before_step=add)
    assert max(rates) <= 1.5 * highest
    assert len(set(lr.get_last_lr())) == 1


@pytest.mark.parametrize("ratio", [1.0, 0.1])
@both
def test_a_group_that_joins_keeps_its_ratio_to_the_present_rates(name: str, ratio: float) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net[2].parameters(), lr=123.0)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    _, before = train(optimizer, net, lr, 20)
    optimizer.add_param_group({"params": list(net[0].parameters()), "lr": before[-1] * ratio})
    train(optimizer, net, lr, 1, start=20)
    first, joined = lr.get_last_lr()
    assert joined == pytest.approx(first * ratio)
    assert first <= before[-1] * 1.1


@both
def test_ratios_of_groups_are_kept(name: str) -> None:
    net = network()
    groups = [{"params": list(net[0].parameters()), "lr": 0.5}, {"params": list(net[2].parameters()), "lr": 5.0}]
    optimizer = OPTIMIZERS[name](groups, lr=1.0)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    train(optimizer, net, lr, 5)
    first, second = lr.get_last_lr()
    assert second == pytest.approx(10 * first)


@pytest.mark.parametrize("warmup", [1, 7, 30])
@both
def test_a_warm_up_keeps_the_rate_below_its_share(name: str, warmup: int) -> None:
    plain = run(name)[1]
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters(), lr=0.01)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS, warmup_steps=warmup)
    _, rates = train(optimizer, net, lr, warmup)
    slack = 1.0 if name == "adamw" else 1.5  # SGD's unit rate follows the gradient, which warm-up changes
    assert all(rate <= plain[step] * (step + 1) / warmup * slack * (1 + 1e-9) for step, rate in enumerate(rates))


@both
def test_batches_that_are_skipped_change_nothing(name: str) -> None:
    expected = run(name)
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters(), lr=0.01)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    first = train(optimizer, net, lr, 30)
    lr.observe(math.nan)  # and no step
    lr.observe(3.0)
    second = train(optimizer, net, lr, 30, start=30)
    assert (first[0] + second[0], first[1] + second[1]) == expected


@both
def test_a_step_that_a_scaler_skips_changes_nothing(name: str) -> None:
    expected = run(name)[1]
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters(), lr=0.01)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
    x, y = data()
    rates = []
    for attempt in range(40):
        step = attempt - (attempt > 10)
        rows = (torch.arange(32) * 5 + step) % 256
        loss = cross_entropy(net(x[rows]), y[rows]) * (math.inf if attempt == 10 else 1)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        lr.observe(loss)
        scaler.step(optimizer)
        scaler.update()
        if attempt != 10:
            rates.append(lr.get_last_lr()[0])
        assert lr.steps == len(rates)
    assert rates == pytest.approx(expected[:39], rel=1e-3)


@pytest.mark.parametrize("what", ["all", "head over a frozen body"])
@both
def test_zeros_at_the_start_train_like_their_twin(name: str, what: str) -> None:
    def trained(*, zero: bool) -> float:
        net = network()
        if what == "all":
            net = nn.Sequential(nn.Linear(12, 5))
        else:
            net[0].requires_grad_(False)
        if zero:
            for parameter in net[-1].parameters():
                nn.init.zeros_(parameter)
        optimizer = OPTIMIZERS[name]([p for p in net.parameters() if p.requires_grad], lr=0.01)
        return train(optimizer, net, ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS), STEPS)[0][-1]

    assert trained(zero=True) <= 1.1 * trained(zero=False)


@both
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
def test_a_copy_of_a_run_goes_on_bit_for_bit(copied: Callable[[Any], Any], name: str) -> None:
    expected = run(name)
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters(), lr=0.01)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    train(optimizer, net, lr, 20)
    net, lr = copied((net, lr))
    losses, rates = train(lr.optimizer, net, lr, STEPS - 20, start=20)
    assert (losses, rates) == (expected[0][20:], expected[1][20:])


def test_a_gradient_length_that_is_given_is_not_read() -> None:
    expected = run("momentum")
    net = network()
    optimizer = OPTIMIZERS["momentum"](net.parameters(), lr=0.01)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    x, y = data()
    rates = []
    for step in range(STEPS):
        rows = (torch.arange(32) * 5 + step) % 256
        loss = cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        matrices = [p for p in net.parameters() if p.ndim == 2]
        lr.observe(loss, grad_norm=nn.utils.get_total_norm([p.grad for p in matrices]))
        assert lr._calibrator is not None
        lr._calibrator._gradient_length = lambda: pytest.fail("it was read")  # type: ignore[method-assign,assignment]
        optimizer.step()
        rates += lr.get_last_lr()
    assert rates == pytest.approx(expected[1], rel=1e-5)


def convolutions(dtype: torch.dtype) -> list[nn.Parameter]:
    """Small tensors that are taken whole, large ones of which runs are, a vector, one without a gradient."""
    torch.manual_seed(0)
    shapes = [(8, 3, 3, 3), (200, 300), (200,), (64, 32, 3, 3), (5, 7), (400, 100)]
    parameters = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    for parameter in parameters[:-1]:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def lengths(dtype: torch.dtype) -> list[float]:
    """Of the gradient, as tensors change: one grows, one joins, one lies otherwise, one leaves, one breaks."""
    parameters = convolutions(dtype)
    calibrator = Calibrator(SGD(parameters, lr=0.1))
    calibrator.found.numbers = sum(parameter.numel() for parameter in parameters)
    found = [calibrator._gradient_length()]
    for place, change in (
        (1, lambda gradient: 3 * gradient),
        (-1, lambda _: torch.ones_like(parameters[-1])),
        (3, lambda gradient: gradient.contiguous(memory_format=torch.channels_last)),
        (1, lambda _: None),
        (0, lambda gradient: gradient * torch.nan),
    ):
        parameters[place].grad = change(parameters[place].grad)
        found.append(calibrator._gradient_length())
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_the_compiled_length_of_the_gradient_is_that_of_torch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = lengths(dtype)
    monkeypatch.setattr(compiled_query, "library", lambda *source: None)
    assert compiled == pytest.approx(lengths(dtype), rel=1e-12, nan_ok=True)
    assert compiled[0] < compiled[1] < compiled[2]
    assert compiled[2] == pytest.approx(compiled[3])
    assert compiled[3] > compiled[4]
    assert math.isnan(compiled[5])


def test_zeros_that_have_no_memory_are_a_gradient_of_length_0() -> None:
    weight = nn.Parameter(torch.ones(40, 50))
    calibrator = Calibrator(SGD([weight], lr=0.1))
    calibrator.found.numbers = weight.numel()
    weight.grad = torch._efficientzerotensor(weight.shape)
    assert calibrator._gradient_length() == 0


@pytest.mark.parametrize("how", ["given", "seen before"])
def test_a_loss_that_is_known_bounds_the_first_steps(how: str) -> None:
    """Without one in the step itself: the one that was given, or seen in a step whose gradient was zero."""

    def first_rate(loss: float | None, *, known: bool) -> float:
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(30))
        optimizer = SGD([weight], lr=0.1)
        given = {"initial_loss": loss} if known and how == "given" else {}
        lr = ms.LearnedLR(optimizer, "calibrated", total_steps=10, **given)
        weight.grad = torch.zeros(30)
        if known and how != "given":
            lr.observe(loss)
        optimizer.step()
        weight.grad = torch.ones(30)
        if not known and loss is not None:
            lr.observe(loss)
        optimizer.step()
        return lr.get_last_lr()[0]

    assert first_rate(1e-3, known=True) == first_rate(1e-3, known=False) < first_rate(None, known=False)


# ---- the horizon


@both
def test_a_run_that_is_resumed_is_the_unbroken_one_and_keeps_the_saved_horizon(name: str) -> None:
    expected = run(name)
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters(), lr=0.01)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    first = train(optimizer, net, lr, 25)
    saved = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict(), lr.state_dict()], saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    net = network(1)
    optimizer = OPTIMIZERS[name](net.parameters(), lr=7.0)
    lr = ms.LearnedLR(optimizer, "calibrated")
    for part, one in zip((net, optimizer, lr), state, strict=True):
        part.load_state_dict(one)
    second = train(optimizer, net, lr, STEPS - 25, start=25)
    assert (first[0] + second[0], first[1] + second[1]) == expected


@both
def test_a_finished_run_that_is_extended_takes_the_rate_of_its_new_horizon_at_once(name: str) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters(), lr=0.01)
    lr = ms.LearnedLR(optimizer, "calibrated", total_steps=STEPS)
    train(optimizer, net, lr, STEPS)
    before = lr.get_last_lr()[0]
    lr.extend(2 * STEPS)
    _, rates = train(optimizer, net, lr, 1, start=STEPS)
    assert rates[0] > 5 * before
    schedule = ms.Calibrated(2 * STEPS)
    if name == "adamw":
        assert rates[0] == pytest.approx(lr.scale * schedule.factor_at(STEPS))


@both
def test_without_a_horizon_the_rate_falls_slowly_and_cools_on_demand(name: str) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters(), lr=0.01)
    lr = ms.LearnedLR(optimizer)
    losses, rates = train(optimizer, net, lr, 200)
    assert losses[-1] < 0.6 * losses[0]
    assert rates[199] > 0.3 * max(rates)
    lr.cool(40)
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict(), lr.state_dict()))
    _, cooled = train(optimizer, net, lr, 40, start=200)
    assert cooled[-1] < 0.1 * rates[199]
    for part, one in zip((net, optimizer, lr), state, strict=True):
        part.load_state_dict(one)
    assert train(optimizer, net, lr, 40, start=200)[1] == cooled
    lr.extend(480)
    assert train(optimizer, net, lr, 1, start=240)[1][0] > 5 * cooled[-1]


def test_any_schedule_cools() -> None:
    optimizer = SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    lr = ms.LearnedLR(optimizer, "constant")
    lr.cool(4)
    rates = []
    for _ in range(5):
        optimizer.step()
        rates += lr.get_last_lr()
    assert rates == [1.0, 0.75, 0.5, 0.25, 0.25]
    with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
        lr.cool(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 0.0}, "level must be in"),
        ({"power": 1.5}, "power must be in"),
        ({"warmup": 1.0}, "warmup must be in"),
        ({"promise": -1.0}, "promise must be in"),
        ({"pretrained": "yes"}, "pretrained must be True, False or None"),
        ({"total_steps": 0}, "total_steps must be a whole number >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ms.Calibrated(**arguments)


def test_a_resumed_run_reads_the_same_sample_of_large_tensors() -> None:
    def made() -> tuple[nn.Module, Optimizer, ms.LearnedLR]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 900), nn.ReLU(), nn.Linear(900, 5))
        optimizer = SGD(net.parameters(), lr=1.0, momentum=0.9)
        return net, optimizer, ms.LearnedLR(optimizer, total_steps=40)

    net, optimizer, lr = made()
    train(optimizer, net, lr, 20)
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict(), lr.state_dict()))
    expected = train(optimizer, net, lr, 20, start=20)
    net, optimizer, lr = made()
    for part, one in zip((net, optimizer, lr), state, strict=True):
        part.load_state_dict(one)
    assert train(optimizer, net, lr, 20, start=20) == expected


def test_cooling_again_goes_on_from_the_present_rate() -> None:
    optimizer = SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    lr = ms.LearnedLR(optimizer, "constant")
    lr.cool(10)
    rates = []
    for step in range(10):
        if step == 5:
            lr.cool(5)
        optimizer.step()
        rates += lr.get_last_lr()
    assert rates == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


# ---- networks that were trained before


def wide(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 5))


@both
def test_a_trained_network_gets_less_by_itself(name: str) -> None:
    net = wide()
    assert not looks_trained(list(net.parameters()))
    fresh = OPTIMIZERS[name](net.parameters(), lr=0.01)
    train(fresh, net, ms.LearnedLR(fresh, total_steps=STEPS), STEPS)
    assert looks_trained(list(net.parameters()))
    peaks = {}
    for pretrained in (None, True, False):
        again = copy.deepcopy(net)
        optimizer = OPTIMIZERS[name](again.parameters(), lr=0.01)
        schedule = ms.Calibrated(STEPS, pretrained=pretrained, promise=1e9)
        peaks[pretrained] = train(optimizer, again, ms.LearnedLR(optimizer, schedule), 1)[1][0]
    assert peaks[None] == peaks[True] == pytest.approx(peaks[False] / 3 * STEPS / 200)


@pytest.mark.parametrize("steps", [5, 10, 30])
@both
def test_a_short_run_does_a_trained_network_no_harm(name: str, steps: int) -> None:
    net = wide()
    first = OPTIMIZERS[name](net.parameters(), lr=0.01)
    train(first, net, ms.LearnedLR(first, total_steps=300), 300)
    x, y = data()
    with torch.no_grad():
        before = cross_entropy(net(x), y)
    optimizer = OPTIMIZERS[name](net.parameters(), lr=0.01)
    train(optimizer, net, ms.LearnedLR(optimizer, total_steps=steps), steps)
    with torch.no_grad():
        assert cross_entropy(net(x), y) <= before + 0.02


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 50)),
        lambda: nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 64, 3), nn.GroupNorm(4, 64)),
        lambda: nn.LSTM(20, 32, num_layers=2),
        lambda: nn.GRU(20, 32),
        lambda: nn.TransformerEncoderLayer(32, 4),
        lambda: nn.Sequential(nn.Embedding(50, 32), nn.LayerNorm(32), nn.Linear(32, 50)),
        lambda: nn.Bilinear(20, 20, 40),
    ],
)
def test_fresh_layers_of_torch_do_not_look_trained(make: Callable[[], nn.Module]) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        assert not looks_trained(list(make().parameters()))


@both
def test_no_step_promises_more_than_its_share_of_the_loss(name: str) -> None:
    small = run(name, loss_of=lambda loss: loss - 1.55)  # what is left of the loss is small, its gradient is not
    free = run(name)
    assert small[1][0] < free[1][0]
    assert small[1][0] >= 0.1 * free[1][0] * (1 - 1e-9)
