"""Learned optimizers: a small recurrent network, shared by all coordinates, turns gradients into steps."""

from metastep.lab.baselines.learned.files import load_update_network, save_update_network
from metastep.lab.baselines.learned.networks import L2LNetwork, RNNPropNetwork, UpdateNetwork
from metastep.lab.baselines.learned.optimizers import L2L, RNNProp

__all__ = [
    "L2L",
    "L2LNetwork",
    "RNNProp",
    "RNNPropNetwork",
    "UpdateNetwork",
    "load_update_network",
    "save_update_network",
]
