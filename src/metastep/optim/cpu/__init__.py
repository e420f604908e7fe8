"""The compiled CPU engine, apart from the rest: without this folder every step takes the multi-tensor operations."""

from metastep.optim.cpu.engine import passes_for

__all__ = ["passes_for"]
