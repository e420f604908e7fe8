"""``paper/images`` and ``paper/imagenet``: a learned schedule beside its rivals, on the networks of its paper."""

from metastep.lab.bench.experiments.experiment import Arena, Experiment, Scale

#: With SGD; the schedule that is learned gets none of the momentum that its rivals have, as in the paper.
SGD_FAMILY = (
    "sgd-momentum/constant",
    "sgd-momentum/multistep",
    "sgd-momentum/exponential",
    "sgd-momentum/cosine",
    "sgd-momentum/sgdr",
    "l4-momentum",
    "hd-sgd",
    "rtho",
    "sgd/mlr-snet",
)
ADAM_FAMILY = (
    "adam/constant",
    "adam/multistep",
    "adam/exponential",
    "adam/cosine",
    "adam/sgdr",
    "l4-adam",
    "hd-adam",
    "adam/mlr-snet",
)
#: A schedule that was learned elsewhere, and rivals that are set by hand.
TRANSFERRED = (
    "sgd-momentum/constant",
    "sgd-momentum/multistep",
    "sgd-momentum/exponential",
    "sgd-momentum/cosine",
    "sgd-momentum/sgdr",
    "sgd/mlr-snet-transferred",
)
#: CIFAR-10 at a size for two cores.
SMALL = {"batch_size": 64, "train_size": 4000, "outer_valid": 1000, "threads": 1}

IMAGES = (
    Experiment(
        name="paper/images",
        summary="ResNet-18 on CIFAR-10 and WRN-28-10 on CIFAR-100, 200 epochs, the families of SGD and of Adam",
        source="arXiv 2007.14546",
        methods=(*SGD_FAMILY, *ADAM_FAMILY),
        small=Scale(
            arenas=(Arena(task="cifar10/resnet8", settings={**SMALL, "steps": 150, "eval_every": 75}),), seeds=1
        ),
        full=Scale(
            arenas=tuple(
                Arena(task=task, settings={"epochs": 200}) for task in ("cifar10/resnet18", "cifar100/wrn-28-10")
            ),
            seeds=3,
        ),
    ),
    Experiment(
        name="paper/imagenet",
        summary="ResNet-50 on ImageNet, 90 epochs, with a schedule that was learned on CIFAR-10",
        source="arXiv 2007.14546",
        methods=TRANSFERRED,
        small=Scale(
            arenas=(
                Arena(
                    task="imagenet/resnet50",
                    settings={"train_size": 512, "batch_size": 8, "steps": 10, "eval_every": 10, "outer_valid": 200},
                ),
            ),
            seeds=1,
        ),
        full=Scale(arenas=(Arena(task="imagenet/resnet50", settings={"epochs": 90}),), seeds=1),
    ),
)
