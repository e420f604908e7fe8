"""Tensor mathematics: inner products, levels, rate rules."""
