"""NASNet-A (Zoph et al. 2018) for 32 x 32 images, without auxiliary classifier and path dropping."""

import torch
from torch import Tensor, nn


class SeparableTwice(nn.Sequential):
    """relu, a filter per channel, 1 x 1, BN, and all that once more; the first has the stride."""

    def __init__(self, channels: int, kernel: int, stride: int = 1) -> None:
        layers: list[nn.Module] = []
        for step in (stride, 1):
            by_channel = nn.Conv2d(
                channels, channels, kernel, stride=step, padding=kernel // 2, groups=channels, bias=False
            )
            layers += [nn.ReLU(), by_channel, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        super().__init__(*layers)


def _mean(stride: int = 1) -> nn.AvgPool2d:
    return nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)


def _fit(fan_in: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(fan_in, fan_out, 1, bias=False), nn.BatchNorm2d(fan_out))


class HalvePaths(nn.Module):
    """Half the resolution without losing a pixel: every second pixel, and every second one shifted by one."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        half = fan_out // 2
        self.even = nn.Conv2d(fan_in, half, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(fan_in, fan_out - half, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, H, W) to (batch, out, H/2, W/2)."""
        x = x.relu()
        shifted = nn.functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        out: Tensor = self.norm(torch.cat((self.even(x), self.odd(shifted)), 1))
        return out


class _Cell(nn.Module):
    """What both cells share: the two last outputs, made alike in channels and resolution."""

    def __init__(self, before: int, fan_in: int, filters: int, *, halved: bool) -> None:
        super().__init__()
        self.fit_last = _fit(fan_in, filters)
        self.fit_before = HalvePaths(before, filters) if halved else _fit(before, filters)


class NormalCell(_Cell):
    """The published normal cell; gives 6 times `filters` channels.

    Args:
        before: Channels of the output before the last.
        fan_in: Channels of the last output.
        filters: Channels inside.
        halved: Whether the last output has half the resolution of the one before.
    """

    def __init__(self, before: int, fan_in: int, filters: int, *, halved: bool) -> None:
        super().__init__(before, fan_in, filters, halved=halved)
        self.last3 = SeparableTwice(filters, 3)
        self.last5 = SeparableTwice(filters, 5)
        self.before3 = SeparableTwice(filters, 3)
        self.sum5 = SeparableTwice(filters, 5)
        self.sum3 = SeparableTwice(filters, 3)
        self.mean = _mean()

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        """(batch, before, H', W') and (batch, in, H, W) to (batch, 6 filters, H, W)."""
        p, x = self.fit_before(before), self.fit_last(last)
        mean = self.mean(p)
        blocks = (
            self.last3(x) + x,
            self.before3(p) + self.last5(x),
            self.mean(x) + p,
            mean + mean,
            self.sum5(p) + self.sum3(p),
        )
        return torch.cat((p, *blocks), 1)


class ReductionCell(_Cell):
    """The published reduction cell; halves the resolution, gives 4 times `filters` channels."""

    def __init__(self, before: int, fan_in: int, filters: int, *, halved: bool) -> None:
        super().__init__(before, fan_in, filters, halved=halved)
        self.last5 = SeparableTwice(filters, 5, 2)
        self.first7 = SeparableTwice(filters, 7, 2)
        self.second7 = SeparableTwice(filters, 7, 2)
        self.before5 = SeparableTwice(filters, 5, 2)
        self.inner3 = SeparableTwice(filters, 3)
        self.maximum = nn.MaxPool2d(3, stride=2, padding=1)
        self.mean, self.inner_mean = _mean(2), _mean()

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        """(batch, before, H', W') and (batch, in, H, W) to (batch, 4 filters, H/2, W/2)."""
        p, x = self.fit_before(before), self.fit_last(last)
        first = self.last5(x) + self.first7(p)
        maximum = self.maximum(x)
        second = maximum + self.second7(p)
        third = self.mean(x) + self.before5(p)
        fourth = self.inner_mean(first) + second
        fifth = self.inner3(first) + maximum
        return torch.cat((second, third, fourth, fifth), 1)


class NASNetA(nn.Module):
    """NASNet-A (cells @ 24 filters): stages of normal cells with a reduction cell between them.

    Args:
        num_classes: Outputs.
        cells: Normal cells a stage; the published network has 6.
        filters: Channels inside the first stage's cells, doubled at each reduction; published: 32.
    """

    def __init__(self, num_classes: int, *, cells: int, filters: int) -> None:
        super().__init__()
        stem = 3 * filters
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem))
        self.cells = nn.ModuleList()
        before = last = stem
        halved = False
        for stage in range(3):
            inside = filters * 2**stage
            if stage > 0:
                self.cells.append(ReductionCell(before, last, inside, halved=False))
                before, last, halved = last, 4 * inside, True
            for _ in range(cells):
                self.cells.append(NormalCell(before, last, inside, halved=halved))
                before, last, halved = last, 6 * inside, False
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) to (batch, classes)."""
        before = last = self.stem(images)
        for cell in self.cells:
            before, last = last, cell(before, last)
        logits: Tensor = self.head(last)
        return logits
