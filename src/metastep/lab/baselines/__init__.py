"""Methods that metastep is compared with, each from its paper's equations or a maintained package."""

from metastep.lab.baselines.armijo import Armijo
from metastep.lab.baselines.forward_mode import ForwardMode
from metastep.lab.baselines.l4 import L4
from metastep.lab.baselines.learned import L2L, RNNProp
from metastep.lab.baselines.sasa import SASA
from metastep.lab.baselines.sps import SPS

__all__ = ["L2L", "L4", "SASA", "SPS", "Armijo", "ForwardMode", "RNNProp"]
