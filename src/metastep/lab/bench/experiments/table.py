"""Every experiment that can be named."""

from metastep.lab.bench.experiments.experiment import Experiment
from metastep.lab.bench.experiments.field import FIELD
from metastep.lab.bench.experiments.paper_hierarchy import HIERARCHY
from metastep.lab.bench.experiments.paper_images import IMAGES
from metastep.lab.bench.experiments.paper_noise import NOISE
from metastep.lab.bench.experiments.paper_text import TEXT
from metastep.lab.bench.experiments.paper_transfer import TRANSFER
from metastep.lab.bench.experiments.reactive import REACTIVE
from metastep.lab.bench.names import unknown_name

#: By name. A new experiment is an entry in the file of its family.
EXPERIMENTS: dict[str, Experiment] = {
    one.name: one for one in (*IMAGES, *TEXT, *TRANSFER, *NOISE, *HIERARCHY, *FIELD, *REACTIVE)
}


def experiment_named(name: str) -> Experiment:
    """Return an experiment.

    Raises:
        ValueError: for an unknown name; it says the nearest.

    Example:
        >>> experiment_named("field/small").small.budgets
        (1, 8)
    """
    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]
