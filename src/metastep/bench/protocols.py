"""Meta-training as published, for the tasks it was published for; a small default for the others."""

from metastep.bench.config import MetaConfig, RunConfig
from metastep.tasks import LabelNoise, Task, load_task
from metastep.tasks.task import Recipe

_PUBLISHED_IMAGES = ("cifar10/resnet18", "cifar100/wrn-28-10")
_PUBLISHED_TEXT = ("ptb/lstm2", "ptb/lstm3")


def meta_training(recipe: Recipe, *, seed: int = 0, data_dir: str | None = None, device: str = "cpu") -> RunConfig:
    """Return the meta-training run of a task: the published protocol where there is one.

    Images (arXiv 2007.14546): 200 epochs of SGD without momentum, weight decay 5e-4, batch 128; 1000 class-balanced
    training images held out as validation data; a meta-update at the 300th step of each epoch; snapshots after epochs
    1, 100, 200. Text: 150 epochs of SGD, batch 32 of 35 words, gradient norm 0.25, weight decay 5e-6; meta-updates at
    steps 0, 300, 600 ... of each epoch; snapshots after epochs 1, 75, 150.

    Elsewhere: the task's length and batch, SGD without momentum, and about 100 meta-updates.
    """
    if recipe.name in _PUBLISHED_IMAGES + _PUBLISHED_TEXT:
        text = recipe.name in _PUBLISHED_TEXT
        inner_valid = recipe.inner_valid if text else 1000
        task = load_task(recipe.name, data_dir=data_dir, inner_valid=inner_valid, outer_valid=0)
        epoch = task.steps_per_epoch()
        epochs = 150 if text else 200
        return RunConfig(
            task=recipe.name,
            schedule="mlr-snet",
            seed=seed,
            optimizer="sgd",
            optimizer_options={"momentum": 0.0, "weight_decay": 5e-6 if text else 5e-4},
            lr=recipe.learning_rate,
            batch_size=recipe.batch_size,
            total_steps=epochs * epoch,
            clip_norm=recipe.clip_norm,
            inner_valid=inner_valid,
            outer_valid=0,
            data_dir=data_dir,
            device=device,
            eval_every=None,
            checkpoint_every=epoch,
            meta=MetaConfig(
                every=300, in_epoch=epoch, first=text, snapshots=(epoch, epochs // 2 * epoch, epochs * epoch)
            ),
        )
    steps = recipe.total_steps
    return RunConfig(
        task=recipe.name,
        schedule="mlr-snet",
        seed=seed,
        optimizer="sgd",
        optimizer_options={"momentum": 0.0, "weight_decay": recipe.optimizer_options.get("weight_decay", 0.0)},
        lr=recipe.learning_rate,
        batch_size=recipe.batch_size,
        total_steps=steps,
        clip_norm=recipe.clip_norm,
        data_dir=data_dir,
        device=device,
        eval_every=max(1, steps // 20),
        meta=MetaConfig(every=max(1, steps // 100), snapshots=thirds(steps)),
    )


def thirds(steps: int) -> tuple[int, ...]:
    """Steps after which snapshots are kept when nothing is published: near the beginning, in the middle, at the end."""
    return tuple(sorted({max(1, steps // 20), max(1, steps // 2), steps}))


def load_run_task(config: RunConfig) -> Task:
    """Read the data of a run's task as its configuration says."""
    noise = None if config.noise is None else LabelNoise(config.noise, config.noise_rate)
    return load_task(
        config.task,
        data_dir=config.data_dir,
        label_noise=noise,
        inner_valid=config.inner_valid,
        outer_valid=config.outer_valid,
        train_size=config.train_size,
    )
