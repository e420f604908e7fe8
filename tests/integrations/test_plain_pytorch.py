"""The recipes for a loop of one's own: mixed precision, accumulation, clipping, compiled models."""

from functools import partial

import pytest
import torch
from tests.integrations.digits import Noting, digits, learned, network, note_rates
from torch.nn.functional import cross_entropy

import metastep as ms
from metastep.optim import HyperAdamW, HyperSGD

sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Loop:
    """Accumulates, unscales, clips, steps."""

    def __init__(self, schedule=None, make=sgd, micro_batches=1, scale=None, run=lambda model: model) -> None:
        self.model, self.micro_batches = network(), micro_batches
        self.run = run(self.model)
        self.optimizer = make(self.model.parameters())
        self.used, self.losses, self.taken = note_rates(self.optimizer), [], []
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        self.lr = None if schedule is None else ms.LearnedLR(self.optimizer, schedule, initial_loss=2.3, num_classes=10)

    def train(self, steps: int = 6, learner=None) -> "Loop":
        """Train; whether each step was taken, or skipped by the scaler, is in ``taken``."""
        for step in range(steps):
            images, labels = digits(32, start=32 * step)
            for x, y in zip(images.chunk(self.micro_batches), labels.chunk(self.micro_batches), strict=True):
                with torch.autocast("cpu", dtype=torch.float16, enabled=self.scaler.is_enabled()):
                    loss = cross_entropy(self.run(x), y)
                self.losses.append(loss.item())
                if self.lr is not None:
                    self.lr.observe(loss)
                self.scaler.scale(loss / self.micro_batches).backward()
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            if learner is None:
                self.scaler.step(self.optimizer)
            else:
                learner.step(scaler=self.scaler if self.scaler.is_enabled() else None)
            self.taken.append(len(self.used) > sum(self.taken))
            self.scaler.update()
            self.optimizer.zero_grad()
        return self

    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])


@pytest.mark.parametrize("scale", [None, 2.0**10])
def test_four_micro_batches_give_the_rates_of_the_whole_batch(scale: float | None) -> None:
    schedule = Noting()
    whole, parts = Loop(Noting(), scale=scale).train(), Loop(schedule, micro_batches=4, scale=scale).train()
    assert len(parts.used) == len(whole.used) == 6
    assert parts.used == pytest.approx(whole.used, rel=1e-6 if scale is None else 1e-3)
    assert schedule.losses[0] == pytest.approx(sum(parts.losses[:4]) / 4)


def test_a_skipped_step_does_not_advance_the_schedule_and_its_losses_count_in_the_next() -> None:
    schedule = Noting()
    loop = Loop(schedule, scale=2.0**20).train(8)  # overflows until it has been halved often enough
    assert 0 < loop.lr.steps == len(loop.used) < 8
    windows, window = [], []
    for loss, taken in zip(loop.losses, loop.taken, strict=True):
        window.append(loss)
        if taken:
            windows.append(sum(window) / len(window))
            window = []
    assert schedule.losses == pytest.approx(windows)


class Compiled:
    """A model compiled for nothing but to count how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, model: torch.nn.Module):
        def backend(graph, inputs):
            self.times += 1
            return graph.forward

        torch.compiler.reset()
        return torch.compile(model, backend=backend)


def test_a_compiled_model_is_not_compiled_again_when_the_rate_changes() -> None:
    compiled = Compiled()
    loop, eager = Loop(learned(), run=compiled).train(), Loop(learned()).train()
    assert compiled.times == 1
    assert len(set(loop.used)) == 6
    assert loop.used == eager.used
    assert torch.equal(loop.weights(), eager.weights())


def test_a_schedule_is_learned_beside_a_compiled_model() -> None:
    compiled, found = Compiled(), []
    x, y = digits(64, start=1000)
    for run in (compiled, lambda model: model):
        loop = Loop(learned(), run=run)
        learner = ms.MetaLearner(loop.lr, lambda loop=loop: cross_entropy(loop.model(x), y), every=2, meta_lr=0.05)
        found.append(loop.train(learner=learner))
        assert learner.meta_updates == 3
    assert compiled.times == 1
    assert found[0].used == found[1].used
    assert torch.equal(found[0].weights(), found[1].weights())


@pytest.mark.parametrize("make", [partial(HyperSGD, lr=0.1), partial(HyperAdamW, lr=1e-3)])
def test_hypergradient_optimizers_take_the_same_recipe(make) -> None:
    compiled = Compiled()
    loop = Loop(make=make, micro_batches=4, scale=2.0**10, run=compiled).train()
    rates = loop.optimizer.rates()[0]
    assert compiled.times == 1
    assert rates["layer"]["0"].isfinite()
    assert rates["layer"]["0"] != make.keywords["lr"]
    assert loop.losses[-1] < loop.losses[0]
