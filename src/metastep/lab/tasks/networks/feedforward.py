"""A multilayer perceptron."""

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
