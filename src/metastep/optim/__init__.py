"""Optimizers that adapt their own rates."""

from metastep.optim.adagrad import HyperAdagrad
from metastep.optim.adam import HyperAdam, HyperAdamW
from metastep.optim.rmsprop import HyperRMSprop
from metastep.optim.sgd import HyperSGD

__all__ = ["HyperAdagrad", "HyperAdam", "HyperAdamW", "HyperRMSprop", "HyperSGD"]
