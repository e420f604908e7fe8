"""Published sets of images in whichever standard layout they are found, and the tasks on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from metastep.lab.tasks.data import TaskData
from metastep.lab.tasks.images import ImageData, ImageStore, as_reconstruction, split_images
from metastep.lab.tasks.loaders.arrays import check_labels, read_idx_pair, read_svhn
from metastep.lab.tasks.loaders.cifar import read_cifar
from metastep.lab.tasks.loaders.encoded import Labelled, decoded_once
from metastep.lab.tasks.loaders.folders import class_names, image_files, read_image_files, read_tiny_imagenet
from metastep.lab.tasks.loaders.parquet import read_parquet
from metastep.lab.tasks.networks.feedforward import autoencoder, cnn, convnet, lenet5, mlp
from metastep.lab.tasks.networks.mobile import mobilenet_v2, shufflenet_v2
from metastep.lab.tasks.networks.nasnet import NASNetA
from metastep.lab.tasks.networks.resnet import resnet, wide_resnet
from metastep.lab.tasks.networks.sequence import VisionTransformer
from metastep.lab.tasks.sources import FileLayout, find_files
from metastep.lab.tasks.splits import DataOptions
from metastep.lab.tasks.task import Recipe


@dataclass(frozen=True, kw_only=True)
class FileFormat(FileLayout):
    """A layout, and how its files are read.

    Args:
        read: Files of one split to images and labels.
        encoded: Whether reading means decoding, so that the result is worth keeping.
        by_folder: Whether the class is the name of an image's folder, below train/ and test/. `read` is then also given
            `names`, the classes of the training images, so that all splits are numbered alike.
    """

    read: Callable[..., Labelled]
    encoded: bool = True
    by_folder: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A published set of images; the `read` of a task.

    Args:
        title: Its name.
        formats: The layouts looked for, in order.
        shape: (H, W, channels).
        num_classes: Number of classes.
        mean: Per channel, for pixel values in [0, 1].
        std: Per channel, for pixel values in [0, 1].
        padding: Of the random crop; None: no augmentation.
        test_size: Test on so many images only, class-balanced; None: on all.
        classes: Use only the images of these classes, numbered from 0 in this order; None: all.
    """

    title: str
    formats: tuple[FileFormat, ...]
    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int | None
    test_size: int | None = None
    classes: range | None = None

    def __call__(self, options: DataOptions) -> ImageData:
        """Find, read and split the images."""
        found = find_files(self.title, self.formats, options.data_dir)
        files, read = (found.train, found.test), found.layout.read
        if found.layout.by_folder:
            files = (image_files(found.folder / "train"), image_files(found.folder / "test"))
            read = partial(read, names=class_names(files[0]))
        train, test = (self._store(part, read, found.layout.encoded) for part in files)
        count, notes = self.num_classes, f"{self.title} from {found.folder.name}/{found.layout.train[0]}"
        if self.classes is not None:
            train, test = (of_classes(store, self.classes) for store in (train, test))
            count, notes = len(self.classes), f"{notes}, classes {', '.join(map(str, self.classes))}"
        return ImageData(
            splits_by_name=split_images(train, test, options=options, num_classes=count, test_size=self.test_size),
            num_classes=count,
            notes=notes,
            mean=tuple(255 * value for value in self.mean),
            std=tuple(255 * value for value in self.std),
            padding=self.padding,
        )

    def _store(self, files: list[Path], read: Callable[..., Labelled], encoded: bool) -> ImageStore:
        if encoded:
            # Files that are all there are numbered as before: the classes of a folder are part of what was decoded.
            variant = f"{self.shape[2]} channels, last{getattr(read, 'keywords', {}).get('names', '')}"
            images, labels = decoded_once(files, partial(read, files), variant=variant)
        else:
            images, labels = read(files)
        where = files[0].parent
        if images.shape[1:] != self.shape:
            raise ValueError(f"{where} must hold images of shape {self.shape}, got {images.shape[1:]}.")
        check_labels(labels, self.num_classes, where)
        return ImageStore(torch.from_numpy(images), torch.from_numpy(labels))


def of_classes(store: ImageStore, classes: range) -> ImageStore:
    """Give the images of some classes, in the same order; the classes are numbered from 0."""
    chosen = [number for number, label in enumerate(store.labels.tolist()) if label in classes]
    labels = [classes.index(label) for label in store.labels[chosen].tolist()]
    return ImageStore(store.images[chosen], torch.tensor(labels, dtype=torch.int64))


