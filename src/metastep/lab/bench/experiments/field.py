"""``field``: every kind of method on many small tasks of different kinds."""

from metastep.lab.bench.experiments.experiment import Arena, Experiment, Scale

#: The methods, a line a family.
METHODS = (
    "sgd/constant",
    "sgd/mlr-snet",
    "sgd-momentum/constant",
    "sgd-momentum/multistep",
    "sgd-momentum/exponential",
    "sgd-momentum/cosine",
    "sgd-momentum/warmup-cosine",
    "sgd-momentum/sgdr",
    "sgd-momentum/onecycle",
    "sgd-momentum/wsd",
    "sgd-momentum/plateau",
    "sgd-momentum/mlr-snet",
    "sgd-momentum/mlr-snet-transferred",
    "adam/constant",
    "adamw/constant",
    "adamw/cosine",
    "adamw/wsd",
    "adamw/mlr-snet",
    "hyper-sgd-momentum/global",
    "hyper-sgd-momentum/global+layer",
    "hyper-sgd-momentum/global+layer+unit",
    "hyper-adamw/global",
    "hyper-adamw/global+layer",
    "hd-sgd",
    "hd-adam",
    "rtho",
    "marthe",
    "l4-momentum",
    "l4-adam",
    "sps",
    "armijo",
    "sasa",
    "radam",
    "nadam",
    "rmsprop",
    "adagrad",
    "adabound",
    "muon",
    "lookahead-sgd",
    "schedule-free-sgd",
    "schedule-free-adamw",
    "prodigy",
    "d-adapt-adamw",
    "dog",
    "momo",
    "momo-adam",
    "alig",
    "l2l",
    "rnnprop",
)

#: Steps of a run and looks at outer_valid on the way, so that the whole takes about an hour on one core.
_TASKS = {
    "digits/mlp": (200, 10),
    "digits/convnet": (120, 10),
    "digits/mlp-noisy": (200, 10),
    "digits/resnet": (80, 10),
    "digits/vit": (100, 5),
    "digits/autoencoder": (250, 10),
    "diabetes/mlp": (200, 10),
    "breast-cancer/linear": (200, 10),
    "wine/mlp": (150, 10),
    "cifar10/convnet": (80, 4),
    "shakespeare/lstm-small": (100, 4),
    "shakespeare/transformer-small": (80, 4),
    "shakespeare/embedding": (100, 4),
}


def _arenas() -> tuple[Arena, ...]:
    return tuple(
        Arena(task=task, settings={"steps": steps, "eval_every": steps // looks, "threads": 1})
        for task, (steps, looks) in _TASKS.items()
    )


FIELD = (
    Experiment(
        name="field/small",
        summary="the whole field on 13 small tasks: images, tables, text; classes, numbers, reconstructions",
        source="metastep",
        methods=METHODS,
        small=Scale(
            arenas=_arenas(),
            seeds=3,
            budgets=(1, 8),
            factors=(0.1, 10.0),
        ),
    ),
)
