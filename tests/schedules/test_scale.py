"""The scale rule: its values, and no loss for which it is zero, negative, infinite or NaN."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metastep import ScaleRule

fixed = settings(derandomize=True, deadline=None, max_examples=200)
finite = st.floats(allow_nan=False, allow_infinity=False)


def published(loss: float, classes: int) -> float:
    return math.sqrt(loss) * math.log(loss * classes) / classes**0.25 / 4


@pytest.mark.parametrize(
    ("loss", "classes", "text", "value"),
    [
        (math.log(10), 10, False, 0.669),
        (math.log(100), 100, False, 1.040),
        (math.log(10_000), 10_000, True, 46.05),
    ],
)
def test_the_values_of_the_published_tasks(loss: float, classes: int, text: bool, value: float) -> None:
    assert ScaleRule(text=text).gamma(loss, classes) == pytest.approx(value, abs=0.005)


@given(loss=st.floats(0.2, 50), classes=st.integers(10, 10**6))
@fixed
def test_it_is_the_published_formula_where_that_is_sound(loss: float, classes: int) -> None:
    assert ScaleRule().gamma(loss, classes) == pytest.approx(published(loss, classes), rel=1e-12)


@given(loss=finite, classes=st.integers(2, 10**6), text=st.booleans(), mode=st.sampled_from(["recompute", "floor"]))
@example(loss=0.1, classes=10, text=False, mode="recompute")
@example(loss=0.0, classes=2, text=False, mode="floor")
@example(loss=-1e300, classes=2, text=True, mode="recompute")
@example(loss=1.7e308, classes=10, text=False, mode="recompute")
@fixed
def test_it_is_positive_and_finite_in_float32_for_every_finite_loss(
    loss: float, classes: int, text: bool, mode: str
) -> None:
    rule = ScaleRule(text=text, mode=mode)
    first = rule.gamma(loss, classes)
    again = rule.gamma(-loss / 3, classes, first=first)
    for gamma in (first, again):
        assert 1e-7 < gamma < 1e30


def test_where_the_published_rule_is_zero_the_first_scale_has_a_floor() -> None:
    assert ScaleRule().gamma(0.1, 10) == 1e-3
    assert ScaleRule().gamma(0.1, 10, first=0.7) == pytest.approx(0.7e-3)


def test_freeze_keeps_the_first_scale() -> None:
    assert ScaleRule(mode="freeze").gamma(0.5, 10, first=0.7) == 0.7


def test_floor_keeps_a_share_of_the_first_scale() -> None:
    rule = ScaleRule(mode="floor", floor=0.25)
    assert rule.gamma(0.1, 10, first=0.8) == pytest.approx(0.2)
    assert rule.gamma(5.0, 10, first=0.8) == pytest.approx(published(5.0, 10))


def test_text_reads_loss_over_log_classes_and_images_the_loss() -> None:
    assert ScaleRule(text=True).normalize(3.0, 20) == 3.0 / math.log(20)
    assert ScaleRule().normalize(3.0, 20) == 3.0


@pytest.mark.parametrize(("loss", "classes"), [(math.log(10), 10), (0.0, 2), (-5.0, 2), (1e300, 8886111)])
def test_the_number_of_classes_is_guessed_from_the_loss_of_a_uniform_guess(loss: float, classes: int) -> None:
    assert ScaleRule().guess_num_classes(loss) == pytest.approx(classes, rel=1e-6)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_sets_no_scale(loss: float) -> None:
    with pytest.raises(ValueError, match="loss must be finite"):
        ScaleRule().gamma(loss, 10)


@pytest.mark.parametrize(
    ("options", "name"), [({"mode": "x"}, "mode"), ({"floor": 0.0}, "floor"), ({"floor": 1.5}, "floor")]
)
def test_a_bad_argument_is_named(options: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        ScaleRule(**options)


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be >= 2"):
        ScaleRule().gamma(1.0, 1)
