"""The keyword arguments that an adapter hands on to the LearnedLR that it makes."""

from collections.abc import Callable
from typing import TypedDict

from torch import Tensor

from metastep.core.distributed import Ranks


class LearnedLROptions(TypedDict, total=False):
    """Keyword arguments of :class:`metastep.LearnedLR`, which explains them."""

    initial_loss: float | None
    num_classes: int | None
    total_steps: int | None
    warmup_steps: int
    min_lr: float
    max_lr: float
    measure_loss: Callable[[], float | Tensor] | None
    process_group: Ranks
