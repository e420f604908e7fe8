"""AsScheduler, optimizer.step() that learns, and what is said where a library is missing."""

import importlib
import math
import sys

import pytest
import torch
from tests.integrations.digits import digits, learned, network, note_rates
from torch.nn.functional import cross_entropy

import metastep as ms
from metastep.integrations import AsScheduler


class Loop:
    """Fifteen steps on digits; the schedule may be learned, as ``optimizer.step()`` or by ``learner.step()``."""

    def __init__(self, make=torch.optim.SGD, every=2, **options) -> None:
        self.model = network()
        self.optimizer = make(self.model.parameters(), lr=0.01, **options)
        self.used = note_rates(self.optimizer)
        self.lr = ms.LearnedLR(self.optimizer, learned(), num_classes=10)
        self.valid = digits(64, start=1000)
        loss = lambda: cross_entropy(self.model(self.valid[0]), self.valid[1])  # noqa: E731
        self.learner = ms.MetaLearner(self.lr, loss, every=every, meta_lr=0.05)

    def backward(self, number: int, scale=lambda loss: loss) -> torch.Tensor:
        x, y = digits(32, start=32 * number)
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x), y)
        scale(loss).backward()
        self.lr.observe(loss)
        return loss.detach()

    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])


# ---- the random stream


def test_loading_attaching_saving_and_learning_leave_the_random_stream_alone() -> None:
    model, (x, y), valid = network(), digits(32), digits(64, start=1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stream = torch.get_rng_state()
    lr = ms.LearnedLR(optimizer, ms.load_schedule("mlrsnet-cifar10"), num_classes=10, total_steps=4)
    learner = ms.MetaLearner(lr, lambda: cross_entropy(model(valid[0]), valid[1]), every=1)
    scheduler = AsScheduler(learner)
    for _ in range(2):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        lr.observe(loss)
        optimizer.step()
    scheduler.load_state_dict(scheduler.state_dict())
    scheduler.release()
    assert learner.meta_updates == 2
    assert torch.equal(torch.get_rng_state(), stream)


# ---- the shape of a scheduler


def test_its_step_does_nothing_and_its_rate_is_the_used_one() -> None:
    loop = Loop()
    scheduler = AsScheduler(loop.lr)
    for number in range(3):
        loop.backward(number)
        loop.optimizer.step()
        for _ in range(5):
            scheduler.step()
        assert scheduler.get_last_lr() == loop.used[-1:]
    assert loop.lr.steps == 3


def test_only_a_learned_rate_has_that_shape() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(TypeError, match=r"source must be a LearnedLR or a MetaLearner, got MLRSNet"):
        AsScheduler(learned())
    lr = ms.LearnedLR(optimizer, ms.Cosine(), total_steps=3)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ValueError, match=r"optimizer must have no other scheduler"):
        AsScheduler(lr)


def test_its_state_is_read_without_pickled_code(tmp_path) -> None:
    loop, other = Loop(), Loop()
    scheduler = AsScheduler(loop.learner)
    for number in range(4):
        loop.backward(number)
        loop.optimizer.step()
    torch.save(scheduler.state_dict(), tmp_path / "scheduler.pt")
    restored = AsScheduler(other.learner)
    restored.load_state_dict(torch.load(tmp_path / "scheduler.pt", weights_only=True))
    assert other.lr.steps == 4
    assert other.learner.meta_updates == 2
    with pytest.raises(ValueError, match=r"state_dict must have lr and learner, got last_epoch;"):
        restored.load_state_dict({"last_epoch": 3})


def test_a_released_optimizer_keeps_its_rate() -> None:
    loop = Loop()
    scheduler = AsScheduler(loop.learner)
    loop.backward(0)
    loop.optimizer.step()
    scheduler.release()
    loop.backward(1)
    loop.optimizer.step()
    assert loop.used[1] == loop.used[0]
    assert loop.learner._calls == loop.lr.steps == 1


# ---- optimizer.step() that learns