def _parquet(folders: tuple[str, ...], channels: int, num_classes: int) -> FileFormat:
    return FileFormat(
        folders=folders,
        train=("train-*.parquet",),
        test=("test-*.parquet",),
        read=partial(read_parquet, channels=channels, num_classes=num_classes),
    )


_CIFAR_SHAPE: Final = (32, 32, 3)
# The original pixels come first: the hub's copies are often compressed once more.
CIFAR10: Final = ImageSet(
    title="CIFAR-10",
    formats=(
        FileFormat(
            folders=("cifar-10-batches-py",),
            train=tuple(f"data_batch_{i}" for i in range(1, 6)),
            test=("test_batch",),
            read=partial(read_cifar, num_classes=10),
            encoded=False,
        ),
        _parquet(("cifar10",), 3, 10),
        FileFormat(
            folders=("cifar10",),
            train=("train/*/*.png",),
            test=("test/*/*.png",),
            read=partial(read_image_files, channels=3),
            by_folder=True,
        ),
    ),
    shape=_CIFAR_SHAPE,
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    padding=4,
)
CIFAR100: Final = ImageSet(
    title="CIFAR-100",
    formats=(
        FileFormat(folders=("cifar-100-python",), train=("train",), test=("test",), read=read_cifar, encoded=False),
        _parquet(("cifar100",), 3, 100),
    ),
    shape=_CIFAR_SHAPE,
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    padding=4,
)
_IDX: Final = ("images-idx3-ubyte", "labels-idx1-ubyte")
MNIST: Final = ImageSet(
    title="MNIST",
    formats=(
        *(
            FileFormat(
                folders=("mnist", "MNIST/raw"),
                train=tuple(f"train-{name}{suffix}" for name in _IDX),
                test=tuple(f"t10k-{name}{suffix}" for name in _IDX),
                read=partial(read_idx_pair, num_classes=10),
                encoded=False,
            )
            for suffix in ("", ".gz")
        ),
        _parquet(("mnist10k", "mnist"), 1, 10),
    ),
    shape=(28, 28, 1),
    num_classes=10,
    mean=(0.1307,),
    std=(0.3081,),
    padding=None,
)
SVHN: Final = ImageSet(
    title="SVHN",
    formats=(
        FileFormat(folders=("svhn", "SVHN"), train=("train_32x32.mat",), test=("test_32x32.mat",), read=read_svhn),
        _parquet(("svhn",), 3, 10),
    ),
    shape=_CIFAR_SHAPE,
    num_classes=10,
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    padding=None,  # a mirrored number is another one, or none
)
TINY_IMAGENET: Final = ImageSet(
    title="TinyImageNet",
    formats=(
        FileFormat(
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
_WIDTHS: Final = (64, 128, 256, 512)
_RESNET18 = partial(resnet, widths=_WIDTHS, blocks=2, projection=True)
_RESNET34 = partial(resnet, widths=_WIDTHS, blocks=(3, 4, 6, 3), projection=True)
_LENET_RGB = partial(lenet5, channels=3, size=32)


def _recipe(
    name: str,
    summary: str,
    network: Callable[[int], nn.Module],
    read: Callable[[DataOptions], TaskData],
    steps: int,
    *,
    rate: float = 0.1,
    outer_valid: int = 5000,
    **other: Any,
) -> Recipe:
    settings: dict[str, Any] = {
        "batch_size": 128,
        "optimizer": "sgd",
        "optimizer_options": {"momentum": 0.9, "weight_decay": 5e-4},
        "inner_valid": 1000,
        **other,
    }
    return Recipe(
        name=name,
        summary=summary,
        network=network,
        read=read,
        total_steps=steps,
        learning_rate=rate,
        outer_valid=outer_valid,
        **settings,
    )


def read_mnist_to_reconstruct(options: DataOptions) -> ImageData:
    """Read MNIST, each of whose images is its own target."""
    return as_reconstruction(MNIST(options))


TASKS: Final = (
    _recipe(
        "mnist/mlp",
        "perceptron with two hidden layers of 256 on MNIST",
        partial(mlp, inputs=784, hidden=(256, 256)),
        MNIST,
        1000,
        rate=0.05,
        outer_valid=1000,
    ),
    _recipe("mnist/lenet5", "LeNet-5 on MNIST", lenet5, MNIST, 1000, rate=0.05, outer_valid=1000),
    _recipe(
        "mnist/cnn",
        "convolutional network of McMahan et al. (1.7 million parameters) on MNIST",
        cnn,
        MNIST,
        500,
        rate=1e-3,
        outer_valid=1000,
        batch_size=16,
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.01},
    ),
    _recipe(
        "mnist/resnet18",
        "ResNet-18 (11 million parameters) on MNIST",
        partial(_RESNET18, channels=1),
        MNIST,
        200,
        outer_valid=1000,
    ),
    _recipe(
        "mnist/resnet34",
        "ResNet-34 (21 million parameters) on MNIST",
        partial(_RESNET34, channels=1),
        MNIST,
        100,
        outer_valid=1000,
    ),
    _recipe(
        "mnist/autoencoder",
        "deep autoencoder 784-1000-500-250-30 and back of MNIST",
        partial(autoencoder, hidden=(1000, 500, 250), code=30),
        read_mnist_to_reconstruct,
        1000,
        rate=1e-3,
        outer_valid=1000,
        kind="reconstruction",
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.0},
    ),
    _recipe(
        "cifar10/convnet",
        "three 3 x 3 convolutions with batch norm on CIFAR-10; a few milliseconds a step",
        partial(convnet, channels=3, widths=(8, 16, 32)),
        replace(CIFAR10, test_size=2000),
        200,
        rate=0.1,
        outer_valid=1000,
        batch_size=32,
    ),
    _recipe(
        "cifar10/mlp",
        "perceptron with two hidden layers of 256 on CIFAR-10",
        partial(mlp, inputs=3072, hidden=(256, 256)),
        CIFAR10,
        1000,
        rate=0.02,
    ),
    _recipe(
        "cifar10/cnn",
        "convolutional network of McMahan et al. (2.2 million parameters) on CIFAR-10",
        partial(cnn, channels=3, size=32),
        replace(CIFAR10, test_size=2000),
        500,
        rate=1e-3,
        outer_valid=1000,
        batch_size=16,
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.01},
    ),
    _recipe(
        "cifar10/vit",
        "vision transformer, 2 blocks of width 64 on patches of 4 x 4 (108 k), on CIFAR-10",
        partial(VisionTransformer, channels=3, size=32, patch=4, width=64, layers=2, heads=4),
        replace(CIFAR10, test_size=2000),
        1000,
        rate=1e-3,
        outer_valid=1000,
        batch_size=32,
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.05},
    ),
    _recipe("cifar10/lenet5", "LeNet-5 on CIFAR-10", _LENET_RGB, CIFAR10, 1000, rate=0.05),
    _recipe(
        "cifar10/resnet8",
        "ResNet-8 (75 thousand parameters) on CIFAR-10",
        partial(resnet, widths=(16, 32, 64), blocks=1, projection=False),
        CIFAR10,
        1720,
    ),
    _recipe("cifar10/resnet18", "ResNet-18 (11 million parameters) on CIFAR-10", _RESNET18, CIFAR10, 344),
    _recipe("cifar10/resnet34", "ResNet-34 (21 million parameters) on CIFAR-10", _RESNET34, CIFAR10, 344),
    _recipe(
        "cifar10/shufflenetv2",
        "ShuffleNetV2 of width 1 (1.3 million parameters) on CIFAR-10",
        partial(shufflenet_v2, small_images=True),
        CIFAR10,
        344,
    ),
    _recipe(
        "cifar10/mobilenetv2",
        "MobileNetV2 (2.2 million parameters) on CIFAR-10",
        partial(mobilenet_v2, small_images=True),
        CIFAR10,
        344,
    ),
    _recipe(
        "cifar10/nasnet",
        "NASNet-A with 2 normal cells a stage (1.3 million parameters) on CIFAR-10",
        partial(NASNetA, cells=2, filters=32),
        CIFAR10,
        344,
    ),
    _recipe(
        "cifar100/wrn-28-10",
        "WRN-28-10 (37 million parameters) on CIFAR-100",
        partial(wide_resnet, depth=28, width=10),
        CIFAR100,
        344,
    ),
    _recipe(
        "svhn/mlp",
        "perceptron with two hidden layers of 256 on SVHN",
        partial(mlp, inputs=3072, hidden=(256, 256)),
        SVHN,
        1000,
        rate=0.02,
    ),
    _recipe("svhn/lenet5", "LeNet-5 on SVHN", _LENET_RGB, SVHN, 1000, rate=0.05),
    _recipe("svhn/resnet18", "ResNet-18 (11 million parameters) on SVHN", _RESNET18, SVHN, 344),
    _recipe("svhn/resnet34", "ResNet-34 (21 million parameters) on SVHN", _RESNET34, SVHN, 344),
    _recipe(
        "tinyimagenet/resnet18",
        "ResNet-18 (11 million parameters) on TinyImageNet",
        _RESNET18,
        TINY_IMAGENET,
        344,
        eval_batch_size=250,
    ),
)
