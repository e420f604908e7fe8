"""Adapters to the trainers people use.

Each library has a file of its own, which alone imports it: :mod:`metastep.integrations.lightning`,
:mod:`metastep.integrations.transformers` and :mod:`metastep.integrations.accelerate`.
"""

from metastep.integrations.scheduler import AsScheduler

__all__ = ["AsScheduler"]
