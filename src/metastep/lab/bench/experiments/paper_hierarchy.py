"""``paper/hierarchy``: optimizers that adapt their rates at several levels, beside those at one and at none."""

from metastep.lab.bench.experiments.experiment import Arena, Experiment, Scale
from metastep.lab.bench.experiments.paper_images import SMALL

_LEVELS = ("global", "layer", "unit", "parameter", "global+layer", "global+layer+unit")

#: Each base at its own rate and under a cosine, as first published with one rate that adapts, and with each level and
#: combination.
METHODS = tuple(
    name
    for base in ("sgd-nesterov", "adam")
    for name in (
        f"{base}/constant",
        f"{base}/cosine",
        f"hd-{base}",
        *(f"hyper-{base}/{levels}" for levels in _LEVELS),
    )
)

_NETWORKS = {"mlp": 100, "lenet5": 100, "resnet18": 200, "resnet34": 200}  # epochs

HIERARCHY = (
    Experiment(
        name="paper/hierarchy",
        summary="MLP, LeNet-5, ResNet-18 and -34 on MNIST, CIFAR-10 and SVHN: rates of the network, layers, units",
        source="arXiv 2008.07277",
        methods=METHODS,
        small=Scale(
            arenas=tuple(
                Arena(task=f"{data}/{network}", settings={**SMALL, "steps": 150, "eval_every": 75})
                for data in ("mnist", "cifar10")
                for network in ("mlp", "lenet5")
            ),
            seeds=2,
        ),
        full=Scale(
            arenas=tuple(
                Arena(task=f"{data}/{network}", settings={"epochs": epochs})
                for data in ("mnist", "cifar10", "svhn")
                for network, epochs in _NETWORKS.items()
            ),
            seeds=3,
            budgets=(1, 8),
        ),
    ),
)
