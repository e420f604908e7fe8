"""Label noise for the training split, as in the literature on learning from noisy labels."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
