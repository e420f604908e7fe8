"""Tasks on published sets of images: a network on a set is one row."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from torch import nn

from metastep.lab.tasks.data import Data
from metastep.lab.tasks.imagenet import read_imagenet
from metastep.lab.tasks.images import ImageData, as_reconstruction
from metastep.lab.tasks.networks.autoencoder import autoencoder
from metastep.lab.tasks.networks.bottleneck_resnet import bottleneck_resnet
from metastep.lab.tasks.networks.convnet import convnet
from metastep.lab.tasks.networks.lenet import lenet5
from metastep.lab.tasks.networks.mlp import mlp
from metastep.lab.tasks.networks.mobilenet import mobilenet_v2
from metastep.lab.tasks.networks.nasnet import NASNetA
from metastep.lab.tasks.networks.resnet import resnet
from metastep.lab.tasks.networks.shufflenet import shufflenet_v2
from metastep.lab.tasks.networks.wide_resnet import wide_resnet
from metastep.lab.tasks.request import Request
from metastep.lab.tasks.task import Recipe
from metastep.lab.tasks.vision import CIFAR10, CIFAR100, MNIST, SVHN, TINY_IMAGENET

_WIDTHS: Final = (64, 128, 256, 512)
_RESNET18 = partial(resnet, widths=_WIDTHS, blocks=2, projection=True)
_RESNET34 = partial(resnet, widths=_WIDTHS, blocks=(3, 4, 6, 3), projection=True)
_LENET_RGB = partial(lenet5, channels=3, size=32)


def _recipe(
    name: str,
    summary: str,
    network: Callable[[int], nn.Module],
    read: Callable[[Request], Data],
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


def read_mnist_to_reconstruct(request: Request) -> ImageData:
    """Read MNIST, each of whose images is its own target."""
    return as_reconstruction(MNIST(request))


IMAGES = (
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
    _recipe(
        "imagenet/resnet50",
        "ResNet-50 (26 million parameters) on ImageNet, decoded as it is read",
        bottleneck_resnet,
        read_imagenet,
        5000,
        outer_valid=10_000,
        batch_size=256,
        eval_batch_size=250,
        inner_valid=10_000,
        optimizer_options={"momentum": 0.9, "weight_decay": 1e-4},
    ),
)
