"""``paper/noise``: wrong labels in the training data, and clean ones to learn a schedule from."""

from metastep.lab.bench.experiments.experiment import Arena, Experiment, Scale
from metastep.lab.bench.experiments.paper_images import SGD_FAMILY, SMALL


def _noisy(task: str, **settings: object) -> tuple[Arena, ...]:
    return tuple(
        Arena(
            task=task,
            label=f"{task}, {noise} {share:.0%}",
            settings={**settings, "noise": noise, "noise_rate": share},
        )
        for noise in ("uniform", "flip")
        for share in (0.2, 0.4, 0.6)
    )


NOISE = (
    Experiment(
        name="paper/noise",
        summary="CIFAR-10 with 20, 40 and 60 % wrong labels, drawn uniformly or taken from the next class",
        source="arXiv 2007.14546",
        methods=SGD_FAMILY,
        small=Scale(arenas=_noisy("cifar10/resnet8", **SMALL, steps=100, eval_every=50), seeds=1),
        full=Scale(arenas=_noisy("cifar10/resnet18", epochs=200), seeds=3),
    ),
)
