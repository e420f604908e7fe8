"""Meta-training over a population of networks, on many tasks at once."""

from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.trainer import PopulationConfig, PopulationTrainer

__all__ = ["Policy", "PopulationConfig", "PopulationTrainer"]
