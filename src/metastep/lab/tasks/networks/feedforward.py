"""Feed-forward networks without shortcuts: perceptron, autoencoder, convolutional networks, LeNet-5."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(num_classes: int, *, inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """Make a perceptron with ReLU between its layers.

    Args:
        num_classes: Outputs.
        inputs: Numbers an example, flattened.
        hidden: Widths of the hidden layers.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise((inputs, *hidden)):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], num_classes))


def autoencoder(outputs: int, *, hidden: Sequence[int], code: int) -> nn.Sequential:
    """Make a deep autoencoder (Hinton and Salakhutdinov 2006).

    An encoder and its mirror image, ReLU between the layers, the code and the output linear.

    Args:
        outputs: Numbers of an example, read flattened and given back.
        hidden: Widths of the encoder's hidden layers; 1000, 500, 250 as published for 784 pixels.
        code: Numbers of the code; 30 as published.
    """
    return nn.Sequential(mlp(code, inputs=outputs, hidden=hidden), mlp(outputs, inputs=code, hidden=hidden[::-1]))


def convnet(num_classes: int, *, channels: int, widths: Sequence[int]) -> nn.Sequential:
    """Make blocks of 3 x 3 convolution, batch norm and ReLU, each after the first at half the resolution.

    Args:
        num_classes: Outputs.
        channels: Channels of the images.
        widths: Channels after each block.
    """
    layers: list[nn.Module] = []
    for block, (fan_in, fan_out) in enumerate(pairwise((channels, *widths))):
        stride = 1 if block == 0 else 2
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))


def lenet5(num_classes: int, *, channels: int = 1, size: int = 28) -> nn.Sequential:
    """Make LeNet-5 (LeCun et al. 1998): 6 and 16 maps of 5 x 5, tanh, mean pooling, then 120 and 84 units.

    Args:
        num_classes: Outputs.
        channels: Channels of the images.
        size: Their height and width: 32 as published, or 28, with zeros around.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=(32 - size) // 2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, num_classes),
    )


def cnn(num_classes: int, *, channels: int = 1, size: int = 28) -> nn.Sequential:
    """Make the convolutional network of McMahan et al. 2017: 32 and 64 maps of 5 x 5, max pooling, then 512 units.

    Args:
        num_classes: Outputs.
        channels: Channels of the images.
        size: Their height and width, divisible by 4; 28 as published.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (size // 4) ** 2, 512),
        nn.ReLU(),
        nn.Linear(512, num_classes),
    )
