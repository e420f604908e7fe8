"""SignalSchedule by itself: its state, its weights, its horizon, its file, its arguments."""

import math

import pytest
import torch
from tests.oracles.signals_reference import ReferenceSignals
from torch import Tensor

import metastep as ms
from metastep.core.policy import ActionBounds
from metastep.schedules.base import Observation


def schedule(**options) -> ms.SignalSchedule:
    torch.manual_seed(0)
    made = ms.SignalSchedule(**options)
    made.load_flat(0.4 * torch.randn_like(made.flat_weights()))
    return made.double()


def readings(steps: int, layers: int = 0) -> list[Observation]:
    torch.manual_seed(1)
    found = []
    for step in range(steps):
        raw = torch.rand(max(layers, 1), 4).double() * torch.tensor([0.01, 1, 1e-4, 9])
        raw[:, 2] *= step > 0
        loss = torch.tensor(2.0).double() * 0.95**step
        found.append(Observation(loss, raw.sum(0), raw if layers else None))
    return found


def rates(made: ms.SignalSchedule, steps: int) -> list[float]:
    state, found = made.init_state(), []
    for reading in readings(steps, made.layers):
        rate, state = made(reading, state)
        found.append(rate.tolist())
    return found


def test_a_run_is_the_networks_equations_on_the_signals_of_the_reference() -> None:
    made, reference = schedule(hidden=4, total_steps=30), ReferenceSignals()
    size = len(made.feature_names) * 4
    flat = made.flat_weights()
    w1, b1, w2, b2 = flat[:size].view(-1, 4), flat[size : size + 4], flat[size + 4 : size + 8], flat[-1]
    m, expected = math.log(0.01), []
    for step, reading in enumerate(readings(30)):
        reference.observe(float(reading.loss), *reading.network.tolist())
        read = reference.features(m, step, 30, True, True)
        x = torch.tensor([read[name] for name in made.feature_names], dtype=torch.float64)
        drive = math.tanh(float(torch.tanh(x @ w1 + b1) @ w2 + b2))
        m += drive * min(1, 100 / 30) if drive > 0 else drive * min(math.log(10), 400 / 30)
        m = min(max(m, -14.0), 9.2)
        expected.append(math.exp(m))
    assert rates(made, 30) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"recurrent": True}, {"scope": "layer"}, {"total_steps": 9}])
def test_the_state_is_a_value_and_forward_changes_nothing(options) -> None:
    made = schedule(**options).with_layers(3)
    state = made.init_state()
    reading = readings(1, 3)[0]
    before = state.clone()
    first, after = made(reading, state)
    second, again = made(reading, state)
    assert torch.equal(first, second)
    assert torch.equal(after, again)
    assert torch.equal(state, before)
    assert after.shape == state.shape


def test_fresh_weights_start_low_and_hold() -> None:
    torch.manual_seed(0)
    found = rates(ms.SignalSchedule(total_steps=100), 50)
    assert found == pytest.approx([0.01] * 50, rel=0.5)


def test_layers_that_see_the_same_have_the_same_rate_and_others_have_not() -> None:
    made = schedule(scope="layer", total_steps=2000).with_layers(3)
    state = made.init_state()
    for reading in readings(3, 3):
        raw = reading.layers.clone()
        raw[1] = raw[0]
        rate, state = made(Observation(reading.loss, raw.sum(0), raw), state)
    assert rate[0] == rate[1] != rate[2]


def test_beyond_the_horizon_the_rate_stays_at_its_last() -> None:
    found = rates(schedule(total_steps=12), 40)
    assert found[11] != found[10]
    assert found[12:] == [found[11]] * 28


def test_an_extended_horizon_shares_the_weights_and_goes_on_from_the_state() -> None:
    made = schedule(total_steps=12)
    longer = made.extended(40)
    state = made.init_state()
    for reading in readings(20):
        rate, state = made(reading, state)
    after, _ = longer(readings(21)[20], state)
    assert after != rate
    made.load_flat(made.flat_weights() * 0)
    assert torch.equal(longer.flat_weights(), made.flat_weights())
    assert (made.total_steps, longer.total_steps) == (12, 40)
    assert made.with_total_steps(99) is made  # a horizon given at construction stands


def test_a_loss_alone_is_enough_for_the_family_of_mlr_snet() -> None:
    made = schedule(signals=("loss",), recurrent=True, hidden=8)
    state, found = made.init_state(), []
    for loss in (2.0, 1.5, 1.0):
        rate, state = made(loss, state)
        found.append(rate.item())
    other, _ = made(9.0, made(2.0, made.init_state())[1])
    assert other.item() != found[1]


def test_the_gradient_of_the_rate_is_the_finite_difference() -> None:
    made = schedule(signals=("progress", "loss", "alignment", "multiplier"), recurrent=True, hidden=2, total_steps=20)

    def last(flat: Tensor) -> Tensor:
        state = made.init_state()
        for reading in readings(3):
            rate, state = torch.func.functional_call(made, {"weights": flat}, (reading, state))
        return rate.log()

    flat = made.flat_weights().requires_grad_()
    assert torch.autograd.gradcheck(last, (flat,), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"recurrent": True, "scope": "layer", "hidden": 64}])
def test_a_file_brings_it_back_and_is_small(options, tmp_path) -> None:
    made = schedule(trained_for="adamw", bounds=ActionBounds(initial_update=0.7, anneals=True), **options).float()
    ms.save_schedule(made, tmp_path / "s.safetensors")
    back = ms.load_schedule(tmp_path / "s.safetensors")
    assert (tmp_path / "s.safetensors").stat().st_size < 500_000
    assert back.config() == made.config()
    assert rates(back.with_layers(2), 9) == rates(made.with_layers(2), 9)


def test_flat_weights_are_taken_whole_or_not_at_all() -> None:
    made, other = schedule(), schedule(hidden=3)
    before = made.flat_weights()
    for wrong in (other.flat_weights(), before * math.nan):
        with pytest.raises(ValueError, match=rf"vector must hold {len(before)} finite weights"):
            made.load_flat(wrong)
    assert torch.equal(made.flat_weights(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signals": ("los",)}, "signals must be of .* got 'los'; did you mean loss"),
        ({"hidden": 0}, "hidden must be a whole number >= 1"),
        ({"scope": "unit"}, "scope must be 'network' or 'layer', got 'unit'"),
        ({"scope": "layer", "signals": ("loss",)}, "signals must be one of alignment, .* at least"),
        ({"total_steps": 0}, "total_steps must be a whole number >= 1"),
        ({"bounds": ActionBounds(start=-20.0)}, r"bounds.start must be in \[-14, 9.2\], got -20"),
        ({"bounds": ActionBounds(max_increase=-1.0)}, "bounds.max_increase must be in"),
        ({"trained_for": 3}, "trained_for must be the name of a base or None"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ms.SignalSchedule(**options)
