"""The table of tasks; a new task is one entry here, a reader or network in its own file, and one test."""

import difflib
from functools import partial
from pathlib import Path
from types import MappingProxyType

from metastep.tasks.digits import load_digits
from metastep.tasks.networks.convnet import convnet
from metastep.tasks.networks.mlp import mlp
from metastep.tasks.noise import LabelNoise
from metastep.tasks.request import Request
from metastep.tasks.task import Recipe, Task

_SGD = {"momentum": 0.9, "weight_decay": 5e-4}

_RECIPES = (
    Recipe(
        name="digits/mlp",
        summary="perceptron with two hidden layers of 64 on scikit-learn's digits",
        network=partial(mlp, inputs=64, hidden=(64, 64)),
        read=load_digits,
        batch_size=32,
        total_steps=800,
        optimizer="sgd",
        optimizer_options=_SGD,
        learning_rate=0.05,
        inner_valid=200,
        outer_valid=200,
    ),
    Recipe(
        name="digits/convnet",
        summary="small convolutional network with batch norm on scikit-learn's digits",
        network=partial(convnet, channels=1, widths=(16, 32)),
        read=load_digits,
        batch_size=32,
        total_steps=800,
        optimizer="sgd",
        optimizer_options=_SGD,
        learning_rate=0.1,
        inner_valid=200,
        outer_valid=200,
    ),
)

RECIPES = MappingProxyType({recipe.name: recipe for recipe in _RECIPES})


def task_names() -> list[str]:
    """Give the names that `load_task` knows."""
    return list(RECIPES)


def describe_tasks() -> dict[str, str]:
    """Give one line about every task, by name."""
    return {name: recipe.summary for name, recipe in RECIPES.items()}


def load_task(
    name: str,
    *,
    data_dir: Path | str | None = None,
    label_noise: LabelNoise | None = None,
    inner_valid: int | None = None,
    outer_valid: int | None = None,
    train_size: int | None = None,
) -> Task:
    """Read a task's data and give the task.

    The splits are drawn with a constant seed: every run, whatever its own seed, trains and is judged on the
    same examples. The held-out splits are class-balanced.

    Args:
        name: One of `task_names()`.
        data_dir: Folder that holds the data; None: METASTEP_DATA, or ./data, or ../shared/data.
        label_noise: Wrong labels in the training split, for classification.
        inner_valid: Examples (tokens) held out for meta-gradients; None: the task's default.
        outer_valid: Examples (tokens) held out for tuning and curves; None: the task's default. 0 puts them
            back into the training split.
        train_size: Train on the first so many examples (tokens) only; None: on all.

    Raises:
        ValueError: If the name is unknown, a size is impossible, or label noise is asked of a language task.
        MissingData: If the files are not there; the message says which are expected where.

    Example:
        >>> load_task("digits/mlp", inner_valid=100).splits
        {'train': 1100, 'inner_valid': 100, 'outer_valid': 200, 'test': 397}
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the tasks are {', '.join(RECIPES)}."
        raise ValueError(f"name must be that of a task, got {name!r}; {hint}")
    recipe = RECIPES[name]
    if label_noise is not None and recipe.kind == "language":
        raise ValueError(f"label_noise must be None for {name}, got {label_noise}; text has no labels.")
    request = Request(
        inner_valid=recipe.inner_valid if inner_valid is None else inner_valid,
        outer_valid=recipe.outer_valid if outer_valid is None else outer_valid,
        train_size=train_size,
        data_dir=data_dir,
        label_noise=label_noise,
    )
    return Task(**vars(recipe), data=recipe.read(request))
