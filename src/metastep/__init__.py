"""metastep: learning rates that learn."""

from metastep.version import __version__

__all__ = ["__version__"]
