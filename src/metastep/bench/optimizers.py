"""The base optimizers a run can name."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from metastep.bench.names import unknown_name
from metastep.optim import HyperAdagrad, HyperAdam, HyperAdamW, HyperRMSprop, HyperSGD
from metastep.optim.base import HyperOptimizer

#: Name -> class; ``sgd`` takes momentum as an option.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "radam": torch.optim.RAdam,
    "nadam": torch.optim.NAdam,
    "hyper-sgd": HyperSGD,
    "hyper-adam": HyperAdam,
    "hyper-adamw": HyperAdamW,
    "hyper-rmsprop": HyperRMSprop,
    "hyper-adagrad": HyperAdagrad,
}


def make_optimizer(
    name: str, parameters: Iterable[tuple[str, nn.Parameter]], lr: float, options: Mapping[str, Any]
) -> Optimizer:
    """Make an optimizer by name, over named parameters.

    Raises:
        ValueError: for an unknown name (with the nearest), or options that the optimizer refuses.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    made: type[Any] = OPTIMIZERS[name]
    named = list(parameters) if issubclass(made, HyperOptimizer) else [parameter for _, parameter in parameters]
    try:
        optimizer: Optimizer = made(named, lr=lr, **options)
    except TypeError as error:
        raise ValueError(f"optimizer {name} refuses the options {dict(options)}: {error}") from error
    return optimizer


def base_of(name: str) -> str:
    """The optimizer whose options another takes: its namesake where rates adapt themselves."""
    return name.removeprefix("hyper-")
