"""Optimizers that adapt their own rates."""

from metastep.optim.adagrad import HyperAdagrad
from metastep.optim.adam import HyperAdam, HyperAdamW
from metastep.optim.armijo import Armijo
from metastep.optim.forward_mode import ForwardMode
from metastep.optim.l4 import L4
from metastep.optim.learned import L2L, RNNProp
from metastep.optim.polyak import SPS
from metastep.optim.readout import log_rates
from metastep.optim.rmsprop import HyperRMSprop
from metastep.optim.sasa import SASA
from metastep.optim.sgd import HyperSGD
from metastep.optim.wrapper import Hyper

__all__ = [
    "L2L",
    "L4",
    "SASA",
    "SPS",
    "Armijo",
    "ForwardMode",
    "Hyper",
    "HyperAdagrad",
    "HyperAdam",
    "HyperAdamW",
    "HyperRMSprop",
    "HyperSGD",
    "RNNProp",
    "log_rates",
]
