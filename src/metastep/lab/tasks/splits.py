"""Four named splits, drawn once and for all: the same examples whatever the seed of a run."""

from typing import Final

import torch
from torch import Tensor

from metastep.lab.tasks.request import Request

SPLITS: Final = ("train", "inner_valid", "outer_valid", "test")
SPLIT_SEED: Final = 200714546


def balanced_order(labels: Tensor) -> Tensor:
    """Order examples so that every stretch holds the classes as evenly as they last.

    The k-th examples of all classes come before every (k+1)-th; which example is the k-th of its class, and
    the order of the classes, are drawn with a constant seed.

    Args:
        labels: (examples,) int64 classes from 0.

    Returns:
        (examples,) int64 positions, a permutation.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    shuffled = torch.randperm(len(labels), generator=generator)
    shuffled = shuffled[torch.argsort(labels[shuffled], stable=True)]  # class by class, random inside
    sizes = torch.bincount(labels)
    first = sizes.cumsum(0) - sizes
    rank = torch.arange(len(labels)) - first[labels[shuffled]]  # the how-many-th of its class
    class_order = torch.randperm(len(sizes), generator=generator)
    return shuffled[torch.argsort(rank * len(sizes) + class_order[labels[shuffled]])]


def size_left(available: int, *, inner_valid: int, outer_valid: int) -> int:
    """Give how many of `available` examples (tokens) remain when two splits are held out.

    Raises:
        ValueError: If a size is negative, or there are not as many.
    """
    for name, size in (("inner_valid", inner_valid), ("outer_valid", outer_valid)):
        if size < 0:
            raise ValueError(f"{name} must be >= 0, got {size}; use 0 to leave that split empty.")
    if inner_valid + outer_valid > available:
        raise ValueError(
            f"inner_valid + outer_valid must be <= {available}, got {inner_valid} + {outer_valid}; "
            "that is all there is to hold out."
        )
    return available - inner_valid - outer_valid


def size_to_train(left: int, train_size: int | None) -> int:
    """Give the size of the training split out of what is left for it.

    Raises:
        ValueError: If nothing is left, or `train_size` is not in 1..left.
    """
    if left < 1:
        raise ValueError("inner_valid + outer_valid must leave examples to train on, got all; hold out less.")
    if train_size is not None and not 1 <= train_size <= left:
        raise ValueError(f"train_size must be in 1..{left}, got {train_size}; use None for all {left}.")
    return left if train_size is None else train_size


def split_order(order: Tensor, request: Request, *, test: int = 0) -> dict[str, Tensor]:
    """Cut an order of examples into splits; inner_valid stays the same whatever the size of the others.

    Args:
        order: (examples,) int64, such as `balanced_order` gives.
        request: Sizes of the splits.
        test: Size of a test split, taken from the beginning; 0: the test examples are elsewhere.

    Raises:
        ValueError: If the sizes are impossible.
    """
    inner, outer = request.inner_valid, request.outer_valid
    left = size_left(len(order) - test, inner_valid=inner, outer_valid=outer)
    sizes = {"test": test, "inner_valid": inner, "outer_valid": outer, "train": size_to_train(left, request.train_size)}
    rows, start = {}, 0
    for name, size in sizes.items():
        rows[name] = order[start : start + size]
        start += size
    return {name: rows[name] for name in SPLITS}
