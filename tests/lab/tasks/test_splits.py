import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metastep.lab.tasks import LabelNoise, load_task
from metastep.lab.tasks.splits import balanced_order


def rows(task, split):
    return set(task.data.splits_by_name[split].rows.tolist())


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), data=st.data())
def test_every_stretch_of_the_order_holds_the_classes_as_evenly_as_they_last(labels, data):
    labels = torch.tensor(labels)
    order = balanced_order(labels)
    assert sorted(order.tolist()) == list(range(len(labels)))
    start = data.draw(st.integers(0, len(labels)))
    stretch = labels[order[start : data.draw(st.integers(start, len(labels)))]]
    taken = torch.bincount(stretch, minlength=5)
    left = torch.bincount(labels[order[start:]], minlength=5) - taken
    # A class may have been taken less often only where it ran out.
    lasting = taken[left > 0]
    if len(lasting):
        assert taken.max() - lasting.min() <= 1


@pytest.mark.parametrize("name", ["digits/mlp", "mnist/mlp", "cifar10/resnet8", "cifar100/wrn-28-10"])
def test_held_out_splits_are_disjoint_and_class_balanced(name, load):
    task = load(name)
    train, inner, outer = (rows(task, split) for split in ("train", "inner_valid", "outer_valid"))
    assert not train & inner
    assert not train & outer
    assert not inner & outer
    for split in ("inner_valid", "outer_valid"):
        counts = torch.bincount(task.data.splits_by_name[split].labels, minlength=task.num_classes)
        assert counts.max() - counts.min() <= 1


def test_the_splits_share_out_all_digits():
    task = load_task("digits/mlp")
    splits = [rows(task, split) for split in task.splits]
    assert task.splits == {"train": 1000, "inner_valid": 200, "outer_valid": 200, "test": 397}
    assert set().union(*splits) == set(range(1797))


def test_the_published_protocol_trains_on_49000_images_in_383_steps(load):
    task = load("cifar10/resnet18", inner_valid=1000, outer_valid=0)
    assert task.splits == {"train": 49_000, "inner_valid": 1000, "outer_valid": 0, "test": 10_000}
    assert task.steps_per_epoch(128) == 383
    assert torch.bincount(task.data.splits_by_name["inner_valid"].labels).tolist() == [100] * 10


def test_inner_valid_is_the_same_whatever_else_is_held_out():
    task = load_task("digits/mlp")
    assert rows(load_task("digits/mlp", outer_valid=0, train_size=100), "inner_valid") == rows(task, "inner_valid")
    assert rows(load_task("digits/mlp", outer_valid=0), "train") == rows(task, "train") | rows(task, "outer_valid")


def test_a_smaller_training_split_is_the_balanced_beginning_of_the_whole():
    task = load_task("digits/mlp", train_size=100)
    assert torch.bincount(task.data.splits_by_name["train"].labels).tolist() == [10] * 10
    assert rows(task, "train") < rows(load_task("digits/mlp"), "train")


def test_the_first_batches_of_an_evaluation_hold_all_classes():
    labels = load_task("digits/mlp").data.splits_by_name["outer_valid"].labels
    assert sorted(labels[:10].tolist()) == list(range(10))


@pytest.mark.parametrize("kind", ["uniform", "flip"])
def test_noise_spoils_the_training_labels_only(kind):
    clean, noisy = load_task("digits/mlp"), load_task("digits/mlp", label_noise=LabelNoise(kind, 1.0))
    for split in ("inner_valid", "outer_valid", "test"):
        assert torch.equal(clean.data.splits_by_name[split].labels, noisy.data.splits_by_name[split].labels)
    assert rows(clean, "train") == rows(noisy, "train")
    wrong = clean.data.splits_by_name["train"].labels != noisy.data.splits_by_name["train"].labels
    assert wrong.float().mean() > 0.85


def test_no_text_is_in_two_splits(load):
    task = load("shakespeare/lstm", inner_valid=300, outer_valid=200)
    text = task.data.tokens_by_split
    whole = torch.cat([text[name] for name in ("train", "outer_valid", "inner_valid", "test")])
    assert len(whole) == sum(task.splits.values())
    assert torch.equal(
        whole,
        torch.cat(
            [load("shakespeare/lstm").data.tokens_by_split[n] for n in ("train", "outer_valid", "inner_valid", "test")]
        ),
    )
