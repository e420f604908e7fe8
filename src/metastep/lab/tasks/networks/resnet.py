"""Residual networks: for 32 x 32 images, of bottleneck blocks for large images, and wide ones."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import pad, relu


class SubsampleAndPad(nn.Module):
    """A shortcut without parameters: every second pixel, and zeros for the channels that are new."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        """(batch, C, H, W) to (batch, C + new, H/2, W/2)."""
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """relu(x' + BN conv relu BN conv x), with x' = x where the shape stays."""

    def __init__(self, fan_in: int, fan_out: int, *, stride: int, projection: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
            nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
        )
        self.shortcut: nn.Module
        if stride == 1 and fan_in == fan_out:
            self.shortcut = nn.Identity()
        elif projection:
            self.shortcut = nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False), nn.BatchNorm2d(fan_out)
            )
        else:
            self.shortcut = SubsampleAndPad(fan_out - fan_in)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, H, W) to (batch, out, H/stride, W/stride)."""
        return relu(self.residual(x) + self.shortcut(x))


def resnet(
    num_classes: int, *, widths: Sequence[int], blocks: int | Sequence[int], projection: bool, channels: int = 3
) -> nn.Sequential:
    """Make a residual network (He et al. 2016) with a 3 x 3 stem; each stage after the first halves the resolution.

    Args:
        num_classes: Outputs.
        widths: Channels of the stages: (16, 32, 64) for ResNet-8 (one block a stage), (64, 128, 256, 512) for
            ResNet-18 (two) and ResNet-34 (3, 4, 6, 3).
        blocks: Blocks a stage, or of each stage.
        projection: Whether a shortcut that changes shape is a 1 x 1 convolution, or else has no parameters.
        channels: Channels of the images.
    """
    numbers = [blocks] * len(widths) if isinstance(blocks, int) else blocks
    stem = [nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    stages: list[nn.Module] = []
    fan_in = widths[0]
    for stage, (width, number) in enumerate(zip(widths, numbers, strict=True)):
        for block in range(number):
            stride = 2 if stage > 0 and block == 0 else 1
            stages.append(BasicBlock(fan_in, width, stride=stride, projection=projection))
            fan_in = width
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, num_classes))


_EXPANSION = 4


def _convolution(fan_in: int, fan_out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(fan_in, fan_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(fan_out)]


class Bottleneck(nn.Module):
    """relu(x' + BN conv1x1 relu BN conv3x3 relu BN conv1x1 x); the 3 x 3 convolution has the stride."""

    def __init__(self, fan_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        fan_out = _EXPANSION * width
        self.residual = nn.Sequential(
            *_convolution(fan_in, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride),
            nn.ReLU(),
            *_convolution(width, fan_out, 1),
        )
        same = stride == 1 and fan_in == fan_out
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(fan_in, fan_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, H, W) to (batch, 4 width, H/stride, W/stride)."""
        return relu(self.residual(x) + self.shortcut(x))


def bottleneck_resnet(num_classes: int) -> nn.Sequential:
    """Make a residual network of bottleneck blocks: ResNet-50 (He et al. 2016).

    The stem is that for 224 x 224 pixels: 7 x 7 with stride 2, then pooling.

    Args:
        num_classes: Outputs.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    fan_in = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            layers.append(Bottleneck(fan_in, width, stride=2 if stage > 0 and block == 0 else 1))
            fan_in = _EXPANSION * width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return network


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
    """Make WRN-depth-width (Zagoruyko and Komodakis 2016), without dropout.

    A stem of 16 channels, three stages of 16, 32 and 64 times `width`.

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
