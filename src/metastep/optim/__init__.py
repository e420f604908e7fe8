"""Optimizers that adapt their own rates."""

from metastep.optim.adagrad import HyperAdagrad
from metastep.optim.adam import HyperAdam, HyperAdamW
from metastep.optim.readout import log_rates
from metastep.optim.rmsprop import HyperRMSprop
from metastep.optim.sgd import HyperSGD
from metastep.optim.wrapper import Hyper

__all__ = [
    "Hyper",
    "HyperAdagrad",
    "HyperAdam",
    "HyperAdamW",
    "HyperRMSprop",
    "HyperSGD",
    "log_rates",
]
