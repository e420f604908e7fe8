"""Tasks that predict numbers, words around a word, or under noise: what their losses, metrics and data are."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from metastep.lab.tasks import LabelNoise, load_task
from metastep.lab.tasks.datasets.language import neighbours
from metastep.lab.tasks.task import tally


def test_a_regression_s_loss_is_the_squared_error_of_standardised_targets():
    task = load_task("diabetes/mlp")
    train = task.data.splits_by_name["train"]
    assert train.targets.mean().abs() < 1e-6
    assert train.targets.square().mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(train.inputs.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.manual_seed(0)
    model = task.make_model()
    batch = next(task.batches("train"))
    assert torch.equal(task.loss(model, batch), mse_loss(model(batch.inputs), batch.targets))


@pytest.mark.parametrize("name", ["diabetes/mlp", "digits/autoencoder"])
def test_r2_is_the_explained_share_of_the_variance_whatever_the_batches(name):
    task = load_task(name)
    torch.manual_seed(0)
    model = task.make_model().eval()
    whole = next(
        task.data.stream(
            "outer_valid", batch_size=500, seed=0, device=torch.device("cpu"), augment=False, shuffle=False
        )
    )
    with torch.no_grad():
        outputs, y = model(whole.inputs).double(), whole.targets.double()
    expected = 1 - (y - outputs).square().sum() / (y - y.mean(0)).square().sum()
    scores = task.evaluate(model, "outer_valid", batch_size=7)
    assert scores["r2"] == pytest.approx(expected.item(), rel=1e-5)
    assert scores["loss"] == pytest.approx((y - outputs).square().mean().item(), rel=1e-5)


def test_the_best_constant_has_an_r2_of_zero_and_a_constant_target_has_none():
    targets = torch.tensor([[1.0], [2.0], [6.0]])
    sums = tally("regression")
    sums.add(torch.full((3, 1), 3.0), targets)
    assert sums.scores()["r2"] == pytest.approx(0, abs=1e-12)
    flat = tally("regression")
    flat.add(torch.zeros(2, 1), torch.ones(2, 1))
    assert math.isnan(flat.scores()["r2"])


def test_a_network_that_knows_nothing_has_the_loss_of_as_many_classes_as_the_task_counts_for():
    for name in ("diabetes/mlp", "digits/autoencoder"):
        task = load_task(name)

        class Nothing(nn.Module):
            def forward(self, x, outputs=task.data.network_outputs):
                return torch.zeros(len(x), outputs)

        loss = task.evaluate(Nothing(), "train")["loss"]
        assert round(math.exp(loss)) == task.num_classes == 3


def test_an_autoencoder_is_to_give_back_what_it_sees():
    batch = next(load_task("digits/autoencoder").batches("train"))
    assert torch.equal(batch.targets, batch.inputs.flatten(1))


def test_a_noisy_task_is_noisy_by_itself_and_can_be_told_otherwise():
    clean, noisy = load_task("digits/mlp"), load_task("digits/mlp-noisy")

    def changed(task):
        labels = [t.data.splits_by_name["train"].labels for t in (clean, task)]
        return (labels[0] != labels[1]).double().mean().item()

    assert 0.3 < changed(noisy) < 0.42  # 40 %, of which a tenth keeps its label
    assert changed(load_task("digits/mlp-noisy", label_noise=LabelNoise("flip", 0.0))) == 0
    assert torch.equal(noisy.data.splits_by_name["test"].labels, clean.data.splits_by_name["test"].labels)


@pytest.mark.parametrize("name", ["diabetes/mlp", "digits/autoencoder"])
def test_label_noise_without_labels_is_refused(name):
    with pytest.raises(ValueError, match=rf"^label_noise must be None for {name}, got .*; it predicts numbers"):
        load_task(name, label_noise=LabelNoise("flip", 0.2))


def test_noise_of_a_table_spoils_its_training_classes_alone():
    clean, noisy = load_task("wine/mlp"), load_task("wine/mlp", label_noise=LabelNoise("flip", 1.0))
    for name in clean.splits:
        one, other = (task.data.splits_by_name[name].targets for task in (clean, noisy))
        assert torch.equal(other, (one + 1) % 3 if name == "train" else one)


def test_word_pairs_are_each_word_with_its_frequent_neighbours():
    tokens = torch.tensor([5, 1, 2, 0, 3, 4, 6])
    pairs = [tuple(pair) for pair in neighbours(tokens, 2).tolist()]
    assert pairs == [(2, 5), (2, 1), (2, 3), (3, 2), (3, 4), (3, 6)]


def test_splits_of_a_table_share_no_row():
    task = load_task("breast-cancer/linear")
    rows = torch.cat([split.inputs for split in task.data.splits_by_name.values()])
    assert len(rows.unique(dim=0)) == len(rows) == 569
