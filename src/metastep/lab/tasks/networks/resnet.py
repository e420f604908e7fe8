"""Residual networks for 32 x 32 images (He et al. 2016): a 3 x 3 stem and stages of basic blocks."""

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
    """Make a residual network; each stage after the first halves the resolution.

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
