"""``paper/transfer-...``: a schedule learned on CIFAR-10, on runs of other lengths, batches, networks and data."""

from metastep.lab.bench.experiments.experiment import Arena, Experiment, Scale
from metastep.lab.bench.experiments.paper_images import SMALL, TRANSFERRED

_SOURCE = "arXiv 2007.14546"
_RESNET = "cifar10/resnet18"


def _lengths(task: str, unit: str, lengths: tuple[int, ...], **settings: object) -> tuple[Arena, ...]:
    return tuple(
        Arena(task=task, label=f"{task}, {length} {unit}", settings={**settings, unit: length}) for length in lengths
    )


def _batches(task: str, sizes: tuple[int, ...], **settings: object) -> tuple[Arena, ...]:
    return tuple(
        Arena(task=task, label=f"{task}, batch {size}", settings={**settings, "batch_size": size}) for size in sizes
    )


def _tasks(*tasks: str, **settings: object) -> tuple[Arena, ...]:
    return tuple(Arena(task=task, settings=settings) for task in tasks)


TRANSFER = (
    Experiment(
        name="paper/transfer-epochs",
        summary="runs of 100, 400 and 1200 epochs, with a schedule that was learned on one length",
        source=_SOURCE,
        methods=TRANSFERRED,
        small=Scale(arenas=_lengths("cifar10/resnet8", "steps", (75, 150, 300), **SMALL), seeds=2),
        full=Scale(arenas=_lengths(_RESNET, "epochs", (100, 400, 1200)), seeds=3),
    ),
    Experiment(
        name="paper/transfer-batch",
        summary="batches of 64 to 1024, with a schedule that was learned on 128",
        source=_SOURCE,
        methods=TRANSFERRED,
        small=Scale(
            arenas=_batches(
                "cifar10/resnet8",
                (16, 64, 256),
                **{"train_size": 4000, "outer_valid": 1000, "threads": 1, "steps": 75, "eval_every": 25},
            ),
            seeds=2,
        ),
        full=Scale(arenas=_batches(_RESNET, (64, 256, 512, 1024), epochs=200), seeds=3),
    ),
    Experiment(
        name="paper/transfer-networks",
        summary="ShuffleNetV2, MobileNetV2 and NASNet on CIFAR-10, 200 epochs",
        source=_SOURCE,
        methods=TRANSFERRED,
        small=Scale(
            arenas=_tasks(
                *("cifar10/shufflenetv2", "cifar10/mobilenetv2", "cifar10/nasnet"),
                **{"batch_size": 16, "train_size": 1000, "outer_valid": 200, "threads": 1},
                **{"steps": 30, "eval_every": 30},
            ),
            seeds=1,
        ),
        full=Scale(arenas=_tasks("cifar10/shufflenetv2", "cifar10/mobilenetv2", "cifar10/nasnet", epochs=200), seeds=3),
    ),
    Experiment(
        name="paper/transfer-data",
        summary="SVHN and TinyImageNet with ResNet-18, 200 epochs; the Penn Treebank with an LSTM, 150 epochs",
        source=_SOURCE,
        methods=TRANSFERRED,
        small=Scale(
            arenas=(
                Arena(task="svhn/lenet5", settings={**SMALL, "steps": 150, "eval_every": 75}),
                Arena(task="mnist/lenet5", settings={**SMALL, "steps": 150, "eval_every": 75}),
                Arena(task="ptb/lstm-small", settings={"steps": 60, "eval_every": 30, "threads": 1}),
            ),
            seeds=1,
        ),
        full=Scale(
            arenas=(
                *_tasks("svhn/resnet18", "tinyimagenet/resnet18", epochs=200),
                Arena(task="ptb/lstm2", settings={"epochs": 150}),
            ),
            seeds=3,
        ),
    ),
)
