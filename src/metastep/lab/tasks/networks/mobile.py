"""Networks for mobile devices: MobileNetV2 (Sandler et al. 2018) and ShuffleNetV2 (Ma et al. 2018)."""

from typing import Final

import torch
from torch import Tensor, nn

# MobileNetV2: expansion, channels, blocks and stride of the stages, as published for images of 224 x 224.
_MOBILENET_STAGES: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_MOBILENET_LAST: Final = 1280


def _convolution(fan_in: int, fan_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2
    return [
        nn.Conv2d(fan_in, fan_out, kernel, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(fan_out),
        nn.ReLU6(),
    ]


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter each channel by 3 x 3, narrow by 1 x 1; added to x where the shape stays."""

    def __init__(self, fan_in: int, fan_out: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        wide = fan_in * expansion
        self.body = nn.Sequential(
            *(_convolution(fan_in, wide, 1) if expansion > 1 else ()),
            *_convolution(wide, wide, 3, stride=stride, groups=wide),
            nn.Conv2d(wide, fan_out, 1, bias=False),
            nn.BatchNorm2d(fan_out),
        )
        self.adds = stride == 1 and fan_in == fan_out

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, H, W) to (batch, out, H/stride, W/stride)."""
        out: Tensor = self.body(x)
        return x + out if self.adds else out


def mobilenet_v2(num_classes: int, *, small_images: bool) -> nn.Sequential:
    """Make MobileNetV2 of width 1.

    Args:
        num_classes: Outputs.
        small_images: For 32 x 32 pixels: the stem and the second stage keep the resolution, which is halved
            three times rather than five; the number of parameters is the same.
    """
    layers = _convolution(3, 32, 3, stride=1 if small_images else 2)
    fan_in = 32
    for stage, (expansion, width, blocks, published_stride) in enumerate(_MOBILENET_STAGES):
        first = 1 if small_images and stage == 1 else published_stride
        for block in range(blocks):
            layers.append(InvertedResidual(fan_in, width, stride=first if block == 0 else 1, expansion=expansion))
            fan_in = width
    layers += _convolution(fan_in, _MOBILENET_LAST, 1)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(_MOBILENET_LAST, num_classes))
    return nn.Sequential(*layers, *head)


# ShuffleNetV2 of width 1: channels of the stem, of the three stages and of the last layer; blocks a stage.
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
