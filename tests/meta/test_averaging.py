"""The schedule's gradient over several tasks is the mean of what each task alone would have given."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

import metastep as ms
from metastep.meta.averaging import HandsOver, SharedSchedule, learned_weights, mean_lesson


def task(seed: int, schedule: ms.Schedule, meta_optimizer_of) -> ms.MetaLearner:
    """A small float64 regression of its own, one step before its first meta-update."""
    draw = torch.Generator().manual_seed(seed)
    x, y, xv, yv = (torch.randn(8, size, generator=draw, dtype=torch.float64) for size in (3, 1, 3, 1))
    model = nn.Linear(3, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 3, generator=draw, dtype=torch.float64))
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    lr = ms.LearnedLR(optimizer, schedule, num_classes=2, initial_loss=1.0 + seed)
    learner = ms.MetaLearner(lr, lambda: (model(xv) - yv).square().mean(), meta_optimizer=meta_optimizer_of(schedule))

    def backward() -> None:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        lr.observe(loss)

    for _ in range(3):
        backward()
        learner.step(meta=False)
    backward()
    return learner


@pytest.fixture
def schedule() -> ms.MLRSNet:
    torch.manual_seed(0)
    return ms.MLRSNet(hidden_size=4).double()


def test_the_shared_step_is_the_mean_of_the_steps_of_each_task_alone(schedule: ms.MLRSNet) -> None:
    start = copy.deepcopy(schedule.state_dict())
    alone = []
    for seed in range(3):
        own = copy.deepcopy(schedule)
        task(seed, own, lambda s: torch.optim.SGD(s.parameters(), lr=1.0)).step(meta=True)
        alone.append({name: start[name] - value for name, value in own.state_dict().items()})  # its gradient
    assert any((a["output.weight"] - b["output.weight"]).abs().max() > 1e-6 for a, b in pairwise(alone))

    lessons = []
    for seed in range(3):
        own = copy.deepcopy(schedule)

        def keep(lesson, own=own):
            lessons.append(lesson)
            return [weight.detach().clone() for weight in learned_weights(own)]

        task(seed, own, lambda s, keep=keep: HandsOver(learned_weights(s), keep)).step(meta=True)
    shared = SharedSchedule(schedule, torch.optim.SGD(schedule.parameters(), lr=1.0))
    assert shared.learn(lessons)
    for name, value in schedule.state_dict().items():
        mean = sum(gradients[name] for gradients in alone) / 3
        torch.testing.assert_close(start[name] - value, mean, rtol=1e-10, atol=1e-12)


def test_the_real_step_is_taken_at_the_rate_of_the_weights_that_come_back(schedule: ms.MLRSNet) -> None:
    come_back = [weight.detach().clone() for weight in learned_weights(schedule)]
    come_back[-1] += 0.7  # the bias of the output
    learner = task(0, schedule, lambda s: HandsOver(learned_weights(s), lambda lesson: come_back))
    twin = task(0, copy.deepcopy(schedule), lambda s: torch.optim.SGD(s.parameters(), lr=0.0))
    (before,) = learner.lr.optimizer.param_groups[0]["params"][:1]
    start = before.detach().clone()
    learner.step(meta=True)
    twin.step(meta=True)
    (other,) = twin.lr.optimizer.param_groups[0]["params"][:1]
    rate, unchanged = learner.lr.get_last_lr()[0], twin.lr.get_last_lr()[0]
    assert rate > 1.1 * unchanged
    torch.testing.assert_close((before - start) / rate, (other - start) / unchanged)
    assert torch.equal(learned_weights(schedule)[-1], come_back[-1])


def test_a_task_that_has_nothing_to_give_is_not_counted(schedule: ms.MLRSNet) -> None:
    before = [weight.detach().clone() for weight in schedule.parameters()]
    shared = SharedSchedule(schedule, torch.optim.SGD(schedule.parameters(), lr=1.0))
    assert not shared.learn([None, None])
    ones = [torch.ones_like(weight) for weight in before]
    assert shared.learn([ones, None, [3 * one for one in ones]])
    for old, new in zip(before, schedule.parameters(), strict=True):
        torch.testing.assert_close(old - new, torch.full_like(old, 2.0))


def test_the_mean_of_one_lesson_is_that_lesson_to_the_last_bit() -> None:
    lesson = [torch.randn(5, generator=torch.Generator().manual_seed(1)), torch.tensor([1e-40, 3e38])]
    assert all(torch.equal(a, b) for a, b in zip(mean_lesson([lesson]), lesson, strict=True))
