"""What LearnedLR.observe takes, what it makes of it, and that it holds on to nothing."""

import gc
import math
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.schedules.loops import Regression, net, null, rates

import metastep as ms

fixed = settings(derandomize=True, deadline=None, max_examples=60)


def attached(**options):
    optimizer = null()
    return optimizer, ms.LearnedLR(optimizer, net(), **{"initial_loss": 2.3, "num_classes": 10, **options})


FORMS = {
    "float": lambda x: x,
    "int": lambda x: int(x),
    "numpy": np.float64,
    "0-d": torch.tensor,
    "1-element": lambda x: torch.tensor([[x]]),
    "float64": lambda x: torch.tensor(x, dtype=torch.float64),
    "float16": lambda x: torch.tensor(x, dtype=torch.float16),
    "bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "graph": lambda x: torch.tensor(x, requires_grad=True) * 1,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_loss_means_the_same_in_every_form(form: str) -> None:
    optimizer, lr = attached()
    expected_optimizer, expected = attached()
    assert rates(lr, optimizer, [FORMS[form](2.0), FORMS[form](1.0)]) == rates(expected, expected_optimizer, [2.0, 1.0])


@pytest.mark.parametrize("loss", ["2.0", None, True, 1j, [1.0], torch.tensor(3), torch.tensor(1j)])
def test_what_is_no_real_number_is_refused(loss: object) -> None:
    with pytest.raises(TypeError, match="loss must be"):
        attached()[1].observe(loss)


@pytest.mark.parametrize("shape", [(0,), (2,), (3, 1)])
def test_a_tensor_of_several_elements_is_refused_with_the_remedy(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="observe its mean"):
        attached()[1].observe(torch.ones(shape))


def test_the_graph_of_a_loss_is_let_go_at_once() -> None:
    _, lr = attached()
    leaf = torch.ones(3, requires_grad=True)
    middle = leaf * 2
    freed = weakref.ref(middle)
    loss = middle.sum()
    lr.observe(loss)
    del middle, loss
    gc.collect()
    assert freed() is None


def test_several_observations_before_a_step_count_as_their_mean() -> None:
    optimizer, lr = attached()
    for loss in (1.0, 2.0, 6.0):
        lr.observe(loss)
    optimizer.step()
    other, expected = attached()
    assert lr.get_last_lr() == pytest.approx(rates(expected, other, [3.0]), rel=1e-12)
    assert lr.steps == 1


def test_one_batch_of_32_equals_four_micro_batches_of_8() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(5, 32, 3).double(), torch.randn(5, 32, 1).double()
    ends = []
    for parts in (1, 4):
        torch.manual_seed(1)
        model = torch.nn.Linear(3, 1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        lr = ms.LearnedLR(optimizer, net(), num_classes=10)
        for x, y in zip(inputs, targets, strict=True):
            optimizer.zero_grad()
            for micro_x, micro_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
                loss = (model(micro_x) - micro_y).square().mean()
                (loss / parts).backward()
                lr.observe(loss)
            optimizer.step()
        assert lr.steps == 5
        ends.append((model.weight.detach(), torch.tensor(lr.get_last_lr()[0])))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-14)


def test_losses_that_are_not_finite_are_ignored_and_counted() -> None:
    optimizer, lr = attached()
    for loss in (math.nan, 2.0, math.inf, torch.tensor(-math.inf), 4.0):
        lr.observe(loss)
    optimizer.step()
    other, expected = attached()
    assert lr.get_last_lr() == rates(expected, other, [3.0])
    assert lr.non_finite_losses == 3


def test_a_window_of_nothing_else_repeats_the_loss_before_it() -> None:
    optimizer, lr = attached()
    other, expected = attached()
    assert rates(lr, optimizer, [1.7, math.nan, 0.9]) == rates(expected, other, [1.7, 1.7, 0.9])


def test_before_the_first_finite_loss_the_given_initial_loss_stands_for_it() -> None:
    optimizer, lr = attached()
    other, expected = attached()
    assert rates(lr, optimizer, [math.nan, 0.9]) == rates(expected, other, [2.3, 0.9])


def test_before_any_finite_loss_the_rate_stays_and_nothing_ticks() -> None:
    optimizer = null(0.3)
    lr = ms.LearnedLR(optimizer, net())
    assert rates(lr, optimizer, [math.nan, math.inf]) == [0.3, 0.3]
    assert lr.steps == 0
    rates(lr, optimizer, [1.5])
    assert (lr.steps, lr.initial_loss, lr.num_classes) == (1, 1.5, 4)


def test_initial_loss_and_number_of_classes_come_from_the_first_window() -> None:
    optimizer = null()
    lr = ms.LearnedLR(optimizer, net())
    assert (lr.initial_loss, lr.num_classes, lr.scale) == (None, None, None)
    lr.observe(math.log(10) - 0.1)
    lr.observe(math.log(10) + 0.1)
    optimizer.step()
    assert lr.initial_loss == pytest.approx(math.log(10))
    assert lr.num_classes == 10
    assert lr.scale == pytest.approx(0.669, abs=1e-3)


@pytest.mark.filterwarnings("ignore:the first loss, ")
@given(losses=st.lists(st.floats(), min_size=1, max_size=20), text=st.booleans())
@fixed
def test_whatever_the_losses_are_the_rates_are_positive_finite_and_bounded(losses: list[float], text: bool) -> None:
    for options in ({"initial_loss": 2.3, "min_lr": 1e-4, "max_lr": 0.5}, {}):
        optimizer = null(0.1)
        lr = ms.LearnedLR(optimizer, net(scale=ms.ScaleRule(text=text)), **options)
        for rate in rates(lr, optimizer, losses):
            assert 0 < rate < math.inf
            assert lr.min_lr <= rate <= lr.max_lr
        assert lr.non_finite_losses == sum(not math.isfinite(loss) for loss in losses)


def test_a_thousand_steps_leave_no_memory_behind() -> None:
    run = Regression(lambda p: torch.optim.SGD(p, lr=0.1))
    lr = ms.LearnedLR(run.optimizer, net(), num_classes=10)

    def steps(count: int) -> int:
        for step in range(count):
            lr.observe(run.loss(step % 40))
            run.optimizer.step()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = steps(100)  # the history takes all its memory with the first steps that it is told
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        assert steps(1000) - before < 16 * 1000  # one float kept a step is 24 bytes; torch's registries stir a little
        assert sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()) <= tensors
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("wrong", ["a", None, [1.0], 1 + 2j, True, torch.ones(3), np.ones(3), torch.tensor(1)])
def test_what_is_no_number_is_refused_by_its_name(wrong: Any) -> None:
    lr = ms.LearnedLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), total_steps=3)
    for name, observe in (
        ("loss", lr.observe),
        ("loss", lr.observe_validation),
        ("grad_norm", lambda value: lr.observe(1.0, grad_norm=value)),
    ):
        if name == "loss" or wrong is not None:
            with pytest.raises((TypeError, ValueError), match=f"^{name} must"):
                observe(wrong)


