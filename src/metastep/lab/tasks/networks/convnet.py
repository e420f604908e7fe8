"""A small convolutional network with batch norm."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


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
