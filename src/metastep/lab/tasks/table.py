"""The table of tasks: a new task is a file in `datasets` and one line here."""

import difflib
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Final

from metastep.lab.tasks.own_model import is_code, own_recipe
from metastep.lab.tasks.splits import DataOptions, LabelNoise
from metastep.lab.tasks.task import METRICS, Recipe, Task

#: The files of `datasets`, each of which has a tuple TASKS of recipes. Names of tasks stay: runs are stored under them.
_DATASETS: Final = (
    "bundled",
    "image_sets",
    "imagenet",
    "language",
    "sentences",
    "generated",
    "fine_tuning",
    "own",
)


def _recipes() -> Iterator[tuple[str, Recipe]]:
    for name in _DATASETS:
        tasks: tuple[Recipe, ...] = import_module(f"metastep.lab.tasks.datasets.{name}").TASKS
        yield from ((recipe.name, recipe) for recipe in tasks)


RECIPES: Final = MappingProxyType(dict(_recipes()))

#: The lines between which a page holds the table.
BEGIN, END = "<!-- tasks: begin -->", "<!-- tasks: end -->"


def task_names() -> list[str]:
    """Give the names that `load_task` knows.

    Example:
        >>> task_names()[:2]
        ['digits/mlp', 'digits/convnet']
    """
    return list(RECIPES)


def describe_tasks() -> dict[str, str]:
    """Give one line about every task, by name.

    Example:
        >>> describe_tasks()["mnist/lenet5"]
        'LeNet-5 on MNIST'
    """
    return {name: recipe.summary for name, recipe in RECIPES.items()}


def recipe_of(name: str, data_dir: Path | str | None = None) -> Recipe:
    """Give what is known of a task before its data are read.

    Args:
        name: One of `task_names()`, or a model of the user's own, ``package.module:function``.
        data_dir: The data of such a model, see `own_recipe`.

    Raises:
        ValueError: If the name is unknown; the message has the nearest names.
    """
    data = None if data_dir is None else str(data_dir)
    if is_code(name):
        return own_recipe(name, data)
    if is_code(data):
        raise ValueError(f"data_dir must be a folder or a file for {name}, got the code {data}; give it with --model.")
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`metastep list tasks` names them."
        raise ValueError(f"name must be that of a task, got {name!r}; {hint}")
    return RECIPES[name]


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
        name: One of `task_names()`, or a model of your own, ``package.module:function``.
        data_dir: Folder that holds the data; None: METASTEP_DATA, or ./data, or ../shared/data.
        label_noise: Wrong labels in the training split, for classification; None: the task's own, mostly none.
        inner_valid: Examples (tokens) held out for meta-gradients; None: the task's default.
        outer_valid: Examples (tokens) held out for tuning and curves; None: the task's default. 0 puts them
            back into the training split.
        train_size: Train on the first so many examples (tokens) only; None: on all.

    Raises:
        ValueError: If the name is unknown, a size is impossible, or label noise is asked of a task without labels.
        MissingData: If the files are not there; the message says which are expected where.

    Example:
        >>> load_task("digits/mlp", inner_valid=100).splits
        {'train': 1100, 'inner_valid': 100, 'outer_valid': 200, 'test': 397}
    """
    recipe = recipe_of(name, data_dir)
    if label_noise is not None and recipe.kind != "classification":
        what = "text has no labels" if recipe.kind == "language" else "it predicts numbers and has no labels"
        raise ValueError(f"label_noise must be None for {name}, got {label_noise}; {what}.")
    options = DataOptions(
        inner_valid=recipe.inner_valid if inner_valid is None else inner_valid,
        outer_valid=recipe.outer_valid if outer_valid is None else outer_valid,
        train_size=train_size,
        data_dir=data_dir,
        label_noise=recipe.label_noise if label_noise is None else label_noise,
    )
    known = {**vars(recipe), "label_noise": options.label_noise}
    if recipe.pretrained:
        known["network"] = partial(recipe.network, data_dir=data_dir)
    return Task(**known, data=recipe.read(options))


def tasks_as_markdown() -> str:
    """Give the table of tasks for the documentation.

    Example:
        >>> "| `mnist/lenet5` | LeNet-5 on MNIST | accuracy |" in tasks_as_markdown()
        True
    """
    rows = [
        "| task | what it is | metric | inner_valid, outer_valid | steps x batch | optimizer |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in RECIPES.values():
        held_out = ", ".join("a tenth" if n is None else f"{n:,}" for n in (recipe.inner_valid, recipe.outer_valid))
        rows.append(
            f"| `{recipe.name}` | {recipe.summary} | {METRICS[recipe.kind]} | {held_out} | "
            f"{recipe.total_steps} x {recipe.batch_size} | {recipe.optimizer}, {recipe.learning_rate:g} |"
        )
    return "\n".join(rows)
