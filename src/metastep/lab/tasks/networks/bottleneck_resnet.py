"""Residual networks of bottleneck blocks for large images (He et al. 2016): ResNet-50 and deeper."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

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


def bottleneck_resnet(num_classes: int, *, blocks: Sequence[int] = (3, 4, 6, 3)) -> nn.Sequential:
    """Make a residual network with the stem for 224 x 224 pixels: 7 x 7 with stride 2, then pooling.

    Args:
        num_classes: Outputs.
        blocks: Blocks of the four stages; (3, 4, 6, 3) is ResNet-50.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    fan_in = 64
    for stage, number in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(number):
            layers.append(Bottleneck(fan_in, width, stride=2 if stage > 0 and block == 0 else 1))
            fan_in = _EXPANSION * width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return network
