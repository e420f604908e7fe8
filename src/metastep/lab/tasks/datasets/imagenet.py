"""ImageNet: photographs that are decoded as they are read, because they do not fit into memory."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metastep.lab.tasks.batches import Batch, EpochBatches
from metastep.lab.tasks.data import TaskData
from metastep.lab.tasks.loaders.encoded import decode_crop
from metastep.lab.tasks.loaders.folders import class_names, class_numbers
from metastep.lab.tasks.networks.resnet import bottleneck_resnet
from metastep.lab.tasks.sources import FileLayout, find_files
from metastep.lab.tasks.splits import DataOptions, balanced_order, split_order
from metastep.lab.tasks.task import Recipe

_LAYOUT: Final = FileLayout(
    folders=("imagenet", "ILSVRC/Data/CLS-LOC"), train=("train/*/*.JPEG",), test=("val/*/*.JPEG",)
)
_MEAN: Final = (123.675, 116.28, 103.53)  # red, green, blue in 0..255
_STD: Final = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class PhotoSplit:
    """Files and their classes.

    Args:
        files: (n,) paths.
        labels: (n,) int64.
    """

    files: Sequence[Path]
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class PhotoData(TaskData):
    """Four splits of labelled photographs on disk; a stream decodes the next batch while this one is learned from.

    Args:
        splits_by_name: The splits.
        num_classes: Number of classes.
        notes: What was found.
        size: Height and width of what the network sees.
    """

    splits_by_name: Mapping[str, PhotoSplit]
    size: int = 224

    @property
    def augments(self) -> bool:
        """Windows and mirroring can be random."""
        return True

    @property
    def sizes(self) -> dict[str, int]:
        """Number of photographs of every split."""
        return {name: len(split.files) for name, split in self.splits_by_name.items()}

    def stream(
        self, split: str, *, batch_size: int, seed: int, device: torch.device, augment: bool, shuffle: bool
    ) -> "PhotoBatches":
        """Give an endless stream over one split."""
        return PhotoBatches(
            self, split, batch_size=batch_size, seed=seed, device=device, augment=augment, shuffle=shuffle
        )


def read_imagenet(options: DataOptions) -> PhotoData:
    """Find train/WNID/*.JPEG and val/WNID/*.JPEG; classes are numbered in the order of their names.

    The published validation images are the test; what is held out comes from the training images.

    Args:
        options: Sizes of the splits, and the label noise.

    Raises:
        ValueError: If there are test images of a class without training images.
    """
    found = find_files("ImageNet", (_LAYOUT,), options.data_dir)
    names = class_names(found.train)
    labels, test_labels = (torch.from_numpy(class_numbers(files, names)) for files in (found.train, found.test))
    rows = split_order(balanced_order(labels), options)
    splits = {name: PhotoSplit([found.train[i] for i in part.tolist()], labels[part]) for name, part in rows.items()}
    splits["train"] = PhotoSplit(splits["train"].files, options.noisy(splits["train"].labels, len(names)))
    splits["test"] = PhotoSplit(found.test, test_labels)
    notes = f"ImageNet from {found.folder.name}/train, {len(names)} classes"
    return PhotoData(splits_by_name=splits, num_classes=len(names), notes=notes)


class PhotoBatches(EpochBatches):
    """Batches of one split; a photograph's window has a seed of its own, so threads change nothing."""

    def __init__(
        self,
        data: PhotoData,
        split: str,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        augment: bool,
        shuffle: bool,
    ) -> None:
        chosen = data.splits_by_name[split]
        self._files, self._split_labels = chosen.files, chosen.labels
        self._size, self._device, self._augment = data.size, device, augment
        self._mean, self._std = torch.tensor(_MEAN, device=device), torch.tensor(_STD, device=device)
        settings = {"split": split, "augment": augment}
        super().__init__(settings, examples=len(chosen.files), batch_size=batch_size, seed=seed, shuffle=shuffle)

    def _draw(self, order: Tensor, generator: torch.Generator) -> None:
        self._order: list[int] = order.tolist()
        self._labels = self._split_labels[order].to(self._device)
        self._ahead: dict[int, list[Future[NDArray[np.uint8]]]] = {}  # by the first place of a batch
        self._seeds: list[Any] = [None] * len(order)
        if self._augment:
            self._seeds = torch.randint(2**62, (len(order),), generator=generator).tolist()

    def _begin_decoding(self, part: slice) -> list["Future[NDArray[np.uint8]]"]:
        return [_threads().submit(self._decode, place) for place in range(part.start, part.stop)]

    def _decode(self, place: int) -> NDArray[np.uint8]:
        path = self._files[self._order[place]]
        return decode_crop(path.read_bytes(), size=self._size, seed=self._seeds[place], name=str(path))

    def _take(self, part: slice) -> Batch:
        waiting = self._ahead.pop(part.start, None) or self._begin_decoding(part)
        following = slice(part.stop, min(part.stop + self.batch_size, self.examples))
        if following.start < following.stop:
            self._ahead = {following.start: self._begin_decoding(following)}
        images = torch.from_numpy(np.stack([future.result() for future in waiting])).to(self._device)
        # Channels last in memory, as for the images that are kept in memory.
        inputs = images.float().sub_(self._mean).div_(self._std).permute(0, 3, 1, 2)
        return Batch(inputs, self._labels[part])


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")


TASKS: Final = (
    Recipe(
        name="imagenet/resnet50",
        summary="ResNet-50 (26 million parameters) on ImageNet, decoded as it is read",
        network=bottleneck_resnet,
        read=read_imagenet,
        batch_size=256,
        eval_batch_size=250,
        total_steps=5000,
        optimizer="sgd",
        optimizer_options={"momentum": 0.9, "weight_decay": 1e-4},
        learning_rate=0.1,
        inner_valid=10_000,
        outer_valid=10_000,
    ),
)
