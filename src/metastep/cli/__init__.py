"""The command line: ``metastep train | meta-train | compare | report | inspect | list``."""

from metastep.cli.app import main

__all__ = ["main"]
