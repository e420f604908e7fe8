"""Every schedule that the package knows. A new one is a file of its own and one line here.

From that line follow ``metastep.NAME``, saving and loading, what the command line and the benchmark can name, its row
in the table of the documents, and the contract tests. ``as`` says to type checkers that the name is passed on.
"""

from typing import TYPE_CHECKING

from metastep.schedules import base as _base
from metastep.schedules.calibrated import Calibrated as Calibrated
from metastep.schedules.closed_form import Constant as Constant
from metastep.schedules.closed_form import Cosine as Cosine
from metastep.schedules.closed_form import Exponential as Exponential
from metastep.schedules.closed_form import GreedyLR as GreedyLR
from metastep.schedules.closed_form import Linear as Linear
from metastep.schedules.closed_form import MultiStep as MultiStep
from metastep.schedules.closed_form import OneCycle as OneCycle
from metastep.schedules.closed_form import ReduceOnPlateau as ReduceOnPlateau
from metastep.schedules.closed_form import Staircase as Staircase
from metastep.schedules.closed_form import TimeBased as TimeBased
from metastep.schedules.closed_form import Triangular as Triangular
from metastep.schedules.closed_form import WarmRestarts as WarmRestarts
from metastep.schedules.closed_form import WarmupStableDecay as WarmupStableDecay
from metastep.schedules.mlrsnet import MLRSNet as MLRSNet
from metastep.schedules.phased import FixedOutput as FixedOutput
from metastep.schedules.phased import Phased as Phased

#: The classes by their names, in the order of the lines above.
REGISTRY: dict[str, type[_base.Schedule]] = {
    name: kind for name, kind in list(globals().items()) if isinstance(kind, type) and issubclass(kind, _base.Schedule)
}

if not TYPE_CHECKING:  # type checkers take the names as they are imported above
    __all__ = [*REGISTRY, "REGISTRY"]


def table() -> str:
    """The schedules as a table in Markdown, for the documents."""
    rows = [
        (f"`{kind.__name__}`", f"`{kind.name}`" if kind.name else "", kind.summary, kind.source)
        for kind in REGISTRY.values()
    ]
    lines = [("schedule", "name in a run", "what it does under that name", "source"), ("---",) * 4, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
