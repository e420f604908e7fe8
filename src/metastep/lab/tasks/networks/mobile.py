"""MobileNetV2 (Sandler et al. 2018): inverted residuals with linear bottlenecks."""

from typing import Final

from torch import Tensor, nn

# Expansion, channels, blocks and stride of the stages, as published for images of 224 x 224.
_STAGES: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LAST: Final = 1280


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
    for stage, (expansion, width, blocks, published_stride) in enumerate(_STAGES):
        first = 1 if small_images and stage == 1 else published_stride
        for block in range(blocks):
            layers.append(InvertedResidual(fan_in, width, stride=first if block == 0 else 1, expansion=expansion))
            fan_in = width
    layers += _convolution(fan_in, _LAST, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(_LAST, num_classes))
