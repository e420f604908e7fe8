"""The base optimizers a run can name."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from metastep.bench.names import unknown_name

#: Name -> class; ``sgd`` takes momentum as an option.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "radam": torch.optim.RAdam,
    "nadam": torch.optim.NAdam,
}


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], lr: float, options: Mapping[str, Any]) -> Optimizer:
    """Make an optimizer by name.

    Raises:
        ValueError: for an unknown name (with the nearest), or options that the optimizer refuses.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    try:
        return OPTIMIZERS[name](parameters, lr=lr, **options)  # type: ignore[call-arg]
    except TypeError as error:
        raise ValueError(f"optimizer {name} refuses the options {dict(options)}: {error}") from error
