"""A deep autoencoder of perceptrons (Hinton and Salakhutdinov 2006)."""

from collections.abc import Sequence

from torch import nn

from metastep.lab.tasks.networks.mlp import mlp


def autoencoder(outputs: int, *, hidden: Sequence[int], code: int) -> nn.Sequential:
    """Make an encoder and its mirror image, ReLU between the layers, the code and the output linear.

    Args:
        outputs: Numbers of an example, read flattened and given back.
        hidden: Widths of the encoder's hidden layers; 1000, 500, 250 as published for 784 pixels.
        code: Numbers of the code; 30 as published.
    """
    return nn.Sequential(mlp(code, inputs=outputs, hidden=hidden), mlp(outputs, inputs=code, hidden=hidden[::-1]))
