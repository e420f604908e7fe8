"""Schedules: from the training loss to the learning rate."""
