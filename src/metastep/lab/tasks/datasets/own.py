"""Tasks on a user's own data: images in folders or parquet files, and text, for the networks of the package."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from metastep.lab.tasks.data import TaskData
from metastep.lab.tasks.datasets.language import character_data
from metastep.lab.tasks.images import ImageData, ImageStore, split_images
from metastep.lab.tasks.loaders.arrays import check_labels
from metastep.lab.tasks.loaders.encoded import Labelled, decoded_once
from metastep.lab.tasks.loaders.folders import IMAGE_SUFFIXES, class_names, image_files, read_image_files
from metastep.lab.tasks.loaders.parquet import read_parquet
from metastep.lab.tasks.networks.feedforward import convnet
from metastep.lab.tasks.networks.resnet import resnet
from metastep.lab.tasks.networks.sequence import LSTMLanguageModel, TransformerLanguageModel
from metastep.lab.tasks.sources import MissingData, visible_files
from metastep.lab.tasks.splits import DataOptions
from metastep.lab.tasks.task import Recipe
from metastep.lab.tasks.text import TextData

_SIDE: Final = 64  # images of several sizes, or larger ones, are scaled to so many pixels squared
_IMAGES: Final = f"CLASS/*{{{','.join(IMAGE_SUFFIXES)}}} or *.parquet"
_TEST_SHARE: Final = 0.15  # where no test data are named
_TRAIN, _TEST = ("train",), ("test", "val", "validation")


def read_own_images(options: DataOptions) -> ImageData:
    """Read the images in `data_dir`: CLASS/*.png in folders, or parquet files; train and test apart where they are.

    Folders: train/CLASS/* and test/CLASS/* (or val/CLASS/*), or CLASS/* alone. Parquet: train*.parquet and
    test*.parquet (or val*.parquet), or any files. Without a test 15 % of the images are kept for it. Images of several
    sizes, or with more than 64 pixels a side, are scaled to 64 x 64. Nothing is augmented.

    Raises:
        MissingData: If `data_dir` is not given or holds no images.
        ValueError: If there are fewer than 2 classes, or test images of a class without training images.
    """
    place = _place(options, f"a folder with {_IMAGES}")
    train, test, names = _read_parquet(place) or _read_folders(place)
    images, labels = train
    num_classes = int(labels.max()) + 1
    if num_classes < 2:
        raise ValueError(f"{place} must hold images of at least 2 classes, got {num_classes}: {', '.join(names)}.")
    if test is not None:
        check_labels(test[1], num_classes, f"the test images of {place}")
    stores = [ImageStore(torch.from_numpy(part[0]), torch.from_numpy(part[1])) for part in (train, test) if part]
    if len({store.images.shape[1:] for store in stores}) > 1:
        raise ValueError(f"{place} must hold test images of the training images' size; resize them.")
    splits = split_images(
        stores[0],
        stores[1] if test is not None else round(_TEST_SHARE * len(labels)),
        options=options,
        num_classes=num_classes,
    )
    pixels = stores[0].images[splits["train"].rows[:5000]].double()
    return ImageData(
        splits_by_name=splits,
        num_classes=num_classes,
        notes=f"own images, {len(labels)} of {images.shape[2]} x {images.shape[1]} pixels to train and hold out from, "
        f"{num_classes} classes",
        mean=tuple(pixels.mean((0, 1, 2)).tolist()),
        std=tuple(pixels.std((0, 1, 2)).clamp_min(1.0).tolist()),
    )


_Read = tuple[Labelled, Labelled | None, list[str]]  # to train and hold out from, to test, names of the classes


def _read_parquet(place: Path) -> _Read | None:
    files = [place] if place.is_file() else visible_files(place, "*.parquet")
    if not files or files[0].suffix != ".parquet":
        return None
    train, test = ([f for f in files if f.name.startswith(names)] for names in (_TRAIN, _TEST))
    if not train or not test:
        train, test = files, []
    read = partial(read_parquet, channels=3, fit=_SIDE)
    parts = [decoded_once(f, partial(read, f), variant=f"fit {_SIDE}") for f in (train, test) if f]
    return parts[0], parts[1] if test else None, [str(label) for label in sorted(set(parts[0][1].tolist()))]


def _read_folders(place: Path) -> _Read:
    folders = [next((place / name for name in names if (place / name).is_dir()), None) for names in (_TRAIN, _TEST)]
    if folders[0] is None:
        folders = [place, None]
    train, test = ([] if folder is None else image_files(folder) for folder in folders)
    if not train:
        raise MissingData(f"data_dir must hold {_IMAGES}, got none in {place}.")
    names = class_names(train)
    read = partial(read_image_files, channels=3, names=names, fit=_SIDE)
    parts = [decoded_once(f, partial(read, f), variant=f"fit {_SIDE}, {names}") for f in (train, test) if f]
    return parts[0], parts[1] if test else None, names


def read_own_text(options: DataOptions, *, chunk: int, recurrent: bool) -> TextData:
    """Read a text by characters; `data_dir` is the file, or a folder that holds one .txt. The last tenth is the test.

    Raises:
        MissingData: If `data_dir` is not given or holds no text.
        ValueError: If the text is too short, or in another encoding than UTF-8.
    """
    place = _place(options, "a text file")
    files = [place] if place.is_file() else visible_files(place, "*.txt")
    if len(files) != 1:
        raise MissingData(f"data_dir must be a text file, or a folder with one .txt, got {len(files)} in {place}.")
    return character_data(files[0], options, chunk=chunk, recurrent=recurrent, test=None, title=files[0].name)


def _place(options: DataOptions, what: str) -> Path:
    if options.data_dir is None:
        raise MissingData(f"data_dir must name your data for this task: {what}; --data PATH on the command line.")
    place = Path(options.data_dir).expanduser()
    if not place.exists():
        raise MissingData(f"data_dir must be {what}, got {place}, which is not there.")
    return place


def _recipe(
    name: str,
    summary: str,
    network: Callable[[int], nn.Module],
    read: Callable[[DataOptions], TaskData],
    rate: float,
    **other: Any,
) -> Recipe:
    settings: dict[str, Any] = {"batch_size": 32, "total_steps": 1000, "optimizer": "adamw", **other}
    settings.setdefault("optimizer_options", {"weight_decay": 0.01})
    return Recipe(
        name=name,
        summary=f"{summary}: --data PATH",
        network=network,
        read=read,
        learning_rate=rate,
        inner_valid=None,
        outer_valid=None,
        **settings,
    )


_SGD: Final = {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9, "weight_decay": 5e-4}}
_TEXT: Final = {"kind": "language", "eval_batch_size": 32, "clip_norm": 1.0}

TASKS: Final = (
    _recipe(
        "own-images/convnet",
        "three 3 x 3 convolutions with batch norm on your own images, in a folder per class or parquet files",
        partial(convnet, channels=3, widths=(16, 32, 64)),
        read_own_images,
        3e-3,
    ),
    _recipe(
        "own-images/resnet8",
        "ResNet-8 on your own images",
        partial(resnet, widths=(16, 32, 64), blocks=1, projection=False),
        read_own_images,
        0.05,
        **_SGD,
    ),
    _recipe(
        "own-images/resnet18",
        "ResNet-18 (11 million parameters) on your own images",
        partial(resnet, widths=(64, 128, 256, 512), blocks=2, projection=True),
        read_own_images,
        0.05,
        **_SGD,
    ),
    _recipe(
        "own-text/lstm",
        "1-layer LSTM of width 128 on your own text file, by characters",
        partial(LSTMLanguageModel, width=128, layers=1, dropout=0.0),
        partial(read_own_text, chunk=64, recurrent=True),
        0.01,
        **_TEXT,
    ),
    _recipe(
        "own-text/transformer",
        "2-block transformer of width 128 on your own text file, by characters",
        partial(TransformerLanguageModel, width=128, layers=2, heads=4, context=64),
        partial(read_own_text, chunk=64, recurrent=False),
        3e-3,
        **_TEXT,
    ),
)