def test_the_step_of_a_scheduler_does_nothing() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    lr = ms.LearnedLR(optimizer, ms.Cosine(), total_steps=4)
    rates = []
    for _ in range(4):
        parameter.grad = torch.ones(2)
        lr.observe(1.0)
        optimizer.step()
        rates += lr.get_last_lr()
        lr.step()
        lr.step(1.0)  # as for a plateau, or with an epoch
        lr.step(epoch=3, metric=0.5)
    assert lr.steps == 4
    assert rates == pytest.approx([0.1, 0.1 * (0.5 + 0.5 * 0.5**0.5), 0.05, 0.1 * (0.5 - 0.5 * 0.5**0.5)])


def test_a_loss_with_its_graph_is_read_in_silence(recwarn: pytest.WarningsRecorder) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    lr = ms.LearnedLR(torch.optim.SGD([parameter], lr=0.1), total_steps=3)
    lr.observe(parameter.sum(), grad_norm=parameter.norm())
    assert lr.observe_validation(parameter.sum())
    assert not recwarn.list


@pytest.mark.parametrize("wrong", [None, 3, "state"])
def test_a_state_that_is_none_is_refused(wrong: Any) -> None:
    lr = ms.LearnedLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), total_steps=3)
    with pytest.raises(TypeError, match="state_dict must be what"):
        lr.load_state_dict(wrong)
