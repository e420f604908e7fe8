"""Training a signal schedule by evolution: populations of perturbed weights, on many small tasks."""

from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.trainer import EvolutionConfig, EvolutionTrainer, default_config

__all__ = ["EvolutionConfig", "EvolutionTrainer", "Policy", "default_config"]
