"""Signals are what their definitions say, free of units, finite, and the same one by one or in a batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.signals_reference import ReferenceSignals
from torch import Tensor

from metastep.core.signals import (
    LOSS_SIGNALS,
    SIGNALS,
    SignalState,
    check_signals,
    feature_names,
    features,
    init_signals,
    layer_features,
    observe,
)

NAMES = feature_names(SIGNALS)
TOTAL = 40


def run(steps: int, seed: int = 0, level: float = 1.0) -> Tensor:
    """Raw numbers of a run that learns: loss, dot, |g|^2, |u|^2, |theta|^2, (steps, 5), float64."""
    torch.manual_seed(seed)
    noise = torch.rand(steps, 5, dtype=torch.float64)
    time = torch.arange(steps, dtype=torch.float64)
    loss = level * (2 * torch.exp(-time / 20) + 0.2 * noise[:, 0])
    grad, update = 1 + noise[:, 2], 0.01 * (1 + noise[:, 3])
    dot = (noise[:, 1] - 0.4) * grad * update
    update[0] = dot[0] = 0
    return torch.stack((loss, dot, grad**2, update**2, 9 + noise[:, 4]), dim=-1)


def observed(raw: Tensor, state: SignalState | None = None, *, loss: bool = True) -> SignalState:
    state = init_signals(raw.shape[1:-1], raw.dtype) if state is None else state
    for step in raw:
        first, *rest = step.unbind(-1)
        state = observe(state, first if loss else None, *rest)
    return state


def of(raw: Tensor, **options) -> Tensor:
    multiplier = torch.full(raw.shape[1:-1], -2.0, dtype=raw.dtype)
    return features(observed(raw), multiplier, len(raw) - 1, TOTAL, SIGNALS, **options)


@pytest.mark.parametrize(("horizon", "loss_known"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("level", [1.0, -1.0])
def test_signals_equal_a_slow_reference_through_spikes_and_gaps(level: float, horizon: bool, loss_known: bool) -> None:
    raw = run(60, level=level)
    raw[0, 0] = 0.0  # no level to measure by
    raw[7, 2], raw[20, 0], raw[21, 0] = math.nan, math.inf, math.nan
    raw[40, 2], raw[55, 0] = 1e9, 500.0
    raw[30, 2] = raw[31, 3] = raw[33, 4] = 0.0
    state, reference = init_signals((), torch.float64), ReferenceSignals()
    for step, numbers in enumerate(raw):
        loss, *rest = numbers.unbind()
        gap = step in (12, 13)
        state = observe(state, None if gap else loss, *rest)
        reference.observe(None if gap else float(loss), *map(float, rest))
        found = features(state, torch.tensor(-2.0).double(), step, TOTAL, SIGNALS, horizon, loss_known)
        expected = reference.features(-2.0, step, TOTAL, horizon, loss_known)
        assert dict(zip(NAMES, found.tolist(), strict=True)) == pytest.approx(expected, abs=1e-12), step
        assert (bool(state.skipped), bool(state.backoff)) == (reference.skipped, reference.backoff), step
        assert int(state.skips) == reference.skips, step
    assert reference.skips >= 4  # each kind: gradient and loss, broken and far off


scales = st.floats(min_value=-30, max_value=30)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(loss_scale=st.integers(-40, 40), parameter_scale=st.integers(-40, 40), seed=st.integers(0, 9))
def test_powers_of_two_as_units_of_loss_and_parameters_change_nothing(
    loss_scale: int, parameter_scale: int, seed: int
) -> None:
    raw = run(25, seed)
    raw[20, 2] = 1e8  # the brake, too
    c, s = 2.0**loss_scale, 2.0**parameter_scale
    units = torch.tensor([c, c, (c / s) ** 2, s**2, s**2], dtype=torch.float64)
    assert torch.equal(of(raw * units), of(raw))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(loss_scale=scales, parameter_scale=scales, seed=st.integers(0, 9))
def test_any_units_of_loss_and_parameters_change_only_the_rounding(
    loss_scale: float, parameter_scale: float, seed: int
) -> None:
    c, s = math.exp(loss_scale), math.exp(parameter_scale)
    units = torch.tensor([c, c, (c / s) ** 2, s**2, s**2], dtype=torch.float64)
    raw = run(25, seed)
    torch.testing.assert_close(of(raw * units), of(raw), rtol=0, atol=1e-12)


anything = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[anything] * 5), min_size=1, max_size=25), st.booleans(), anything, st.booleans())
def test_features_are_finite_and_within_bounds_whatever_is_observed(numbers, single, multiplier, known) -> None:
    raw = torch.tensor(numbers, dtype=torch.float32 if single else torch.float64)
    state = observed(raw)
    found = features(state, torch.tensor(multiplier).to(raw), len(raw), 7.0, SIGNALS, known)
    assert found.isfinite().all()
    assert found.abs().max() <= 3
    assert state.packed().isfinite().all()


def test_a_batch_of_any_dimensions_gives_what_each_run_gives_by_itself() -> None:
    raw = torch.stack([run(30, seed) for seed in range(6)], dim=1)
    raw[12, 3, 0] = math.nan
    raw[20, 2, 2] = 1e12
    whole = of(raw.reshape(30, 2, 3, 5)).reshape(6, -1)
    assert torch.equal(whole, torch.stack([of(raw[:, k]) for k in range(6)]))


def test_horizons_and_masks_may_differ_within_a_batch() -> None:
    raw = torch.stack([run(9)] * 2, dim=1)
    total, known = torch.tensor([20.0, 100.0]).double(), torch.tensor([1.0, 0.0]).double()
    state, m = observed(raw), torch.zeros(2).double()
    found = features(state, m, 8, total, SIGNALS, known, 1 - known)
    assert torch.equal(found[0], features(observed(raw[:, 0]), m[0], 8, 20, SIGNALS, True, False))
    assert torch.equal(found[1], features(observed(raw[:, 0]), m[0], 8, 100, SIGNALS, False, True))


def test_without_losses_or_horizon_their_signals_and_masks_are_zero_and_the_others_stay() -> None:
    raw = run(20)
    state = observed(raw, loss=False)
    found = dict(zip(NAMES, features(state, state.steps * 0 - 2, 19, 1, SIGNALS, False).tolist(), strict=True))
    everything = dict(zip(NAMES, of(raw).tolist(), strict=True))
    zero = {"progress", "remaining", "length", *LOSS_SIGNALS, "horizon_known", "loss_known"}
    assert {name for name, value in found.items() if value == 0} == zero
    assert {name: value for name, value in found.items() if name not in zero} == {
        name: value for name, value in everything.items() if name not in zero
    }
    assert all(everything.values())


@pytest.mark.parametrize(("losses", "sign"), [((-1.0, -1.5, -1.9), -1), ((-1.0, -0.5, 3.0), 1), ((2.0, 1.0, 0.0), -1)])
def test_a_negative_loss_counts_as_good_when_it_falls(losses: tuple[float, ...], sign: int) -> None:
    raw = run(3)
    raw[:, 0] = torch.tensor(losses)
    found = of(raw)[NAMES.index("loss")]
    assert math.copysign(1, found) == sign
    raw[:, 0] = losses[0]
    assert of(raw)[NAMES.index("loss")] == 0  # as at its start


def test_alignment_is_positive_along_a_valley_and_negative_across_it() -> None:
    raw = run(20)
    for sign in (1, -1):
        raw[:, 1] = sign * 0.9 * (raw[:, 2] * raw[:, 3]).sqrt()
        found = dict(zip(NAMES, of(raw).tolist(), strict=True))
        assert found["alignment"] == sign * 3  # 4 x 0.9, clipped
        assert found["alignment_slow"] == pytest.approx(sign * 6 * 0.9 * (1 - 0.97**19), abs=1e-12)


def test_a_step_that_the_brake_skips_leaves_the_averages_alone() -> None:
    before = observed(run(20))
    after = observe(before, torch.tensor(1e9).double(), *run(21)[20, 1:].unbind())
    assert after.skipped == after.backoff == after.skips == 1
    changed = ("steps", "skipped", "backoff", "cooldown", "skips", "update")
    kept = [name for name in SignalState._fields if name not in changed]
    assert all(torch.equal(getattr(before, name), getattr(after, name)) for name in kept)


def test_a_new_level_of_the_loss_is_skipped_once_and_is_then_taken_as_it_is() -> None:
    raw = run(200)
    raw[100:, 0] = 30.0  # other data, say
    assert observed(raw).skips == 1


def test_noise_of_a_batch_skips_nothing() -> None:
    torch.manual_seed(0)
    raw = run(2000)
    raw[:, 0] *= 1 + 0.3 * torch.randn(2000).double().clamp(-3, 3)
    raw[:, 2] *= torch.exp(0.5 * torch.randn(2000).double().clamp(-3, 3))
    assert observed(raw).skips == 0


def test_a_state_survives_packing() -> None:
    state = observed(torch.stack([run(9), run(9, 1)], dim=1))
    packed = state.packed()
    assert packed.shape == (2, len(SignalState._fields))
    assert all(torch.equal(a, b) for a, b in zip(SignalState.unpacked(packed), state, strict=True))


def test_layers_read_the_network_beside_their_own() -> None:
    found = layer_features(torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0]]))
    assert found.tolist() == [[1, 2, 3], [1, 2, 4]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("loss", "allignment"), "got 'allignment'; did you mean alignment"),
        (("zzz",), "got 'zzz'; see"),
        (("loss", "loss"), "once, got loss, loss"),
        ((), r"at least one of progress, .* got \(\)"),
        ("loss", "as a tuple, got 'loss'"),
    ],
)
def test_signals_that_do_not_exist_are_refused(names, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_signals(names)
