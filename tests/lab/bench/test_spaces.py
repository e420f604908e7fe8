"""The spaces of tuned values: what they hold, how they are drawn from, what they say."""

import math

import optuna
import pytest

from metastep.lab.bench.method import Choice, LogUniform, Uniform

SPACES = [LogUniform(1e-4, 1.0), Uniform(-1, 2.5), Choice((1, None, "a", 0.5))]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_what_a_trial_draws_lies_in_the_space_and_varies(space):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.suggest(study.ask(), "value") for _ in range(40)]
    assert all(value in space for value in drawn)
    assert len(set(drawn)) > 3


def test_a_logarithmic_space_draws_each_power_of_ten_as_often():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = LogUniform(1e-4, 1.0)
    logs = sorted(math.log10(space.suggest(study.ask(), "lr")) for _ in range(200))
    assert sum(-4 <= value < -2 for value in logs) == pytest.approx(100, abs=25)


def test_a_space_says_what_it_holds_as_people_write_it():
    assert LogUniform(1e-4, 1).describe() == "1e-4 .. 1, log"
    assert LogUniform(1e-3, 100.0).describe() == "1e-3 .. 100, log"
    assert Uniform(0, 0.2).describe() == "0 .. 0.2"
    assert LogUniform(2.5e-5, 3e6).describe() == "2.5e-5 .. 3e6, log"
    assert Choice((True, None, 3)).describe() == "True, None or 3"


@pytest.mark.parametrize(
    ("space", "outside"),
    [
        (Uniform(0, 1), [-0.1, 1.1, math.nan, math.inf, "0.5", None, True]),
        (LogUniform(1e-3, 1), [0, 1e-4, -1, False]),
        (Choice((1, 2.5)), [True, 1.5, "1", None, math.nan]),
        (Choice((True, False)), [1, 0]),
    ],
    ids=str,
)
def test_values_outside_are_refused_with_the_space(space, outside):
    for value in outside:
        assert value not in space
        with pytest.raises(ValueError, match=r"momentum must lie in .*; choose a value there"):
            space.checked("momentum", value)


def test_integers_and_floats_of_one_value_are_one():
    assert 1.0 in Choice((1, 2.5))
    assert 1 in Uniform(0, 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Uniform(1, 1), "low must be a number below high, got 1 and 1"),
        (lambda: Uniform(0, math.inf), "low must be a number below high"),
        (lambda: LogUniform(0, 1), "low must be > 0 on a logarithmic scale, got 0"),
        (lambda: Choice((1,)), "values must be two or more, all different"),
        (lambda: Choice((1, 1)), "values must be two or more, all different"),
    ],
)
def test_what_is_no_space_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
