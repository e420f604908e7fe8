"""Scores against tables worked out by hand."""

import math
import sys

import numpy as np
import pytest

from metastep.lab.report.scores import (
    _holm,
    bootstrap,
    performance_profile,
    profile_areas,
    rank,
)

INF = math.inf
#: Best per task: 10, 20, 5, nobody. Ratios: a 1, 1.5, never; b 2, 1, 1.
COSTS = {"a": {"w": 10, "x": 30, "y": INF, "z": INF}, "b": {"w": 20, "x": 20, "y": 5, "z": INF}}


def test_the_bootstrap_of_two_seeds_reaches_both_and_that_of_equal_ones_is_a_point() -> None:
    found = bootstrap([1.0, 3.0])  # each mean 1 or 3 has probability 1/4
    assert (found.mean, found.low, found.high, found.n) == (2.0, 1.0, 3.0, 2)
    assert bootstrap([4.0] * 3).low == bootstrap([4.0] * 3).high == 4.0


def test_a_larger_sample_has_the_interval_of_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap(list(values))
    error = values.std() / 20
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_a_diverged_seed_leaves_no_finite_mean() -> None:
    assert bootstrap([1.0, INF]).mean == bootstrap([math.nan]).low == INF


def test_profiles_and_their_areas_are_those_worked_out_by_hand() -> None:
    assert performance_profile(COSTS, [1, 1.5, 2]) == {"a": [0.25, 0.5, 0.5], "b": [0.5, 0.5, 0.75]}
    areas = profile_areas(COSTS)
    assert areas["a"] == pytest.approx((1 + 2.5 / 3) / 4)
    assert areas["b"] == pytest.approx((2 / 3 + 1 + 1) / 4)


def test_an_area_is_the_integral_of_its_profile() -> None:
    ratios = np.linspace(1, 4, 30_001)
    for method, values in performance_profile(COSTS, list(ratios)).items():
        assert np.mean(values) == pytest.approx(profile_areas(COSTS)[method], abs=1e-3)


def test_ranks_are_those_worked_out_by_hand() -> None:
    losses = {"a": {"x": 1, "y": 1, "z": 1}, "b": {"x": 2, "y": 2, "z": 2}, "c": {"x": 3, "y": INF, "z": 3}}
    found = rank(losses)
    assert found.mean_rank == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert found.friedman_p == pytest.approx(math.exp(-3))  # chi square 6, two degrees of freedom
    assert found.critical_difference == pytest.approx(2.343 * math.sqrt(12 / 18), rel=1e-3)  # Demsar 2006, table 5
    assert set(found.pairwise_p) == {("a", "b"), ("a", "c"), ("b", "c")}


def test_methods_that_always_tie_are_alike() -> None:
    found = rank({name: {"x": 1.0, "y": 2.0} for name in "abc"})
    assert set(found.mean_rank.values()) == {2.0}
    assert found.friedman_p == 1.0
    assert set(found.pairwise_p.values()) == {1.0}


def test_holms_correction_never_falls() -> None:
    raw = {("a", "b"): 0.01, ("a", "c"): 0.04, ("b", "c"): 0.03}
    assert _holm(raw) == pytest.approx({("a", "b"): 0.03, ("b", "c"): 0.06, ("a", "c"): 0.06})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap([]), "values must hold"),
        (lambda: performance_profile({"a": {"x": 0.0}}, [1]), "costs must be > 0"),
        (lambda: profile_areas({"a": {"x": 1.0}, "b": {"y": 1.0}}), "same tasks, got others for b"),
        (lambda: profile_areas(COSTS, highest=1.0), "highest must be > 1"),
        (lambda: rank({"a": {"x": 1.0}}), "3 methods and 2 tasks"),
        (lambda: profile_areas({}), "at least one method"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_without_scipy_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"metastep\[bench\]"):
        rank({})
