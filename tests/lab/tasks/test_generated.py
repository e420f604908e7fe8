"""Drawn data: always the same, and what their summaries say; digits as targets of themselves."""

import pytest
import torch

from metastep.lab.tasks import load_task
from metastep.lab.tasks.datasets.generated import read_friedman, read_spirals
from metastep.lab.tasks.splits import DataOptions

SIZES = DataOptions(inner_valid=100, outer_valid=100)


@pytest.mark.parametrize(
    "name", ["friedman/mlp", "spirals/mlp", "clusters/mlp", "iris/mlp", "digits/denoising", "digits/lower-half"]
)
def test_drawn_data_are_the_same_every_time_and_leave_the_random_stream_alone(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = load_task(name)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = load_task(name)
    for split, examples in one.data.splits_by_name.items():
        again = other.data.splits_by_name[split]
        assert torch.equal(examples.inputs, again.inputs)
        assert torch.equal(examples.targets, again.targets)


def test_columns_and_targets_are_standardised_by_the_training_split():
    train = read_friedman(SIZES, rows=2000, noise=1.0).splits_by_name["train"]
    for tensor in (train.inputs, train.targets):
        assert tensor.mean(0).abs().max() < 1e-5
        torch.testing.assert_close(tensor.square().mean(0), torch.ones(tensor.shape[1]))


def test_each_spiral_is_the_next_one_turned_by_a_third():
    split = read_spirals(SIZES, rows=3000, turns=1.0, noise=0.0).splits_by_name["train"]
    assert torch.bincount(split.targets).tolist() == [600] * 3
    # Standardised coordinates are not turned into one another exactly; the spirals are as far from the centre.
    far = [split.inputs[split.targets == label].square().sum(1).mean() for label in range(3)]
    assert max(far) < 1.1 * min(far)


def test_noisy_digits_have_clean_targets_and_halves_are_the_pixels_in_order():
    whole, noisy, halves = (load_task(f"digits/{name}") for name in ("autoencoder", "denoising", "lower-half"))
    pixels = next(whole.batches("train", batch_size=1000, seed=3)).targets
    denoised, cut = (next(task.batches("train", batch_size=1000, seed=3)) for task in (noisy, halves))
    torch.testing.assert_close(denoised.targets, pixels)
    noise = denoised.inputs * 2**0.5 - pixels
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    torch.testing.assert_close(torch.cat((cut.inputs, cut.targets), 1), pixels)
