"""Wide residual networks (Zagoruyko and Komodakis 2016) for 32 x 32 images, without dropout."""

from torch import Tensor, nn


class WideBlock(nn.Module):
    """x' + conv relu BN conv a, with a = relu BN x, and x' = x or a 1 x 1 convolution of a."""

    def __init__(self, fan_in: int, fan_out: int, *, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(fan_in), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
            nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False),
        )
        same = stride == 1 and fan_in == fan_out
        self.projection = None if same else nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, H, W) to (batch, out, H/stride, W/stride)."""
        activated = self.activate(x)
        shortcut = x if self.projection is None else self.projection(activated)
        total: Tensor = shortcut + self.residual(activated)
        return total


def wide_resnet(num_classes: int, *, depth: int, width: int) -> nn.Sequential:
    """Make WRN-depth-width: a stem of 16 channels, three stages of 16, 32 and 64 times `width`.

    Args:
        num_classes: Outputs.
        depth: Convolutional layers, 6 n + 4 with n blocks a stage.
        width: Widening factor.

    Raises:
        ValueError: If the depth is not 6 n + 4.
    """
    blocks, remainder = divmod(depth - 4, 6)
    if remainder or blocks < 1:
        raise ValueError(f"depth must be 6 n + 4 with n >= 1, got {depth}.")
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    fan_in = 16
    for stage in range(3):
        fan_out = 16 * width * 2**stage
        for block in range(blocks):
            layers.append(WideBlock(fan_in, fan_out, stride=2 if stage > 0 and block == 0 else 1))
            fan_in = fan_out
    network = nn.Sequential(
        *layers,
        nn.BatchNorm2d(fan_in),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(fan_in, num_classes),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return network
