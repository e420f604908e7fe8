"""The table of tasks; a new task is one entry here, a reader or network in its own file, and one test."""

import difflib
from functools import partial
from pathlib import Path
from types import MappingProxyType

from metastep.tasks.digits import load_digits
from metastep.tasks.language import read_ptb, read_shakespeare
from metastep.tasks.networks.convnet import convnet
from metastep.tasks.networks.lenet import lenet5
from metastep.tasks.networks.lstm import LSTMLanguageModel
from metastep.tasks.networks.mlp import mlp
from metastep.tasks.networks.resnet import resnet
from metastep.tasks.networks.transformer import TransformerLanguageModel
from metastep.tasks.networks.wide_resnet import wide_resnet
from metastep.tasks.noise import LabelNoise
from metastep.tasks.request import Request
from metastep.tasks.task import Recipe, Task
from metastep.tasks.vision import CIFAR10, CIFAR100, MNIST

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
        inner_valid=200,
        outer_valid=200,
        learning_rate=0.05,
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
        inner_valid=200,
        outer_valid=200,
        learning_rate=0.1,
    ),
    Recipe(
        name="mnist/mlp",
        summary="perceptron with two hidden layers of 256 on MNIST",
        network=partial(mlp, inputs=784, hidden=(256, 256)),
        read=MNIST,
        batch_size=128,
        total_steps=1000,
        optimizer="sgd",
        optimizer_options=_SGD,
        inner_valid=1000,
        outer_valid=1000,
        learning_rate=0.05,
    ),
    Recipe(
        name="mnist/lenet5",
        summary="LeNet-5 on MNIST",
        network=lenet5,
        read=MNIST,
        batch_size=128,
        total_steps=1000,
        optimizer="sgd",
        optimizer_options=_SGD,
        inner_valid=1000,
        outer_valid=1000,
        learning_rate=0.05,
    ),
    Recipe(
        name="cifar10/resnet8",
        summary="ResNet-8 (75 thousand parameters) on CIFAR-10",
        network=partial(resnet, widths=(16, 32, 64), blocks=1, projection=False),
        read=CIFAR10,
        batch_size=128,
        optimizer="sgd",
        optimizer_options=_SGD,
        learning_rate=0.1,
        inner_valid=1000,
        outer_valid=5000,
        total_steps=1720,
    ),
    Recipe(
        name="cifar10/resnet18",
        summary="ResNet-18 (11 million parameters) on CIFAR-10",
        network=partial(resnet, widths=(64, 128, 256, 512), blocks=2, projection=True),
        read=CIFAR10,
        batch_size=128,
        optimizer="sgd",
        optimizer_options=_SGD,
        learning_rate=0.1,
        inner_valid=1000,
        outer_valid=5000,
        total_steps=344,
    ),
    Recipe(
        name="cifar100/wrn-28-10",
        summary="WRN-28-10 (37 million parameters) on CIFAR-100",
        network=partial(wide_resnet, depth=28, width=10),
        read=CIFAR100,
        batch_size=128,
        optimizer="sgd",
        optimizer_options=_SGD,
        learning_rate=0.1,
        inner_valid=1000,
        outer_valid=5000,
        total_steps=344,
    ),
    Recipe(
        name="ptb/lstm2",
        summary="2-layer LSTM of width 512 on Penn Treebank, by words",
        network=partial(LSTMLanguageModel, width=512, layers=2, dropout=0.5),
        read=partial(read_ptb, chunk=35),
        kind="language",
        batch_size=32,
        eval_batch_size=32,
        total_steps=660,
        optimizer="sgd",
        optimizer_options={"weight_decay": 5e-6},
        learning_rate=20.0,
        clip_norm=0.25,
        inner_valid=20_000,
        outer_valid=20_000,
    ),
    Recipe(
        name="ptb/lstm3",
        summary="3-layer LSTM of width 512 on Penn Treebank, by words",
        network=partial(LSTMLanguageModel, width=512, layers=3, dropout=0.5),
        read=partial(read_ptb, chunk=35),
        kind="language",
        batch_size=32,
        eval_batch_size=32,
        total_steps=660,
        optimizer="sgd",
        optimizer_options={"weight_decay": 5e-6},
        learning_rate=20.0,
        clip_norm=0.25,
        inner_valid=20_000,
        outer_valid=20_000,
    ),
    Recipe(
        name="shakespeare/lstm",
        summary="2-layer LSTM of width 128 on Shakespeare, by characters",
        network=partial(LSTMLanguageModel, width=128, layers=2, dropout=0.0),
        read=partial(read_shakespeare, chunk=64, recurrent=True),
        kind="language",
        batch_size=32,
        eval_batch_size=32,
        total_steps=1000,
        inner_valid=40_000,
        outer_valid=40_000,
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.01},
        learning_rate=0.01,
        clip_norm=1.0,
    ),
    Recipe(
        name="shakespeare/transformer",
        summary="2-block transformer of width 128 on Shakespeare, by characters",
        network=partial(TransformerLanguageModel, width=128, layers=2, heads=4, context=64),
        read=partial(read_shakespeare, chunk=64, recurrent=False),
        kind="language",
        batch_size=32,
        eval_batch_size=32,
        total_steps=1000,
        inner_valid=40_000,
        outer_valid=40_000,
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.1},
        learning_rate=3e-3,
        clip_norm=1.0,
    ),
)

RECIPES = MappingProxyType({recipe.name: recipe for recipe in _RECIPES})


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


def recipe_of(name: str) -> Recipe:
    """Give what is known of a task before its data are read.

    Raises:
        ValueError: If the name is unknown; the message has the nearest names.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the tasks are {', '.join(RECIPES)}."
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
    recipe = recipe_of(name)
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