@pytest.mark.parametrize("with_closure", [False, True])
def test_stepping_the_optimizer_is_stepping_the_learner(with_closure: bool) -> None:
    inside, outside = Loop(), Loop()
    AsScheduler(inside.learner)
    for number in range(6):
        if with_closure:
            loss = inside.optimizer.step(lambda number=number: inside.backward(number))
            assert isinstance(loss, torch.Tensor)
        else:
            inside.backward(number)
            inside.optimizer.step()
        outside.backward(number)
        outside.learner.step()
    assert inside.learner.meta_updates == outside.learner.meta_updates == 3
    assert inside.used == outside.used
    assert torch.equal(inside.weights(), outside.weights())


@pytest.mark.filterwarnings("ignore:MLRSNet measures the scale of its rate by a rule for sgd")
@pytest.mark.parametrize("options", [{}, {"make": torch.optim.Adam, "fused": True}])
def test_a_step_that_the_scaler_skips_learns_nothing(options) -> None:
    loop = Loop(every=1, **options)
    scheduler = AsScheduler(loop.learner)
    scaler = scheduler.trainer_step.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for number in range(4):
        loop.backward(number, scaler.scale)
        if number == 1:
            loop.model[0].weight.grad[0] = math.inf
        before = loop.weights()
        scaler.step(loop.optimizer)
        scaler.update()
        assert torch.equal(before, loop.weights()) == (number == 1)
    assert loop.learner.meta_updates == loop.lr.steps == 3


def test_the_validation_pass_is_scaled_and_its_meta_gradient_is_not() -> None:
    seen, meta = [], []
    for scale in (1.0, 2.0**10):
        loop = Loop(every=1)
        scheduler = AsScheduler(loop.learner)
        scaler = scheduler.trainer_step.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        gradients = []
        loop.model[2].bias.register_hook(lambda gradient, to=gradients: to.append(gradient.norm().item()))
        loop.backward(0, scaler.scale)
        scaler.step(loop.optimizer)
        seen.append(gradients[-1])
        meta.append(loop.lr.schedule.output.weight.grad)
    assert seen[1] == pytest.approx(seen[0] * 2**10, rel=1e-5)
    assert torch.allclose(*meta, rtol=1e-5)


def test_a_window_of_several_steps_is_refused() -> None:
    loop = Loop()
    learner = ms.MetaLearner(loop.lr, loop.learner.validation_loss, every=4, horizon=2, first_order=True)
    with pytest.raises(ValueError, match=r"learner must have horizon 1 inside a trainer, got 2"):
        AsScheduler(learner)


# ---- extras


@pytest.mark.parametrize(
    ("name", "library"),
    [("lightning", "lightning.pytorch"), ("transformers", "transformers"), ("accelerate", "accelerate")],
)
def test_a_missing_library_is_named_with_its_extra(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"metastep.integrations.{name}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "metastep\[{name}\]"'):
        importlib.import_module(f"metastep.integrations.{name}")


def test_the_package_alone_imports_no_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.startswith("metastep.integrations")]:
        monkeypatch.delitem(sys.modules, module)
    for library in ("lightning", "lightning.pytorch", "transformers", "accelerate"):
        monkeypatch.setitem(sys.modules, library, None)
    assert importlib.import_module("metastep.integrations").__all__ == ["AsScheduler"]


# ---- closures


@pytest.mark.parametrize("returned", [None, 0.5], ids=["None", "a number"])
def test_a_closure_that_observes_may_return_anything_and_one_that_does_not_is_said(returned: object) -> None:
    loop = Loop()
    AsScheduler(loop.learner)
    for number in range(4):
        loop.optimizer.step(lambda number=number: (loop.backward(number), returned)[1])
    assert (loop.lr.steps, loop.learner.meta_updates) == (4, 2)
    with pytest.raises(RuntimeError, match=r"optimizer\.step\(\) came without an observed loss"):
        loop.optimizer.step(lambda: returned)


def test_with_the_closure_first_a_step_can_be_left_out() -> None:
    loop = Loop()
    scheduler = AsScheduler(loop.lr, closure_first=True)
    assert scheduler.trainer_step is not None
    before = loop.weights()

    def empty() -> None:
        scheduler.trainer_step.empty = True

    loop.optimizer.step(empty)
    assert (loop.lr.steps, loop.used) == (0, [])
    assert torch.equal(loop.weights(), before)
    loop.optimizer.step(lambda: loop.backward(0))
    assert (loop.lr.steps, len(loop.used)) == (1, 1)
    scheduler.release()
    assert "step" not in vars(loop.optimizer)
