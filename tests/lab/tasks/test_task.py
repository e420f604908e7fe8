"""Loading and evaluating a task; what is said about bad input."""

import pickle

import pytest
import torch
from torch.nn.functional import cross_entropy

from metastep.lab.tasks import load_task


@pytest.fixture(scope="module")
def task():
    return load_task("digits/convnet")


@pytest.fixture
def model(task):
    torch.manual_seed(0)
    return task.make_model()


def test_an_evaluation_is_the_mean_over_the_clean_images_in_eval_mode(task, model):
    split = task.data.splits_by_name["outer_valid"]
    images = (split.store.images[split.rows].permute(0, 3, 1, 2).double() - 4.884) / 6.017
    with torch.no_grad():
        logits = model.double().eval()(images)
    model.train()
    scores = task.evaluate(model.float(), "outer_valid", batch_size=64)  # 200 = 3 * 64 + 8
    assert scores["loss"] == pytest.approx(cross_entropy(logits, split.labels).item(), rel=1e-5)
    assert scores["accuracy"] == (logits.argmax(1) == split.labels).double().mean().item()


def test_an_evaluation_of_some_batches_looks_at_those_only(task, model):
    whole, first = task.evaluate(model, "test"), task.evaluate(model, "test", batch_size=40, max_batches=1)
    assert (first["accuracy"] * 40) % 1 == pytest.approx(0, abs=1e-9)
    assert first != whole
    assert task.evaluate(model, "test", batch_size=40, max_batches=1000)["accuracy"] == whole["accuracy"]


def test_an_evaluation_that_fails_puts_the_flags_back(task):
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    model = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        task.evaluate(model, "test")
    assert model.training


def test_the_loss_is_the_mean_cross_entropy_with_a_graph(task, model):
    batch = next(task.batches("train"))
    loss = task.loss(model, batch)
    assert loss.requires_grad
    assert torch.equal(loss, cross_entropy(model(batch.inputs), batch.targets))


def test_a_task_can_be_sent_to_another_process(task):
    copy = pickle.loads(pickle.dumps(task))
    assert torch.equal(next(copy.batches("train")).inputs, next(task.batches("train")).inputs)


def test_an_unknown_task_is_refused_with_the_nearest_names():
    with pytest.raises(
        ValueError, match="'cifar10/resnet9'; did you mean cifar10/resnet8 or cifar10/resnet34 or cifar10/resnet18"
    ):
        load_task("cifar10/resnet9")
    with pytest.raises(ValueError, match=r"got '%%'; `metastep list tasks` names them"):
        load_task("%%")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_valid": -1}, r"^inner_valid must be >= 0, got -1; use 0"),
        ({"outer_valid": -5}, r"^outer_valid must be >= 0, got -5; use 0"),
        (
            {"inner_valid": 1000, "outer_valid": 500},
            r"^inner_valid \+ outer_valid must be <= 1400, got 1000 \+ 500",
        ),
        (
            {"inner_valid": 1000, "outer_valid": 400},
            r"^inner_valid \+ outer_valid must leave examples to train on",
        ),
        ({"train_size": 0}, r"^train_size must be in 1..1000, got 0"),
        ({"train_size": -3}, r"^train_size must be in 1..1000, got -3"),
        ({"train_size": 1001}, r"^train_size must be in 1..1000, got 1001"),
    ],
)
def test_impossible_sizes_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        load_task("digits/mlp", **options)


def test_an_empty_split_is_allowed_until_it_is_asked_for():
    task = load_task("digits/mlp", inner_valid=0)
    assert task.splits["inner_valid"] == 0
    message = r"^split 'inner_valid' of digits/mlp is empty; load the task with inner_valid > 0\.$"
    with pytest.raises(ValueError, match=message):
        task.batches("inner_valid")
    with pytest.raises(ValueError, match=message):
        task.evaluate(task.make_model(), "inner_valid")


def test_other_bad_arguments_are_refused_by_name(task, model):
    with pytest.raises(ValueError, match=r"^split must be one of train, inner_valid, outer_valid, test, got 'valid'"):
        task.batches("valid")
    with pytest.raises(ValueError, match=r"^batch_size must be >= 1, got 0"):
        task.batches("train", batch_size=0)
    with pytest.raises(ValueError, match=r"^batch_size must be >= 1, got -1"):
        task.steps_per_epoch(-1)
    with pytest.raises(ValueError, match=r"^max_batches must be >= 1 or None, got 0"):
        task.evaluate(model, "test", max_batches=0)
