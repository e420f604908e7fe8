"""AcceleratedLR in a loop under Accelerate: whose loss, whose rate, when, after a restart, and in two processes."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.integrations.digits import Noting, digits, learned, network, note_rates
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import metastep as ms
from metastep.integrations import AsScheduler
from metastep.optim import HyperAdamW, HyperSGD

pytest.importorskip("accelerate", reason="Accelerate is not installed: the extra [accelerate]")
from accelerate import Accelerator, debug_launcher
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState, GradientState

from metastep.integrations.accelerate import AcceleratedLR

sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Run:
    """A loop as Accelerate's users write it; notes the losses, and the rates that were used."""

    def __init__(self, schedule=None, make=sgd, batch_size=32, learn=False, **options) -> None:
        self.accelerator = Accelerator(cpu=True, **options)
        model = network()
        optimizer = make(model.parameters())
        loader = DataLoader(TensorDataset(*digits(192)), batch_size=batch_size)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.losses: list[float] = []
        self.used = note_rates(optimizer)
        self.lr = self.learner = None
        if schedule is not None:
            options = {} if schedule.relative else {"num_classes": 10}
            self.lr = AcceleratedLR(self.accelerator, self.optimizer, schedule, **options)
        if learn:
            x, y = digits(32, start=192)
            self.learner = ms.MetaLearner(self.lr, lambda: cross_entropy(self.model(x), y), every=2, meta_lr=0.1)
            self.accelerator.register_for_checkpointing(self.learner)

    def step(self, batch) -> None:
        with self.accelerator.accumulate(self.model):
            loss = cross_entropy(self.model(batch[0]), batch[1])
            self.losses.append(loss.item())
            if self.lr is not None:
                self.lr.observe(loss)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
            if self.learner is not None and self.accelerator.sync_gradients:
                self.learner.step(scaler=self.accelerator.scaler)
            else:
                self.optimizer.step()
            self.optimizer.zero_grad()

    def epoch(self, start: int = 0) -> "Run":
        for batch in self.accelerator.skip_first_batches(self.loader, start):
            self.step(batch)
        return self

    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])


@pytest.fixture(autouse=True)
def anew():
    """Accelerate's state is one for the process: forget it after each test."""
    yield
    anew_state()


def anew_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


# ---- the loss and the steps


def test_the_schedule_reads_each_steps_own_loss() -> None:
    schedule = Noting()
    run = Run(schedule).epoch()
    assert schedule.losses == run.losses
    assert run.used == [1 / (1 + loss) * 0.1 for loss in run.losses]
    assert run.lr.get_last_lr() == run.used[-1:]


def test_accumulation_gives_the_same_rates_as_the_large_batch() -> None:
    whole = Run(Noting()).epoch()
    anew_state()
    schedule = Noting()
    parts = Run(schedule, batch_size=8, gradient_accumulation_steps=4).epoch()
    assert len(parts.used) == len(whole.used) == 6
    assert parts.used == pytest.approx(whole.used, rel=1e-6)
    assert schedule.losses[0] == pytest.approx(sum(parts.losses[:4]) / 4, rel=1e-6)


def test_under_bfloat16_the_loss_is_the_models(tmp_path: Path) -> None:
    schedule = Noting()
    run = Run(schedule, mixed_precision="bf16", gradient_accumulation_steps=2).epoch()
    assert schedule.losses == pytest.approx([(a + b) / 2 for a, b in zip(*[iter(run.losses)] * 2, strict=True)])


# ---- wrappers


def test_prepare_hands_the_rate_back_as_it_is_and_its_step_does_nothing() -> None:
    run = Run(ms.Cosine().with_total_steps(6))
    assert run.accelerator.prepare(run.lr) is run.lr
    run.step(next(iter(run.loader)))
    for _ in range(8):
        run.lr.step()
    assert run.lr.steps == 1
    assert run.lr.get_last_lr() == [0.1]


