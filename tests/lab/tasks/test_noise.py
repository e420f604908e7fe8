import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metastep.lab.tasks import LabelNoise

LABELS = torch.arange(10).repeat(2000)


def expect_share(hits, share):
    """Within six standard deviations of a binomial share."""
    n = len(hits)
    assert abs(hits.double().mean() - share) <= 6 * (share * (1 - share) / n) ** 0.5


@settings(derandomize=True, max_examples=40)
@given(rate=st.integers(0, 20).map(lambda n: n / 20), seed=st.integers(0, 2**32))
def test_uniform_noise_draws_from_all_classes_the_true_one_among_them(rate, seed):
    noisy = LabelNoise("uniform", rate, seed).apply(LABELS, 10)
    expect_share(noisy != LABELS, rate * 9 / 10)
    for wrong in (1, 5):  # every other class equally often
        expect_share(noisy == (LABELS + wrong) % 10, rate / 10)


@settings(derandomize=True, max_examples=40)
@given(rate=st.integers(0, 20).map(lambda n: n / 20), seed=st.integers(0, 2**32))
def test_flip_noise_gives_every_class_one_other(rate, seed):
    noisy = LabelNoise("flip", rate, seed).apply(LABELS, 10)
    expect_share(noisy != LABELS, rate)
    assert set((noisy - LABELS).remainder(10).tolist()) <= {0, 1}


@pytest.mark.parametrize("kind", ["uniform", "flip"])
def test_noise_at_rate_zero_changes_nothing_and_is_repeatable(kind):
    assert torch.equal(LabelNoise(kind, 0.0).apply(LABELS, 10), LABELS)
    noise = LabelNoise(kind, 0.4, seed=7)
    assert torch.equal(noise.apply(LABELS, 10), noise.apply(LABELS, 10))
    assert not torch.equal(noise.apply(LABELS, 10), LabelNoise(kind, 0.4, seed=8).apply(LABELS, 10))


def test_flip_noise_at_rate_one_moves_every_label_by_one():
    assert torch.equal(LabelNoise("flip", 1.0).apply(LABELS, 10), (LABELS + 1) % 10)


def test_noise_leaves_the_labels_given_and_the_global_generator_alone():
    given_labels, generator = LABELS.clone(), torch.get_rng_state()
    LabelNoise("uniform", 0.5).apply(given_labels, 10)
    assert torch.equal(given_labels, LABELS)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(ValueError, match=r"^rate must be in \[0, 1\], got"):
        LabelNoise("flip", rate)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"^kind must be 'uniform' or 'flip', got 'asymmetric'"):
        LabelNoise("asymmetric", 0.1)
