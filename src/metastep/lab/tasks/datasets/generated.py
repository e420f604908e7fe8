"""Data that are drawn by scikit-learn's generators or here, always the same, and the tasks on them: long and cheap."""

import math
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from metastep.lab.tasks.data import CLASSES_OF_STANDARDISED_TARGETS, ExampleData, Examples, classified
from metastep.lab.tasks.networks.feedforward import mlp
from metastep.lab.tasks.sources import optional_module
from metastep.lab.tasks.splits import SPLITS, DataOptions, balanced_order, split_order, standardised
from metastep.lab.tasks.task import Recipe

_SEED: Final = 20070808
_TO_TEST: Final = 1000


def read_friedman(options: DataOptions, *, rows: int, noise: float) -> ExampleData:
    """Draw Friedman's first problem: y = 10 sin(pi x0 x1) + 20 (x2 - 1/2)^2 + 10 x3 + 5 x4 + noise, x of 10 columns.

    Args:
        options: Sizes of the splits.
        rows: Examples in all.
        noise: Standard deviation of the noise; that of y without it is about 4.9.
    """
    columns, answers = optional_module("sklearn.datasets").make_friedman1(rows, 10, noise=noise, random_state=_SEED)
    inputs, targets = torch.from_numpy(columns).float(), torch.from_numpy(answers).float()[:, None]
    parts = split_order(balanced_order(torch.zeros(rows, dtype=torch.int64)), options, test=_TO_TEST)
    inputs, targets = (standardised(tensor, parts["train"]) for tensor in (inputs, targets))
    return ExampleData(
        splits_by_name={name: Examples(inputs[parts[name]], targets[parts[name]]) for name in SPLITS},
        num_classes=CLASSES_OF_STANDARDISED_TARGETS,
        outputs=1,
        notes=f"Friedman's first problem (1991), {rows} rows drawn with a constant seed",
    )


def read_clusters(options: DataOptions, *, rows: int, flipped: float) -> ExampleData:
    """Draw 4 classes, each of 3 clusters on corners of a cube of 10 dimensions, turned into 20 columns.

    Args:
        options: Sizes of the splits, and the label noise.
        rows: Examples in all.
        flipped: Share of the labels that are drawn at random, in every split.
    """
    columns, answers = optional_module("sklearn.datasets").make_classification(
        rows,
        n_features=20,
        n_informative=10,
        n_redundant=5,
        n_classes=4,
        n_clusters_per_class=3,
        flip_y=flipped,
        random_state=_SEED,
    )
    inputs, labels = torch.from_numpy(columns).float(), torch.from_numpy(answers).long()
    return _of_classes(inputs, labels, options, f"scikit-learn's clusters, {rows} rows drawn with a constant seed")


def read_spirals(options: DataOptions, *, rows: int, turns: float, noise: float) -> ExampleData:
    """Draw points on 3 spirals, one a class, that wind around one another.

    Args:
        options: Sizes of the splits, and the label noise.
        rows: Examples in all.
        turns: Of each spiral around the centre.
        noise: Standard deviation of the noise of both coordinates; the outer radius is 1.
    """
    generator = torch.Generator().manual_seed(_SEED)
    labels = torch.arange(rows) % 3
    radius = torch.rand(rows, generator=generator).sqrt()
    angle = 2 * math.pi * (turns * radius + labels / 3)
    points = radius[:, None] * torch.stack((angle.cos(), angle.sin()), 1)
    points = points + noise * torch.randn(rows, 2, generator=generator)
    return _of_classes(points, labels, options, f"three spirals, {rows} points drawn with a constant seed")


def _of_classes(inputs: Tensor, labels: Tensor, options: DataOptions, notes: str) -> ExampleData:
    parts = split_order(balanced_order(labels), options, test=_TO_TEST)
    count = int(labels.max()) + 1
    splits = classified(standardised(inputs, parts["train"]), labels, parts, options=options, num_classes=count)
    return ExampleData(splits_by_name=splits, num_classes=count, notes=notes)


_ADAMW: Final[dict[str, Any]] = {
    "batch_size": 32,
    "optimizer": "adamw",
    "optimizer_options": {"weight_decay": 0.01},
    "inner_valid": 500,
    "outer_valid": 500,
}
_CLUSTERS: Final = partial(read_clusters, rows=6000, flipped=0.1)

TASKS: Final = (
    Recipe(
        name="friedman/mlp",
        kind="regression",
        summary="perceptron with two hidden layers of 64 (4.9 k) on Friedman's first problem, with noise",
        network=partial(mlp, inputs=10, hidden=(64, 64)),
        read=partial(read_friedman, rows=5000, noise=1.0),
        total_steps=6000,
        learning_rate=1e-3,
        **_ADAMW,
    ),
    Recipe(
        name="spirals/mlp",
        summary="perceptron with two hidden layers of 64 (4.5 k) on points of three spirals",
        network=partial(mlp, inputs=2, hidden=(64, 64)),
        read=partial(read_spirals, rows=5000, turns=1.5, noise=0.04),
        total_steps=8000,
        learning_rate=3e-3,
        **_ADAMW,
    ),
    Recipe(
        name="clusters/mlp",
        summary="perceptron with a hidden layer of 128 (3.2 k) on scikit-learn's clusters, 10 % of labels random",
        network=partial(mlp, inputs=20, hidden=(128,)),
        read=_CLUSTERS,
        total_steps=6000,
        learning_rate=1e-3,
        **_ADAMW,
    ),
    Recipe(
        name="clusters/mlp-deep",
        summary="perceptron with six hidden layers of 48 (13 k) on scikit-learn's clusters, 10 % of labels random",
        network=partial(mlp, inputs=20, hidden=(48,) * 6),
        read=_CLUSTERS,
        total_steps=3000,
        learning_rate=1e-3,
        **_ADAMW,
    ),
)
