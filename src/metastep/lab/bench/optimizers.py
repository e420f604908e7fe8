"""The optimizers a run can name: where each is, which package it needs, what it must be told about the run."""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from metastep.lab.baselines import BASELINES
from metastep.lab.bench.names import unknown_name
from metastep.optim import HYPER_OPTIMIZERS, short_name
from metastep.optim.hyper import HyperOptimizer


@dataclass(frozen=True, kw_only=True)
class NamedOptimizer:
    """Where an optimizer is found; nothing is imported before it is made.

    Args:
        place: module and class.
        package: that must be installed for it; None: none besides torch.
        extra: of metastep, that brings the package.
    """

    place: str
    package: str | None = None
    extra: str | None = None

    def load(self) -> type[Optimizer]:
        """Import the class.

        Raises:
            ImportError: if its package is not installed; it says which extra brings it.
        """
        module, _, name = self.place.rpartition(".")
        try:
            made: type[Optimizer] = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if self.package is None or error.name != self.package:
                raise
            raise missing_package(name, self.package, self.extra) from error
        return made


def missing_package(what: str, package: str, extra: str | None) -> ImportError:
    """The error for something whose package is not installed."""
    return ImportError(
        f"{what} needs the package {package}, which is not installed; run pip install 'metastep[{extra}]'."
    )


def _torch(name: str) -> NamedOptimizer:
    return NamedOptimizer(place=f"torch.optim.{name}")


def _ours(name: str) -> NamedOptimizer:
    return NamedOptimizer(place=f"metastep.optim.{name}")


#: By name; ``sgd`` takes momentum as an option. Those of other papers are lines of ``lab/baselines/__init__.py``.
OPTIMIZERS: dict[str, NamedOptimizer] = {
    "sgd": _torch("SGD"),
    "adam": _torch("Adam"),
    "adamw": _torch("AdamW"),
    "rmsprop": _torch("RMSprop"),
    "adagrad": _torch("Adagrad"),
    "radam": _torch("RAdam"),
    "nadam": _torch("NAdam"),
    "adadelta": _torch("Adadelta"),
    **{short_name(name): _ours(name) for name in HYPER_OPTIMIZERS},
    **{
        name: NamedOptimizer(
            place=f"{baseline.module}.{baseline.class_name}",
            package=baseline.package,
            extra="bench" if baseline.package else None,
        )
        for name, baseline in BASELINES.items()
    },
}


def make_optimizer(
    name: str, model: nn.Module, lr: float, options: Mapping[str, Any], *, steps_per_epoch: int | None = None
) -> Optimizer:
    """Make an optimizer by name, over all parameters of a model that require gradients.

    Args:
        name: of :data:`OPTIMIZERS`.
        model: the network.
        lr: base rate.
        options: further arguments of the optimizer.
        steps_per_epoch: for those that count epochs.

    Raises:
        ValueError: for an unknown name (with the nearest), or options that the optimizer refuses.
        ImportError: if the package of the optimizer is not installed; it says which extra brings it.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    made: type[Any] = OPTIMIZERS[name].load()
    trained = [(part, parameter) for part, parameter in model.named_parameters() if parameter.requires_grad]
    parameters: list[Any] = trained if issubclass(made, HyperOptimizer) else [parameter for _, parameter in trained]
    known = {"model": model, "steps_per_epoch": steps_per_epoch}
    asked = inspect.signature(made).parameters
    told = {key: value for key, value in known.items() if key in asked and value is not None}
    try:
        optimizer: Optimizer = made(parameters, lr=lr, **{**told, **options})
    except TypeError as error:
        if foreign := options.keys() - asked:
            has = ", ".join(key for key in asked if key not in ("params", "lr", *known))
            raise ValueError(f"optimizer {name} has no {', '.join(sorted(foreign))}; it has {has}.") from error
        raise ValueError(f"optimizer {name} refuses an option: {error}.") from error
    return optimizer


def usual_schedule(name: str) -> str:
    """The schedule of an optimizer for which none is named: its rate is measured, if it is one of torch's."""
    return "calibrated" if name in OPTIMIZERS and OPTIMIZERS[name].place.startswith("torch.optim.") else "cosine"


def base_of(name: str) -> str:
    """The optimizer whose options another takes: its base where rates adapt themselves."""
    return name.removeprefix("hyper-")
