"""ShuffleNetV2 (Ma et al. 2018): half of the channels pass by, and are shuffled with the others."""

import torch
from torch import Tensor, nn

# Of width 1: channels of the stem, of the three stages and of the last layer; blocks a stage.
_STEM, _STAGES, _LAST, _BLOCKS = 24, (116, 232, 464), 1024, (4, 8, 4)


def _pointwise(fan_in: int, fan_out: int) -> list[nn.Module]:
    return [nn.Conv2d(fan_in, fan_out, 1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]


def _by_channel(channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


class ShuffleBlock(nn.Module):
    """Two branches beside each other, their channels interleaved.

    With stride 1 one branch is the first half of the channels as it is; with stride 2 both see all of them.
    """

    def __init__(self, fan_in: int, fan_out: int, *, stride: int) -> None:
        super().__init__()
        half = fan_out // 2
        self.splits = stride == 1
        self.short = nn.Identity() if self.splits else nn.Sequential(*_by_channel(fan_in, 2), *_pointwise(fan_in, half))
        self.long = nn.Sequential(
            *_pointwise(half if self.splits else fan_in, half), *_by_channel(half, stride), *_pointwise(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, H, W) to (batch, out, H/stride, W/stride)."""
        one, other = x.chunk(2, 1) if self.splits else (x, x)
        return torch.stack((self.short(one), self.long(other)), 2).flatten(1, 2)


def shufflenet_v2(num_classes: int, *, small_images: bool) -> nn.Sequential:
    """Make ShuffleNetV2 of width 1.

    Args:
        num_classes: Outputs.
        small_images: For 32 x 32 pixels: the stem keeps the resolution and has no pooling; the number of
            parameters is the same.
    """
    stem = nn.Conv2d(3, _STEM, 3, stride=1 if small_images else 2, padding=1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(_STEM), nn.ReLU()]
    if not small_images:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    fan_in = _STEM
    for width, blocks in zip(_STAGES, _BLOCKS, strict=True):
        for block in range(blocks):
            layers.append(ShuffleBlock(fan_in, width, stride=2 if block == 0 else 1))
            fan_in = width
    layers += _pointwise(fan_in, _LAST)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_LAST, num_classes))
