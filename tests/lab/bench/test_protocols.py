"""The settings of a run, and the published ones of meta-training."""

from pathlib import Path

import pytest
import torch

from metastep.lab.bench.protocols import load_run_task, meta_training, training
from metastep.lab.bench.run import Run
from metastep.lab.tasks import MissingData
from metastep.lab.tasks.table import recipe_of
from metastep.schedules import MLRSNet


def published(name: str, **options):
    """The protocol, or a skip that names the task."""
    try:
        return meta_training(recipe_of(name), **options)
    except MissingData as missing:
        pytest.skip(f"{name}: {missing}")


def test_resnet18_on_cifar10_is_learned_as_published() -> None:
    config = published("cifar10/resnet18")
    task = load_run_task(config)
    assert task.splits == {"train": 49_000, "inner_valid": 1000, "outer_valid": 0, "test": 10_000}
    labels = next(task.batches("inner_valid", batch_size=1000)).targets
    assert labels.bincount().tolist() == [100] * 10
    assert (config.batch_size, config.total_steps) == (128, 200 * 383)
    assert (config.optimizer, config.optimizer_options) == ("sgd", {"momentum": 0.0, "weight_decay": 5e-4})
    meta = config.meta
    assert meta is not None
    assert [step for step in range(2 * 383) if meta.learns_at(step)] == [299, 383 + 299]
    assert meta.snapshots == (383, 100 * 383, 200 * 383)
    assert (meta.meta_lr, meta.hidden_size, meta.num_layers, meta.batch_size) == (1e-3, 50, 1, None)
    assert (config.clip_norm, config.warmup_steps) == (None, 0)


def test_lstm2_on_ptb_is_learned_as_published() -> None:
    config = published("ptb/lstm2")
    task, meta = load_run_task(config), config.meta
    epoch = task.steps_per_epoch()
    assert meta is not None
    assert (config.batch_size, config.clip_norm) == (32, 0.25)
    assert (config.optimizer, config.optimizer_options) == ("sgd", {"momentum": 0.0, "weight_decay": 5e-6})
    assert config.total_steps == 150 * epoch
    assert meta.snapshots == (epoch, 75 * epoch, 150 * epoch)
    learned = [step for step in range(2 * epoch) if meta.learns_at(step)]
    assert learned == [start + step for start in (0, epoch) for step in range(0, epoch, 300)]
    batch = next(task.batches("train"))
    assert batch.inputs.shape == (32, 35)
    model = task.make_model()
    assert {type(m).__name__ for m in model.modules()} >= {"LSTM", "Embedding"}


@pytest.mark.parametrize("name", ["cifar10/resnet18", "ptb/lstm2"])
def test_the_published_protocols_run(name: str, tmp_path: Path) -> None:
    every = {"cifar10/resnet18": 2, "ptb/lstm2": None}[name]  # text learns in its step 0 by itself
    config = published(name, steps=2, meta={"every": every}, threads=1, test=False, batch_size=4)
    run = Run(config, tmp_path, tensorboard=False)
    before = [weight.clone() for weight in run.trainer.lr.schedule.parameters()]
    record = run.execute()
    assert record.status == "finished"
    assert record.meta["loss"][-1] is not None
    learner = run.trainer.learner
    assert learner is not None
    assert (learner.meta_updates, learner.skipped_updates) == (1, 0)
    (group,) = learner.meta_optimizer.param_groups
    assert type(learner.meta_optimizer) is torch.optim.Adam
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-4)
    assert isinstance(run.trainer.lr.schedule, MLRSNet)
    assert any(not torch.equal(a, b) for a, b in zip(before, run.trainer.lr.schedule.parameters(), strict=True))
    assert (tmp_path / "schedule.safetensors").exists()


def test_the_published_epochs_follow_the_batch_size() -> None:
    config = published("cifar10/resnet18", batch_size=64, epochs=10)
    assert config.total_steps == 10 * 766
    assert config.meta is not None
    assert config.meta.in_epoch == 766
    assert config.meta.snapshots == (766, 5 * 766, 10 * 766)


def test_elsewhere_there_are_about_a_hundred_meta_updates_and_three_snapshots() -> None:
    config = meta_training(recipe_of("digits/convnet"), seed=3)
    assert config.total_steps == 800
    assert config.seed == 3
    assert config.optimizer_options == {"momentum": 0.0, "weight_decay": 5e-4}
    assert config.meta is not None
    assert (config.meta.every, config.meta.in_epoch, config.meta.snapshots) == (8, None, (40, 400, 800))


def test_what_is_given_wins_over_what_is_published() -> None:
    meta = {"every": 7, "meta_lr": 0.1, "hidden_size": None, "num_layers": 2}
    config = meta_training(recipe_of("digits/mlp"), steps=50, momentum=0.9, weight_decay=0.0, meta=meta)
    assert config.optimizer_options == {"momentum": 0.9, "weight_decay": 0.0}
    assert config.meta is not None
    assert (config.meta.every, config.meta.meta_lr, config.meta.hidden_size, config.meta.num_layers) == (7, 0.1, 50, 2)
    assert meta_training(recipe_of("digits/mlp"), optimizer="adam").optimizer_options == {"weight_decay": 5e-4}


def test_a_run_is_the_tasks_where_nothing_is_said() -> None:
    recipe = recipe_of("digits/mlp")
    config = training(recipe, schedule="cosine")
    assert (config.lr, config.batch_size, config.total_steps) == (0.05, 32, 800)
    assert config.optimizer_options == dict(recipe.optimizer_options)
    assert (config.log_every, config.eval_every, config.meta) == (8, 40, None)


def test_epochs_set_the_length_and_how_often_is_looked() -> None:
    config = training(recipe_of("digits/mlp"), schedule="mlr-snet", learns=True, epochs=2.5, batch_size=10)
    assert config.total_steps == 250  # 1000 training examples
    assert (config.log_every, config.eval_every) == (2, 12)
    assert config.meta is not None
    assert config.meta.every == 2
    assert training(recipe_of("digits/mlp"), schedule="cosine", epochs=0.001).total_steps == 1


def test_another_optimizer_does_not_get_the_options_of_the_tasks_own() -> None:
    config = training(recipe_of("digits/mlp"), schedule="cosine", optimizer="adamw", weight_decay=0.1)
    assert config.optimizer_options == {"weight_decay": 0.1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 5, "epochs": 1.0}, "steps and epochs must not both be given, got 5 and 1.0"),
        ({"epochs": -1.0}, "epochs must be > 0 and finite, got -1.0"),
        ({"epochs": float("inf")}, "epochs must be > 0 and finite, got inf"),
        ({"steps": -4}, "total_steps must be >= 1, got -4"),
    ],
)
def test_a_length_that_makes_no_sense_is_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        training(recipe_of("digits/mlp"), schedule="cosine", **options)
