"""Meta-training over a population of networks, on many tasks at once."""

from metastep.meta.population.policy import Policy
from metastep.meta.population.trainer import PopulationConfig, PopulationTrainer

__all__ = ["Policy", "PopulationConfig", "PopulationTrainer"]
