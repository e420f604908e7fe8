"""LeNet-5 (LeCun et al. 1998) for 28 x 28 and 32 x 32 images."""

from torch import nn


def lenet5(num_classes: int, *, channels: int = 1, size: int = 28) -> nn.Sequential:
    """Make LeNet-5: 6 and 16 maps of 5 x 5, tanh, mean pooling, then 120 and 84 units.

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
