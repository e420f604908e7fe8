"""The optimizers of the contract suite: all of the registry, ours in their main variants, and torch's as control."""

import io

import pytest
import torch

import metastep.optim as ours

ALL = ("global", "layer", "unit", "parameter")
VARIANTS = {
    "HyperSGD": (ours.HyperSGD, {"momentum": 0.9, "levels": ("global", "layer", "unit")}),
    "HyperSGD-plain": (ours.HyperSGD, {"levels": ALL}),
    "HyperSGD-nesterov": (ours.HyperSGD, {"momentum": 0.9, "nesterov": True}),
    "HyperSGD-pull": (ours.HyperSGD, {"momentum": 0.9, "pull": {("layer", "global"): 0.2}}),
    "HyperSGD-frozen": (ours.HyperSGD, {"momentum": 0.9, "hyper_lr": 0.0, "weight_lr": 0.0}),
    "HyperAdam": (ours.HyperAdam, {"amsgrad": True, "levels": ALL}),
    "HyperAdam-additive": (ours.HyperAdam, {"rule": "additive", "scope": "all"}),
    "HyperAdamW": (ours.HyperAdamW, {"include_decay": True}),
    "HyperRMSprop": (ours.HyperRMSprop, {"centered": True, "levels": ("layer", "parameter")}),
    "HyperAdagrad": (ours.HyperAdagrad, {"rule": "log"}),
    "torch.SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "torch.AdamW": (torch.optim.AdamW, {"amsgrad": True}),
}
#: By the last part of its name, every optimizer of the registry.
NAMES = [name.removeprefix("Hyper") for name in ours.HYPER_OPTIMIZERS]
OPTIMIZERS = {**{name: (getattr(ours, name), {"levels": ALL}) for name in ours.HYPER_OPTIMIZERS}, **VARIANTS}
MINE = [name for name in OPTIMIZERS if not name.startswith("torch")]
every = pytest.mark.parametrize("name", OPTIMIZERS)
mine = pytest.mark.parametrize("name", MINE)
registered = pytest.mark.parametrize("name", NAMES)


def hyper(name):
    """The class by the last part of its name."""
    return getattr(ours, f"Hyper{name}")


def make(name, parameters, lr=0.02, **extra):
    cls, arguments = OPTIMIZERS[name]
    return cls(parameters, lr=lr, **arguments, **extra)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
