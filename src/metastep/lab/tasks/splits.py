"""Four named splits, drawn once and for all: the same examples whatever the seed of a run; and label noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

SPLITS: Final = ("train", "inner_valid", "outer_valid", "test")
SPLIT_SEED: Final = 200714546
_MOST_BY_DEFAULT: Final = 10_000


@dataclass(frozen=True)
class LabelNoise:
    """Wrong labels in the training split; inner_valid, outer_valid and test stay clean.

    uniform: with probability rate, label <- a class drawn uniformly from all (the true one among them)
    flip:    with probability rate, label <- (label + 1) mod C

    Args:
        kind: "uniform" or "flip".
        rate: Probability of a replacement, in [0, 1].
        seed: Draws which labels are replaced, and by what.

    Raises:
        ValueError: If the kind is unknown or the rate is outside [0, 1].

    Example:
        >>> import torch
        >>> LabelNoise("flip", 1.0).apply(torch.tensor([0, 1, 2]), num_classes=3)
        tensor([1, 2, 0])
    """

    kind: str
    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "flip"):
            raise ValueError(f"kind must be 'uniform' or 'flip', got {self.kind!r}.")
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"rate must be in [0, 1], got {self.rate}; it is the share of labels replaced.")

    def apply(self, labels: Tensor, num_classes: int) -> Tensor:
        """Give the noisy copy of (examples,) int64 labels."""
        generator = torch.Generator().manual_seed(self.seed)
        replaced = torch.rand(len(labels), generator=generator, dtype=torch.float64) < self.rate
        if self.kind == "uniform":
            wrong = torch.randint(num_classes, labels.shape, generator=generator)
        else:
            wrong = (labels + 1) % num_classes
        return torch.where(replaced, wrong, labels)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is asked of a data set: the options of `load_task`, with the task's defaults filled in.

    Args:
        inner_valid: Examples (tokens) for meta-gradients, >= 0; None: a tenth of what there is, at most 10,000.
        outer_valid: Examples (tokens) for tuning and curves, >= 0; None: likewise.
        train_size: Use only so many training examples (tokens); None: all.
        data_dir: Where to look for files; None: the places that `data_roots` names.
        label_noise: Noise of the training labels; None: clean.
    """

    inner_valid: int | None
    outer_valid: int | None
    train_size: int | None = None
    data_dir: Path | str | None = None
    label_noise: LabelNoise | None = None

    def held_out(self, available: int) -> tuple[int, int]:
        """Give the sizes of inner_valid and outer_valid out of `available` examples (tokens).

        Raises:
            ValueError: If a size is negative, or there are not as many.
        """
        tenth = min(available // 10, _MOST_BY_DEFAULT)
        inner = tenth if self.inner_valid is None else self.inner_valid
        outer = tenth if self.outer_valid is None else self.outer_valid
        for name, size in (("inner_valid", inner), ("outer_valid", outer)):
            if size < 0:
                raise ValueError(f"{name} must be >= 0, got {size}; use 0 to leave that split empty.")
        if inner + outer > available:
            raise ValueError(
                f"inner_valid + outer_valid must be <= {available}, got {inner} + {outer}; "
                "that is all there is to hold out."
            )
        return inner, outer

    def noisy(self, labels: Tensor, num_classes: int) -> Tensor:
        """Give the training labels, (examples,) int64, with the label noise that is asked for."""
        return labels if self.label_noise is None else self.label_noise.apply(labels, num_classes)


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


def standardised(columns: Tensor, rows: Tensor) -> Tensor:
    """Shift and scale each column so that over `rows` its mean is 0 and its mean square 1.

    Args:
        columns: (examples, columns) float32.
        rows: (n,) int64 positions of the training split.
    """
    part = columns[rows]
    return (columns - part.mean(0)) / part.std(0, correction=0).clamp_min(1e-6)


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


def split_order(order: Tensor, options: DataOptions, *, test: int = 0) -> dict[str, Tensor]:
    """Cut an order of examples into splits; inner_valid stays the same whatever the size of the others.

    Args:
        order: (examples,) int64, such as `balanced_order` gives.
        options: Sizes of the splits.
        test: Size of a test split, taken from the beginning; 0: the test examples are elsewhere.

    Raises:
        ValueError: If the sizes are impossible.
    """
    inner, outer = options.held_out(len(order) - test)
    left = len(order) - test - inner - outer
    sizes = {"test": test, "inner_valid": inner, "outer_valid": outer, "train": size_to_train(left, options.train_size)}
    rows, start = {}, 0
    for name, size in sizes.items():
        rows[name] = order[start : start + size]
        start += size
    return {name: rows[name] for name in SPLITS}


def split_text(tokens: Tensor, options: DataOptions, *, test: int, name: str) -> dict[str, Tensor]:
    """Cut a text into splits, in its order: train, outer_valid, inner_valid, test.

    Args:
        tokens: (tokens, ...), in the order of the text.
        options: Sizes of the splits.
        test: Size of the test, taken from the end.
        name: What the text is called in errors.

    Raises:
        ValueError: If the text is too short, or the sizes are impossible.
    """
    needed = test + max(options.inner_valid or 0, 0) + max(options.outer_valid or 0, 0) + 2
    if len(tokens) < needed:
        raise ValueError(
            f"{name} must hold at least {needed} tokens, {test} for the test, the rest to hold out and to train on, "
            f"got {len(tokens)}; take a longer text, or hold out less."
        )
    inner, outer = options.held_out(len(tokens) - test)
    left = len(tokens) - test - inner - outer
    return {
        "train": tokens[: size_to_train(left, options.train_size)],
        "inner_valid": tokens[left + outer : left + outer + inner],
        "outer_valid": tokens[left : left + outer],
        "test": tokens[left + outer + inner :],
    }
