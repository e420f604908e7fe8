"""What other people do to optimizers and schedules: a right result, a warning, or an error that says what to do."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import metastep as ms

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def model(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, dtype=dtype)


def step(net: nn.Linear, lr: ms.LearnedLR, loss: float | None = None) -> float:
    lr.optimizer.zero_grad()
    found = nn.functional.cross_entropy(net(torch.ones(5, 4, dtype=net.weight.dtype)).float(), torch.arange(5) % 3)
    found.backward()
    lr.observe(found if loss is None else loss)
    lr.optimizer.step()
    return lr.get_last_lr()[0]


# ---- which optimizer a schedule is for


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "tensor"])
def test_fresh_weights_over_an_optimizer_that_normalises_its_steps_warn_and_name_both(name: str) -> None:
    with pytest.warns(UserWarning, match=r"rule for sgd, the optimizer is (adamw|rmsprop|adam)") as seen:
        lr = ms.LearnedLR(OPTIMIZERS[name](model().parameters()), ms.MLRSNet(), num_classes=3)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lr.observe(1.0)


@every_optimizer
def test_a_relative_scale_multiplies_the_optimizers_own_rate_and_warns_of_nothing(make) -> None:
    net = model()
    schedule = ms.MLRSNet(scale=ms.ScaleRule(mode="relative"))
    lr = ms.LearnedLR(make(net.parameters()), schedule, num_classes=3)
    assert 0 < step(net, lr) < 0.1
    assert lr.scale == pytest.approx(0.1)
    phased = ms.Phased([ms.FixedOutput(0.5, ms.ScaleRule(mode="relative"))] * 2, total_steps=4)
    lr.detach()
    lr = ms.LearnedLR(make(net.parameters()), phased, num_classes=3)
    assert [step(net, lr) for _ in range(4)] == pytest.approx([0.05] * 4)


def test_a_meta_update_writes_down_the_base_and_a_resumed_run_knows_it() -> None:
    net = model()
    lr = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1), ms.MLRSNet(hidden_size=4), num_classes=3)
    learner = ms.MetaLearner(lr, lambda: net(torch.ones(5, 4)).square().mean(), every=1)
    assert lr.schedule.trained_for is None
    lr.observe(net(torch.ones(5, 4)).square().mean())
    net(torch.ones(5, 4)).square().mean().backward()
    learner.step()
    assert lr.schedule.trained_for == "sgd"
    again = ms.LearnedLR(torch.optim.SGD(model().parameters(), lr=0.1), ms.MLRSNet(hidden_size=4), num_classes=3)
    again.load_state_dict(lr.state_dict())
    assert again.schedule.trained_for == "sgd"


def test_a_phased_schedule_is_for_the_bases_of_its_snapshots() -> None:
    one, two = (ms.MLRSNet(hidden_size=3, trained_for=base) for base in ("sgd", "adamw"))
    phased = ms.Phased([one, two], total_steps=4)
    assert phased.trained_for == "sgd, adamw"
    phased.learned_for("rmsprop")
    assert two.trained_for == "adamw, rmsprop"


# ---- the scale


@pytest.mark.parametrize("broken", [1e6, 1e30, -1e6])
@pytest.mark.parametrize("options", [{"num_classes": 10}, {}])
def test_one_broken_first_loss_does_not_set_the_scale(broken: float, options: dict) -> None:
    net = model()
    lr = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1), ms.MLRSNet(), **options)
    with pytest.warns(UserWarning, match="give initial_loss to set it"):
        assert step(net, lr, broken) < 10
    step(net, lr, 2.3)
    expected = ms.ScaleRule().gamma(2.3, options.get("num_classes", 10))
    assert lr.scale == expected
    step(net, lr, 1e6)
    assert lr.scale == expected


def test_a_loss_of_another_kind_is_bounded_and_settles() -> None:
    net = model()
    lr = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1), ms.MLRSNet(), num_classes=10)
    with pytest.warns(UserWarning, match="far beyond that of guessing"):
        step(net, lr, 1e5)
    for number in range(15):
        step(net, lr, 1e5 - number)  # and no further word
    assert lr.scale == pytest.approx(ms.ScaleRule().gamma(10 * math.log(10), 10))


def test_a_resumed_run_still_waits_for_a_better_loss() -> None:
    net = model()
    lr = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1), ms.MLRSNet(), num_classes=10)
    with pytest.warns(UserWarning, match="first loss"):
        step(net, lr, 1e6)
    other = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1), ms.MLRSNet(), num_classes=10)
    lr.detach()
    other.detach()
    other = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1), ms.MLRSNet(), num_classes=10)
    other.load_state_dict(lr.state_dict())
    step(net, other, 2.3)
    assert other.scale == ms.ScaleRule().gamma(2.3, 10)


# ---- rates that somebody else has set

SCHEDULERS = {
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=50, cycle_momentum=False),
    "warmup": lambda o: lr_scheduler.LinearLR(o, start_factor=0.01, total_iters=10),
    "from-zero": lambda o: lr_scheduler.LambdaLR(o, lambda step: step / 10),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@every_optimizer
def test_a_scheduler_made_before_does_not_change_the_base(make, scheduler) -> None:
    net = model()
    optimizer = make(net.parameters())
    scheduler(optimizer)
    with pytest.warns(UserWarning, match=r"which a scheduler has set: 0\.1, from where it started"):
        lr = ms.LearnedLR(optimizer, ms.Constant())
    assert step(net, lr) == pytest.approx(0.1)


@every_optimizer
def test_a_rate_of_zero_is_refused_where_it_is_multiplied(make) -> None:
    optimizer = make(model().parameters())
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0) if isinstance(group["lr"], torch.Tensor) else 0.0
    with pytest.raises(ValueError, match=r"lr of the optimizer must be > 0, got 0.*warm up with warmup_steps"):
        ms.LearnedLR(optimizer, ms.Cosine(10))


@pytest.mark.parametrize("rate", [None, "fast", -0.1, math.nan, math.inf])
def test_an_optimizer_without_a_rate_is_refused(rate: object) -> None:
    optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = rate
    with pytest.raises(ValueError, match=r"lr of the optimizer's group 0 must be a number >= 0"):
        ms.LearnedLR(optimizer, ms.Constant())


def test_an_optimizers_state_alone_warns_that_its_decayed_rate_is_the_base() -> None:
    net = model()
    lr = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), ms.Cosine(10))
    for _ in range(6):
        step(net, lr)
    saved, mine = lr.optimizer.state_dict(), lr.state_dict()

    def resumed(*, whole: bool) -> float:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        optimizer.load_state_dict(saved)
        other = ms.LearnedLR(optimizer, ms.Cosine(10))
        if whole:
            other.load_state_dict(mine)
        return step(net, other)

    assert resumed(whole=True) < lr.get_last_lr()[0]
    with pytest.warns(UserWarning, match=r"taken for the initial one; to go on with a run, load the LearnedLR's state"):
        resumed(whole=False)


# ---- everything else


@every_optimizer
def test_a_closure_that_returns_nothing_is_a_step_without_a_loss(make) -> None:
    net = model()
    optimizer = make(net.parameters())

    def closure() -> None:
        optimizer.zero_grad()
        net(torch.ones(5, 4)).square().mean().backward()

    lr = ms.LearnedLR(optimizer, ms.Calibrated(), total_steps=9)
    optimizer.step(closure)
    assert lr.steps == 1
    assert lr.get_last_lr()[0] > 0  # measured on the gradients of the closure
    lr.detach()
    ms.LearnedLR(optimizer, ms.MLRSNet(scale=ms.ScaleRule(mode="relative")), num_classes=3)
    with pytest.raises(RuntimeError, match="without an observed loss"):
        optimizer.step(closure)


@pytest.mark.parametrize("rows", [2, 6])
def test_parameters_that_are_resized_in_mid_run_are_measured_anew(rows: int) -> None:
    net = model()
    lr = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1), ms.Calibrated(), total_steps=20)
    for _ in range(3):
        step(net, lr)
    net.weight.data, net.bias.data = torch.randn(rows, 4), torch.randn(rows)
    for _ in range(2):
        lr.optimizer.zero_grad()
        loss = net(torch.ones(5, 4)).square().mean()
        loss.backward()
        lr.observe(loss)
        lr.optimizer.step()
        assert 0 < lr.get_last_lr()[0] < 1
    assert net.weight.isfinite().all()


def test_a_schedule_may_become_double_in_mid_run() -> None:
    net = model()
    lr = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1), ms.MLRSNet(), num_classes=3)
    step(net, lr)
    lr.schedule.double()
    net.double()
    assert 0 < step(net, lr) < 1
    rate, _ = lr.query_with_graph(1.0, lr.state)
    rate.backward()


@pytest.mark.parametrize("make", [lambda: ms.MLRSNet(), lambda: ms.load_schedule("mlrsnet-cifar10")])
def test_a_schedule_made_in_inference_mode_can_learn(make) -> None:
    net = model()
    with torch.inference_mode():
        schedule = make()
        lr = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1), schedule, num_classes=3, total_steps=9)
    assert not any(weight.is_inference() for weight in schedule.parameters())
    learner = ms.MetaLearner(lr, lambda: net(torch.ones(5, 4)).square().mean(), every=1)
    for _ in range(2):
        lr.optimizer.zero_grad()
        loss = net(torch.ones(5, 4)).square().mean()
        loss.backward()
        lr.observe(loss)
        learner.step()
    assert learner.meta_updates == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_no_file_and_makes_no_half_weights(dtype: torch.dtype, tmp_path) -> None:
    expected = ms.load_schedule("mlrsnet-cifar10").state_dict()
    torch.set_default_dtype(dtype)
    try:
        schedule, loaded = ms.MLRSNet(), ms.load_schedule("mlrsnet-cifar10")
        net = model(torch.float32)
        lr = ms.LearnedLR(torch.optim.SGD(net.parameters(), lr=0.1), schedule, num_classes=3)
        assert 0 < step(net, lr) < 1
        ms.save_schedule(schedule, tmp_path / "it")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())
    assert schedule.output.weight.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert ms.load_schedule(tmp_path / "it").output.weight.dtype is schedule.output.weight.dtype


@pytest.mark.parametrize("size", [1e18, 1e30, 1e38])
@every_optimizer
def test_gradients_that_overflow_accuse_no_optimizer(make, size: float) -> None:
    net = model()
    lr = ms.LearnedLR(make(net.parameters()), ms.Calibrated(), total_steps=9)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, size)
    lr.observe(1.0)
    lr.optimizer.step()
    assert lr.steps == 1


def test_a_schedule_without_a_scale_says_from_what_to_derive() -> None:
    class Mine(ms.Schedule):
        relative = False

        def init_state(self) -> None:
            return None

        def forward(self, loss, state):
            return 0.5, state

    with pytest.raises(TypeError, match=r"derive it from metastep\.LearnedSchedule"):
        ms.LearnedLR(torch.optim.SGD(model().parameters(), lr=0.1), Mine())
