"""Data that come with scikit-learn, always there, and the tasks on them, whose steps take milliseconds."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from metastep.lab.tasks.data import CLASSES_OF_STANDARDISED_TARGETS, ExampleData, Examples, classified
from metastep.lab.tasks.images import ImageData, ImageStore, as_reconstruction, split_images
from metastep.lab.tasks.networks.feedforward import autoencoder, convnet, mlp
from metastep.lab.tasks.networks.resnet import resnet
from metastep.lab.tasks.networks.sequence import VisionTransformer
from metastep.lab.tasks.sources import optional_module
from metastep.lab.tasks.splits import (
    SPLIT_SEED,
    SPLITS,
    DataOptions,
    LabelNoise,
    balanced_order,
    split_order,
    standardised,
)
from metastep.lab.tasks.task import Recipe

Table = Literal["diabetes", "breast_cancer", "wine", "iris"]
_DIGITS_TO_TEST: Final = 397
_TEST_SHARE: Final = 0.25


def load_digits(options: DataOptions) -> ImageData:
    """Read the digits, 1,797 grey 8 x 8 images whose pixels have the 17 values 0..16."""
    bunch = optional_module("sklearn.datasets").load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(3)  # (1797, 8, 8, 1)
    store = ImageStore(images, torch.from_numpy(bunch.target).long())
    return ImageData(
        splits_by_name=split_images(store, _DIGITS_TO_TEST, options=options, num_classes=10),
        num_classes=10,
        mean=(4.884,),
        std=(6.017,),
        notes="scikit-learn's bundled digits, 1797 images of 8 x 8 pixels",
    )


def load_digits_to_reconstruct(options: DataOptions) -> ImageData:
    """Read the digits, each of which is its own target."""
    return as_reconstruction(load_digits(options))


def read_noisy_digits(options: DataOptions, *, noise: float) -> ExampleData:
    """Read the digits with noise on every pixel, always the same; the clean pixels are the targets.

    Args:
        options: Sizes of the splits.
        noise: Standard deviation of the noise, that of all pixels being 1.
    """
    clean, rows = _pixels(options)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    noisy = (clean + noise * torch.randn(clean.shape, generator=generator)) / (1 + noise**2) ** 0.5
    return _numbers_from(noisy, clean, rows, "scikit-learn's bundled digits, with noise")


def read_halves_of_digits(options: DataOptions) -> ExampleData:
    """Read the digits, cut in two: the upper 32 pixels are the inputs, the lower 32 the targets."""
    pixels, rows = _pixels(options)
    return _numbers_from(pixels[:, :32], pixels[:, 32:], rows, "scikit-learn's bundled digits, in halves")


def _pixels(options: DataOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """The normalised pixels of the digits, (1797, 64), and the positions of every split."""
    data = load_digits(options)
    (mean,), (std,) = data.mean, data.std
    images = data.splits_by_name["train"].store.images
    return (images.flatten(1).float() - mean) / std, {name: data.splits_by_name[name].rows for name in SPLITS}


def _numbers_from(inputs: Tensor, targets: Tensor, rows: Mapping[str, Tensor], notes: str) -> ExampleData:
    return ExampleData(
        splits_by_name={name: Examples(inputs[rows[name]], targets[rows[name]]) for name in SPLITS},
        num_classes=CLASSES_OF_STANDARDISED_TARGETS,
        outputs=targets.shape[1],
        notes=notes,
    )


def read_table(options: DataOptions, *, table: Table) -> ExampleData:
    """Read and split a table; features, and the numbers to predict, are standardised by the training split.

    Args:
        options: Sizes of the splits, and the label noise.
        table: Which.
    """
    columns, answers = getattr(optional_module("sklearn.datasets"), f"load_{table}")(return_X_y=True)
    inputs = torch.from_numpy(columns).float()
    # Of one class for the split's purposes, so that the order is merely random: held-out classes that are evened out
    # would leave the small training split uneven.
    order = balanced_order(torch.zeros(len(inputs), dtype=torch.int64))
    rows = split_order(order, options, test=round(_TEST_SHARE * len(order)))
    inputs = standardised(inputs, rows["train"])
    notes = f"scikit-learn's bundled {table.replace('_', ' ')} table, {len(order)} rows of {inputs.shape[1]} numbers"
    if table == "diabetes":
        targets = standardised(torch.from_numpy(answers).float()[:, None], rows["train"])
        splits = {name: Examples(inputs[rows[name]], targets[rows[name]]) for name in SPLITS}
        return ExampleData(splits_by_name=splits, num_classes=CLASSES_OF_STANDARDISED_TARGETS, outputs=1, notes=notes)
    classes = torch.from_numpy(answers).long()
    count = int(classes.max()) + 1
    splits = classified(inputs, classes, rows, options=options, num_classes=count)
    return ExampleData(splits_by_name=splits, num_classes=count, notes=notes)


def _recipe(name: str, summary: str, network: Callable[[int], nn.Module], rate: float, **other: Any) -> Recipe:
    settings: dict[str, Any] = {
        "read": load_digits,
        "batch_size": 32,
        "total_steps": 200,
        "optimizer": "sgd",
        "optimizer_options": {"momentum": 0.9, "weight_decay": 5e-4},
        "inner_valid": 200,
        "outer_valid": 200,
        **other,
    }
    return Recipe(name=name, summary=summary, network=network, learning_rate=rate, **settings)


def _table_recipe(
    name: str, summary: str, network: Callable[[int], nn.Module], rate: float, table: Table, held_out: int, **other: Any
) -> Recipe:
    sizes = {"batch_size": 16, "inner_valid": held_out, "outer_valid": held_out}
    return _recipe(name, summary, network, rate, read=partial(read_table, table=table), **sizes, **other)


_ADAMW: Final = {"optimizer": "adamw", "optimizer_options": {"weight_decay": 0.0}}
_PERCEPTRON: Final = partial(mlp, inputs=64, hidden=(64, 64))

TASKS: Final = (
    _recipe(
        "digits/mlp",
        "perceptron with two hidden layers of 64 (9.0 k parameters) on scikit-learn's digits",
        _PERCEPTRON,
        0.05,
        total_steps=800,
    ),
    _recipe(
        "digits/convnet",
        "two 3 x 3 convolutions with batch norm (5.2 k) on scikit-learn's digits",
        partial(convnet, channels=1, widths=(16, 32)),
        0.1,
        total_steps=800,
    ),
    _recipe(
        "digits/mlp-noisy",
        "the perceptron with 40 % of the training labels drawn at random",
        _PERCEPTRON,
        0.05,
        label_noise=LabelNoise("uniform", 0.4),
    ),
    _recipe(
        "digits/resnet",
        "ResNet of 8, 16, 32 channels, one block each (19 k), on scikit-learn's digits",
        partial(resnet, widths=(8, 16, 32), blocks=1, projection=False, channels=1),
        0.05,
    ),
    _recipe(
        "digits/vit",
        "vision transformer, 2 blocks of width 32 on patches of 2 x 2 (26 k), on scikit-learn's digits",
        partial(VisionTransformer, channels=1, size=8, patch=2, width=32, layers=2, heads=4),
        5e-3,
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.05},
    ),
    _recipe(
        "digits/autoencoder",
        "autoencoder 64-32-8-32-64 (4.7 k) of scikit-learn's digits",
        partial(autoencoder, hidden=(32,), code=8),
        0.01,
        read=load_digits_to_reconstruct,
        kind="reconstruction",
        **_ADAMW,
    ),
    _table_recipe(
        "diabetes/mlp",
        "perceptron with a hidden layer of 32 (385) on scikit-learn's diabetes",
        partial(mlp, inputs=10, hidden=(32,)),
        0.01,
        "diabetes",
        60,
        kind="regression",
    ),
    _table_recipe(
        "breast-cancer/linear",
        "logistic regression (62) on scikit-learn's breast cancer",
        partial(mlp, inputs=30, hidden=()),
        0.05,
        "breast_cancer",
        80,
    ),
    _table_recipe(
        "wine/mlp",
        "perceptron with a hidden layer of 16 (275) on scikit-learn's wine",
        partial(mlp, inputs=13, hidden=(16,)),
        0.1,
        "wine",
        30,
    ),
    _table_recipe(
        "breast-cancer/mlp",
        "perceptron with two hidden layers of 32 (2.1 k) on scikit-learn's breast cancer",
        partial(mlp, inputs=30, hidden=(32, 32)),
        1e-3,
        "breast_cancer",
        80,
        total_steps=2000,
        **_ADAMW,
    ),
    _table_recipe(
        "iris/mlp",
        "perceptron with a hidden layer of 16 (131) on scikit-learn's iris",
        partial(mlp, inputs=4, hidden=(16,)),
        1e-2,
        "iris",
        25,
        total_steps=1000,
        **_ADAMW,
    ),
    _recipe(
        "digits/denoising",
        "autoencoder 64-128-32-128-64 (25 k) of scikit-learn's digits, from pixels with noise to pixels without",
        partial(autoencoder, hidden=(128,), code=32),
        1e-3,
        read=partial(read_noisy_digits, noise=1.0),
        kind="reconstruction",
        total_steps=5000,
        **_ADAMW,
    ),
    _recipe(
        "digits/lower-half",
        "perceptron with two hidden layers of 128 (25 k) that predicts the lower half of a digit from the upper",
        partial(mlp, inputs=32, hidden=(128, 128)),
        1e-3,
        read=read_halves_of_digits,
        kind="reconstruction",
        total_steps=3000,
        **_ADAMW,
    ),
)
