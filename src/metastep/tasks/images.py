"""Labelled images in memory as uint8, their splits, and the stream of batches over one split."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metastep.tasks.augment import crop_and_flip
from metastep.tasks.batches import Batch, Batches, check_same_stream
from metastep.tasks.data import Data
from metastep.tasks.request import Request
from metastep.tasks.splits import SPLITS, balanced_order, size_left, size_to_train

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
class ImageData(Data):
    """Four splits of labelled images.

    Args:
        splits_by_name: The splits.
        num_classes: Number of classes.
        notes: What was read.
        mean: Per channel, in pixel values (0..255).
        std: Per channel, in pixel values.
        padding: Zeros around an image before the random crop; None: the data are not augmented.
    """

    splits_by_name: Mapping[str, ImageSplit]
    num_classes: int
    notes: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int | None = None

    @property
    def augments(self) -> bool:
        """Whether the images can be cropped and flipped at random."""
        return self.padding is not None

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of every split."""
        return {name: len(split.rows) for name, split in self.splits_by_name.items()}

    def steps_per_epoch(self, split: str, batch_size: int) -> int:
        """Give the number of batches of one pass, the last one possibly smaller."""
        return -(-len(self.splits_by_name[split].rows) // batch_size)

    def stream(
        self, split: str, *, batch_size: int, seed: int, device: torch.device, augment: bool, shuffle: bool
    ) -> "ImageBatches":
        """Give an endless stream over one split."""
        return ImageBatches(
            self, split, batch_size=batch_size, seed=seed, device=device, augment=augment, shuffle=shuffle
        )


def split_images(
    train: ImageStore, test: ImageStore | int, *, request: Request, num_classes: int
) -> dict[str, ImageSplit]:
    """Hold class-balanced splits out of `train`, and spoil the labels of what remains if asked.

    Args:
        train: Images to train on and hold out from.
        test: Test images, or how many of `train` to keep for the test.
        request: Sizes of the splits, and the label noise.
        num_classes: Number of classes.

    Raises:
        ValueError: If the sizes are impossible.
    """
    inner_valid, outer_valid = request.inner_valid, request.outer_valid
    order = balanced_order(train.labels)
    splits = {}
    if isinstance(test, int):
        splits["test"] = ImageSplit(train, order[:test], train.labels[order[:test]])
        order = order[test:]
    else:
        splits["test"] = ImageSplit(test, torch.arange(len(test.labels)), test.labels)
    left = size_left(len(order), inner_valid=inner_valid, outer_valid=outer_valid)
    # inner_valid comes first, so that it stays the same whatever the size of the others.
    start = 0
    for name, size in (
        ("inner_valid", inner_valid),
        ("outer_valid", outer_valid),
        ("train", size_to_train(left, request.train_size)),
    ):
        rows = order[start : start + size]
        splits[name] = ImageSplit(train, rows, train.labels[rows])
        start += size
    if request.label_noise is not None:
        clean = splits["train"]
        noisy = request.label_noise.apply(clean.labels, num_classes)
        splits["train"] = ImageSplit(train, clean.rows, noisy)
    return {name: splits[name] for name in SPLITS}


class ImageBatches(Batches):
    """Batches of one split: shuffled anew every epoch, augmented, normalised.

    All random numbers of an epoch are drawn when it begins, from a generator of the stream's own, on the CPU:
    the batches are the same on every device, and the generator's state at the start of the epoch with the
    position in it are all that a continuation needs.
    """

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
        self.epoch = 0
        self._position = 0  # of the next batch in the epoch
        self._batch_size = batch_size
        self._settings = {
            "split": split,
            "examples": len(chosen.rows),
            "batch_size": batch_size,
            "augment": augment,
        }
        self._images = chosen.store.on(device)  # (N, H, W, C) uint8
        self._split_rows, self._split_labels = chosen.rows, chosen.labels
        self._device = device
        self._shuffle = shuffle
        self._padding = data.padding if augment else None
        width = chosen.store.images.shape[2]
        self._mean = torch.tensor(data.mean, device=device).repeat(width)  # (W * C,): a row of pixels
        self._scale = 1 / torch.tensor(data.std, device=device).repeat(width)
        self._generator = torch.Generator().manual_seed(seed)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        n = len(self._split_rows)
        self._epoch_state = self._generator.get_state()
        order = torch.randperm(n, generator=self._generator) if self._shuffle else torch.arange(n)
        self._rows = self._split_rows[order].to(self._device)  # (n,) int64
        self._labels = self._split_labels[order].to(self._device)  # (n,) int64
        if self._padding is not None:
            offsets = torch.randint(2 * self._padding + 1, (n, 2), generator=self._generator)
            flips = torch.randint(2, (n,), generator=self._generator)
            self._offsets, self._flips = offsets.to(self._device), flips.to(self._device)

    def __next__(self) -> Batch:
        if self._position >= len(self._rows):
            self.epoch += 1
            self._position = 0
            self._begin_epoch()
        part = slice(self._position, self._position + self._batch_size)
        self._position += len(self._rows[part])
        images = self._images.index_select(0, self._rows[part])
        if self._padding is not None:
            images = crop_and_flip(images, self._offsets[part], self._flips[part], padding=self._padding)
        pixels = images.flatten(2).float().sub_(self._mean).mul_(self._scale)
        # (batch, C, H, W) with the channels last in memory, on which convolutions are a third faster on a CPU.
        return Batch(pixels.view(images.shape).permute(0, 3, 1, 2), self._labels[part])

    def state_dict(self) -> dict[str, Any]:
        """Give settings, epoch, position, and the generator as it was when the epoch began."""
        return {
            **self._settings,
            "epoch": self.epoch,
            "position": self._position,
            "generator": self._epoch_state.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        check_same_stream(state, self._settings)
        self._generator.set_state(state["generator"].cpu())
        self._begin_epoch()
        self.epoch, self._position = state["epoch"], state["position"]
