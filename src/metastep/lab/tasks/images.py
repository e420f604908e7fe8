"""Labelled images in memory as uint8, their splits, and the stream of augmented batches over one split."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from metastep.lab.tasks.batches import Batch, EpochBatches
from metastep.lab.tasks.data import CLASSES_OF_STANDARDISED_TARGETS, TaskData
from metastep.lab.tasks.splits import SPLITS, DataOptions, balanced_order, split_order

# Shapes: N images in the store, n of them in a split, C channels, H x W pixels.


@dataclass(frozen=True)
class ImageStore:
    """Decoded images, copied at most once to each device.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            shape = tuple(self.images.shape)
            raise ValueError(f"images must be (N, H, W, C) uint8, got {shape} {self.images.dtype}.")
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be one per image, got {len(self.labels)} for {len(self.images)}.")

    def on(self, device: torch.device) -> Tensor:
        """Give the images on `device`."""
        if device not in self._copies:
            self._copies[device] = self.images.to(device)
        return self._copies[device]


@dataclass(frozen=True)
class ImageSplit:
    """Some rows of a store, with the labels to learn (which may be noisy).

    Args:
        store: Where the pixels are.
        rows: (n,) int64 positions in the store.
        labels: (n,) int64.
    """

    store: ImageStore
    rows: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class ImageData(TaskData):
    """Four splits of labelled images.

    Args:
        splits_by_name: The splits.
        num_classes: Number of classes.
        notes: What was read.
        mean: Per channel, in pixel values (0..255).
        std: Per channel, in pixel values.
        padding: Zeros around an image before the random crop; None: the data are not augmented.
        reconstructs: Whether the flattened inputs are the targets, and not the labels.
    """

    splits_by_name: Mapping[str, ImageSplit]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int | None = None
    reconstructs: bool = False

    @property
    def network_outputs(self) -> int:
        """One per class, or per number of an image."""
        return self.splits_by_name["train"].store.images[0].numel() if self.reconstructs else self.num_classes

    @property
    def augments(self) -> bool:
        """Whether the images can be cropped and flipped at random."""
        return self.padding is not None

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of every split."""
        return {name: len(split.rows) for name, split in self.splits_by_name.items()}

    def stream(
        self, split: str, *, batch_size: int, seed: int, device: torch.device, augment: bool, shuffle: bool
    ) -> "ImageBatches":
        """Give an endless stream over one split."""
        return ImageBatches(
            self, split, batch_size=batch_size, seed=seed, device=device, augment=augment, shuffle=shuffle
        )


def as_reconstruction(data: ImageData) -> ImageData:
    """Give the same images, without augmentation, to be given back by the network."""
    return replace(data, reconstructs=True, padding=None, num_classes=CLASSES_OF_STANDARDISED_TARGETS)


def split_images(
    train: ImageStore,
    test: ImageStore | int,
    *,
    options: DataOptions,
    num_classes: int,
    test_size: int | None = None,
) -> dict[str, ImageSplit]:
    """Hold class-balanced splits out of `train`, and spoil the labels of what remains if asked.

    Args:
        train: Images to train on and hold out from.
        test: Test images, or how many of `train` to keep for the test.
        options: Sizes of the splits, and the label noise.
        num_classes: Number of classes.
        test_size: Keep so many of the test images only, class-balanced; None: all.

    Raises:
        ValueError: If the sizes are impossible.
    """
    rows = split_order(balanced_order(train.labels), options, test=test if isinstance(test, int) else 0)
    splits = {name: ImageSplit(train, rows[name], train.labels[rows[name]]) for name in SPLITS}
    if not isinstance(test, int):
        chosen = torch.arange(len(test.labels)) if test_size is None else balanced_order(test.labels)[:test_size]
        splits["test"] = ImageSplit(test, chosen, test.labels[chosen])
    clean = splits["train"]
    splits["train"] = ImageSplit(train, clean.rows, options.noisy(clean.labels, num_classes))
    return splits


class ImageBatches(EpochBatches):
    """Batches of one split: shuffled anew every epoch, augmented, normalised."""

    def __init__(
        self,
        data: ImageData,
        split: str,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        augment: bool,
        shuffle: bool,
    ) -> None:
        chosen = data.splits_by_name[split]
        self._images = chosen.store.on(device)  # (N, H, W, C) uint8
        self._split_rows, self._split_labels = chosen.rows, chosen.labels
        self._device = device
        self._padding = data.padding if augment else None
        self._reconstructs = data.reconstructs
        width = chosen.store.images.shape[2]
        self._mean = torch.tensor(data.mean, device=device).repeat(width)  # (W * C,): a row of pixels
        self._scale = 1 / torch.tensor(data.std, device=device).repeat(width)
        settings = {"split": split, "augment": augment}
        super().__init__(settings, examples=len(chosen.rows), batch_size=batch_size, seed=seed, shuffle=shuffle)

    def _draw(self, order: Tensor, generator: torch.Generator) -> None:
        self._rows = self._split_rows[order].to(self._device)  # (n,) int64
        self._labels = self._split_labels[order].to(self._device)  # (n,) int64
        if self._padding is not None:
            offsets = torch.randint(2 * self._padding + 1, (len(order), 2), generator=generator)
            flips = torch.randint(2, (len(order),), generator=generator)
            self._offsets, self._flips = offsets.to(self._device), flips.to(self._device)

    def _take(self, part: slice) -> Batch:
        images = self._images.index_select(0, self._rows[part])
        if self._padding is not None:
            images = crop_and_flip(images, self._offsets[part], self._flips[part], padding=self._padding)
        pixels = images.flatten(2).float().sub_(self._mean).mul_(self._scale)
        # (batch, C, H, W) with the channels last in memory, on which convolutions are a third faster on a CPU.
        inputs = pixels.view(images.shape).permute(0, 3, 1, 2)
        return Batch(inputs, inputs.flatten(1) if self._reconstructs else self._labels[part])


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, *, padding: int) -> Tensor:
    """Mirror each image where asked, pad it with zeros, and cut a window of its own size out of it.

    out[i] = pad(mirror_if(flips[i], images[i]))[dy_i : dy_i + H, dx_i : dx_i + W]

    Args:
        images: (batch, H, W, channels), any dtype.
        offsets: (batch, 2) int64, (dy, dx) in 0..2*padding.
        flips: (batch,) int64, 1 for a mirrored image and 0 for one as it is.
        padding: Zeros on every side, in pixels.

    Returns:
        (batch, H, W, channels), a new tensor.
    """
    _, height, width, _ = images.shape
    both = pad(torch.stack((images, images.flip(2))), (0, 0, padding, padding, padding, padding))
    # A view of all windows: (flip, batch, dy, dx, channels, H, W); one index picks each image's own.
    windows = both.unfold(2, height, 1).unfold(3, width, 1)
    rows = torch.arange(len(images), device=images.device)
    return windows[flips, rows, offsets[:, 0], offsets[:, 1]].permute(0, 2, 3, 1)