def test_a_wrapper_that_steps_once_per_process_does_no_harm() -> None:
    plain = Run(learned()).epoch()
    anew_state()
    run = Run(learned(), gradient_accumulation_steps=2, batch_size=16)
    wrapped = AcceleratedScheduler(AsScheduler(run.lr), [run.optimizer])
    for batch in run.loader:
        run.step(batch)
        for _ in range(8):  # as it does on eight processes
            wrapped.step()
    assert run.used == pytest.approx(plain.used, rel=1e-5)
    assert wrapped.get_last_lr() == run.used[-1:]


# ---- checkpoints


@pytest.mark.parametrize("kind", ["learned", "cosine", "meta"])
def test_a_run_resumed_from_accelerates_checkpoint_is_bit_exact(tmp_path: Path, kind: str) -> None:
    make = partial(ms.Cosine().with_total_steps, 9) if kind == "cosine" else learned
    undisturbed = Run(make(), learn=kind == "meta")
    for step, batch in enumerate(undisturbed.loader):
        if step == 3:
            undisturbed.accelerator.save_state(str(tmp_path))
        undisturbed.step(batch)
    anew_state()
    after = Run(make(), learn=kind == "meta")
    after.accelerator.load_state(str(tmp_path))
    after.epoch(start=3)
    assert after.used == undisturbed.used[3:]
    assert len(set(undisturbed.used)) == 6
    assert torch.equal(after.weights(), undisturbed.weights())


@pytest.mark.parametrize("make", [partial(HyperSGD, lr=0.1), partial(HyperAdamW, lr=1e-3)])
def test_hypergradient_optimizers_run_and_resume_bit_exactly(tmp_path: Path, make) -> None:
    undisturbed = Run(make=make)
    for step, batch in enumerate(undisturbed.loader):
        if step == 3:
            undisturbed.accelerator.save_state(str(tmp_path))
        undisturbed.step(batch)
    anew_state()
    after = Run(make=make)
    after.accelerator.load_state(str(tmp_path))
    after.epoch(start=3)
    rates, expected = (run.optimizer.optimizer.rates()[0]["layer"]["0"] for run in (after, undisturbed))
    assert rates == expected != make.keywords["lr"]
    assert torch.equal(after.weights(), undisturbed.weights())


# ---- two processes


def two_losses_a_step() -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    optimizer = accelerator.prepare(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    schedule = Noting()
    lr = AcceleratedLR(accelerator, optimizer, schedule)
    for losses in ([1.0, 3.0], [2.0, math.nan]):
        for loss in losses:
            lr.observe(torch.tensor(loss) + 4 * accelerator.process_index)
        optimizer.step()
    assert schedule.losses == [4.0, 4.0]
    assert lr.get_last_lr() == [1 / 5 * 0.1]
    assert lr.non_finite_losses == 2  # of all processes


def test_two_processes_with_different_losses_use_the_same_rate() -> None:
    debug_launcher(two_losses_a_step, num_processes=2)  # raises what a process raises


# ---- what is refused


def test_another_scheduler_is_refused() -> None:
    run = Run()
    torch.optim.lr_scheduler.StepLR(run.optimizer.optimizer, 1)
    with pytest.raises(ValueError, match=r"optimizer must have no other scheduler"):
        AcceleratedLR(run.accelerator, run.optimizer, ms.Cosine())


def test_a_second_rate_is_refused() -> None:
    run = Run(ms.Cosine())
    with pytest.raises(ValueError, match=r"optimizer has a LearnedLR already"):
        AcceleratedLR(run.accelerator, run.optimizer, ms.Cosine())


@pytest.mark.parametrize("make", [sgd, partial(torch.optim.AdamW, lr=1e-3)])
def test_the_state_of_the_optimizer_alone_warns_that_its_decayed_rate_is_now_the_base(make) -> None:
    before = Run(ms.Cosine(12), make).epoch()
    anew_state()
    after = Run(make=make)
    after.optimizer.load_state_dict(before.optimizer.state_dict())
    after.lr = AcceleratedLR(after.accelerator, after.optimizer, ms.Cosine(12))
    with pytest.warns(UserWarning, match="is taken for the initial"):
        after.epoch(start=5)
