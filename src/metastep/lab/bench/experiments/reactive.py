"""``reactive``: schedules that read training signals, on tasks that they never saw, from rates that nobody tuned."""

from metastep.lab.bench.experiments.experiment import Arena, Experiment, Scale

#: Tuned with trials; everything else is run as it comes.
TUNED = ("sgd-momentum/warmup-cosine", "adamw/warmup-cosine")
UNTUNED = (
    "signal-sgd",
    "signal-adamw",
    "signal-sgd-layers",
    "signal-adamw-layers",
    "sgd-momentum/landed-sgd",
    "adamw/landed-adamw",
    "sgd-momentum/staircase",
    "sgd/mlr-snet-published",
    "sgd/mlr-snet-transferred",
    "hyper-sgd-momentum/global+layer+unit",
    "hyper-adamw/global+layer",
    "schedule-free-adamw",
    "prodigy",
)

#: Steps and settings by task. The first ten are held out: their data, or their kind of network, are in no training
#: task; the last four are like the training tasks, one of them ten times as long as most of those.
_TASKS: dict[str, dict[str, object]] = {
    "cifar10/resnet8": {"steps": 120, "batch_size": 32, "train_size": 4000},
    "cifar10/convnet": {"steps": 120, "train_size": 4000},
    "digits/resnet": {"steps": 150},
    "digits/vit": {"steps": 150},
    "shakespeare/transformer-small": {"steps": 120},
    "shakespeare/lstm-small": {"steps": 120},
    "ptb/lstm-small": {"steps": 80},
    "digits/autoencoder": {"steps": 250},
    "mnist/mlp": {"steps": 150, "batch_size": 32},
    "mnist/lenet5": {"steps": 150, "batch_size": 32},
    "digits/mlp-noisy": {"steps": 250},
    "diabetes/mlp": {"steps": 250},
    "breast-cancer/linear": {"steps": 250},
    "digits/mlp": {"steps": 3000},
}


def _arenas() -> tuple[Arena, ...]:
    return tuple(
        Arena(task=task, settings={**settings, "eval_every": settings["steps"], "threads": 1})
        for task, settings in _TASKS.items()
    )


#: Of the usual rate: three decades, from a hundredth to ten times.
_FACTORS = (0.01, 0.1, 10.0)

REACTIVE = (
    Experiment(
        name="reactive/transfer",
        summary="signal schedules and all that needs no tuning, at defaults, on 14 tasks of which 10 are held out",
        source="metastep",
        methods=UNTUNED,
        small=Scale(arenas=_arenas(), seeds=3, budgets=(1,), factors=_FACTORS),
    ),
    Experiment(
        name="reactive/tuned",
        summary="the rival of reactive/transfer: cosine with warm-up at defaults and with 8 trials, on the same tasks",
        source="metastep",
        methods=TUNED,
        small=Scale(arenas=_arenas(), seeds=3, budgets=(1, 8), factors=_FACTORS),
    ),
)
