"""Optimizers that adapt their own rates."""
