"""CIFAR-10, CIFAR-100, MNIST, SVHN and TinyImageNet, in whichever standard layout they are found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from metastep.lab.tasks.cache import decoded_once
from metastep.lab.tasks.images import ImageData, ImageStore, split_images
from metastep.lab.tasks.loaders.cifar import read_cifar
from metastep.lab.tasks.loaders.decode import Labelled
from metastep.lab.tasks.loaders.idx import read_idx_pair
from metastep.lab.tasks.loaders.image_folder import read_image_files
from metastep.lab.tasks.loaders.parquet import read_parquet
from metastep.lab.tasks.loaders.svhn import read_svhn
from metastep.lab.tasks.loaders.tiny_imagenet import read_tiny_imagenet
from metastep.lab.tasks.request import Request
from metastep.lab.tasks.sources import Layout, find_files


@dataclass(frozen=True, kw_only=True)
class Format(Layout):
    """A layout, and how its files are read.

    Args:
        read: Files of one split to images and labels.
        encoded: Whether reading means decoding, so that the result is worth keeping.
    """

    read: Callable[[Sequence[Path]], Labelled]
    encoded: bool = True


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A published set of images; a `read` of the table of tasks.

    Args:
        title: Its name.
        formats: The layouts looked for, in order.
        shape: (H, W, channels).
        num_classes: Number of classes.
        mean: Per channel, for pixel values in [0, 1].
        std: Per channel, for pixel values in [0, 1].
        padding: Of the random crop; None: no augmentation.
        test_size: Test on so many images only, class-balanced; None: on all.
    """

    title: str
    formats: tuple[Format, ...]
    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int | None
    test_size: int | None = None

    def __call__(self, request: Request) -> ImageData:
        """Find, read and split the images."""
        found = find_files(self.title, self.formats, request.data_dir)
        train, test = (self._store(found.layout, files) for files in (found.train, found.test))
        return ImageData(
            splits_by_name=split_images(
                train, test, request=request, num_classes=self.num_classes, test_size=self.test_size
            ),
            num_classes=self.num_classes,
            notes=f"{self.title} from {found.folder.name}/{found.layout.train[0]}",
            mean=tuple(255 * value for value in self.mean),
            std=tuple(255 * value for value in self.std),
            padding=self.padding,
        )

    def _store(self, layout: Format, files: list[Path]) -> ImageStore:
        channels = self.shape[2]
        if layout.encoded:
            images, labels = decoded_once(files, partial(layout.read, files), variant=f"{channels} channels, last")
        else:
            images, labels = layout.read(files)
        where = files[0].parent
        if images.shape[1:] != self.shape:
            raise ValueError(f"{where} must hold images of shape {self.shape}, got {images.shape[1:]}.")
        if labels.size and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(
                f"{where} must hold labels in 0..{self.num_classes - 1}, got {labels.min()}..{labels.max()}."
            )
        return ImageStore(torch.from_numpy(images), torch.from_numpy(labels))


_CIFAR_SHAPE = (32, 32, 3)
# The original pixels come first: the hub's copies are often compressed once more.
CIFAR10 = ImageSet(
    title="CIFAR-10",
    formats=(
        Format(
            folders=("cifar-10-batches-py",),
            train=tuple(f"data_batch_{i}" for i in range(1, 6)),
            test=("test_batch",),
            read=read_cifar,
            encoded=False,
        ),
        Format(
            folders=("cifar10",),
            train=("train-*.parquet",),
            test=("test-*.parquet",),
            read=partial(read_parquet, channels=3),
        ),
        Format(
            folders=("cifar10",),
            train=("train/*/*.png",),
            test=("test/*/*.png",),
            read=partial(read_image_files, channels=3),
        ),
    ),
    shape=_CIFAR_SHAPE,
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    padding=4,
)
CIFAR100 = ImageSet(
    title="CIFAR-100",
    formats=(
        Format(folders=("cifar-100-python",), train=("train",), test=("test",), read=read_cifar, encoded=False),
        Format(
            folders=("cifar100",),
            train=("train-*.parquet",),
            test=("test-*.parquet",),
            read=partial(read_parquet, channels=3),
        ),
    ),
    shape=_CIFAR_SHAPE,
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    padding=4,
)
_IDX = ("images-idx3-ubyte", "labels-idx1-ubyte")
MNIST = ImageSet(
    title="MNIST",
    formats=(
        *(
            Format(
                folders=("mnist", "MNIST/raw"),
                train=tuple(f"train-{name}{suffix}" for name in _IDX),
                test=tuple(f"t10k-{name}{suffix}" for name in _IDX),
                read=read_idx_pair,
                encoded=False,
            )
            for suffix in ("", ".gz")
        ),
        Format(
            folders=("mnist10k", "mnist"),
            train=("train-*.parquet",),
            test=("test-*.parquet",),
            read=partial(read_parquet, channels=1),
        ),
    ),
    shape=(28, 28, 1),
    num_classes=10,
    mean=(0.1307,),
    std=(0.3081,),
    padding=None,
)
SVHN = ImageSet(
    title="SVHN",
    formats=(
        Format(
            folders=("svhn", "SVHN"),
            train=("train_32x32.mat",),
            test=("test_32x32.mat",),
            read=read_svhn,
        ),
        Format(
            folders=("svhn",),
            train=("train-*.parquet",),
            test=("test-*.parquet",),
            read=partial(read_parquet, channels=3),
        ),
    ),
    shape=_CIFAR_SHAPE,
    num_classes=10,
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    padding=None,  # a mirrored number is another one, or none
)
TINY_IMAGENET = ImageSet(
    title="TinyImageNet",
    formats=(
        Format(
            folders=("tiny-imagenet-200",),
            train=("train/*/images/*.JPEG",),
            test=("val/val_annotations.txt", "val/images/*.JPEG"),  # the labels of its own test are not published
            read=read_tiny_imagenet,
        ),
    ),
    shape=(64, 64, 3),
    num_classes=200,
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
    padding=4,
)
