"""Meta-learning: from the validation loss to the weights of a schedule."""

from metastep.meta.learner import MetaLearner
from metastep.meta.shared import SharedSchedule
from metastep.schedules.linearity import NotLinearInRate

__all__ = ["MetaLearner", "NotLinearInRate", "SharedSchedule"]
