"""Every experiment that can be named: which methods meet on which workloads, with how many trials and seeds.

Each has a small scale, for two cores and in minutes, and most have a full one, for a GPU. A new experiment is an entry
of :data:`EXPERIMENTS`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.names import unknown_name
from metastep.lab.bench.protocols import training
from metastep.lab.tasks.table import recipe_of

ScaleName = Literal["small", "full"]

#: Evaluations on outer_valid, and entries of the training curve, in a run; unless a workload says otherwise.
EVALUATIONS, ENTRIES = 10, 25

#: Settings that go when another length is given.
_LENGTH = ("steps", "epochs", "eval_every", "log_every")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A task of an experiment, under its settings.

    Args:
        task: its name in the table of tasks.
        settings: of a run, as :func:`~metastep.lab.bench.protocols.training` takes them; by default the task's.
        label: its name in the experiment; empty: the task's.
    """

    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """What records call it."""
        return self.label or self.task

    def base(self, given: Mapping[str, Any]) -> RunConfig:
        """Return the run that methods change; ``given`` settings go before the workload's own.

        Raises:
            ValueError: for settings that the task refuses.
            OSError: if the data have to be read to count steps, and are not there.
        """
        settings = {**self.settings, **given}
        if "steps" in given or "epochs" in given:
            settings = {name: value for name, value in settings.items() if name in given or name not in _LENGTH}
        config = training(recipe_of(self.task, settings.get("data_dir")), schedule="constant", **settings)
        total = config.total_steps
        every: dict[str, Any] = {"log_every": math.ceil(total / ENTRIES), "eval_every": math.ceil(total / EVALUATIONS)}
        return replace(config, **{name: steps for name, steps in every.items() if name not in settings})


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of an experiment is run.

    Args:
        workloads: the tasks under their settings.
        seeds: 0, 1, ... of every run, >= 1.
        budgets: numbers of trials that values are chosen from, each >= 1; 1 is the defaults.
        factors: by which the rate found with the largest budget is multiplied, to see what that costs.
        factor_seeds: seeds of those runs.
    """

    workloads: tuple[Workload, ...]
    seeds: int = 3
    budgets: tuple[int, ...] = (1,)
    factors: tuple[float, ...] = ()
    factor_seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A row of the table of experiments.

    Args:
        name: "family/what".
        summary: one line for ``metastep list experiments``.
        source: of the protocol.
        methods: names of the table of methods.
        small: for two cores, in minutes.
        full: for a GPU; None: there is only the small one.
    """

    name: str
    summary: str
    source: str
    methods: tuple[str, ...]
    small: Scale
    full: Scale | None = None

    def scale(self, name: ScaleName) -> Scale:
        """Return how much is run.

        Raises:
            ValueError: if there is no such scale.
        """
        scale = self.small if name == "small" else self.full
        if scale is None:
            raise ValueError(f"scale must be small for {self.name}, got {name}; there is no other.")
        return scale


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


def _tasks(*tasks: str, **settings: object) -> tuple[Workload, ...]:
    """Tasks under the same settings."""
    return tuple(Workload(task=task, settings=settings) for task in tasks)


def _lengths(task: str, unit: str, lengths: tuple[int, ...], **settings: object) -> tuple[Workload, ...]:
    return tuple(
        Workload(task=task, label=f"{task}, {length} {unit}", settings={**settings, unit: length}) for length in lengths
    )


def _batches(task: str, sizes: tuple[int, ...], **settings: object) -> tuple[Workload, ...]:
    return tuple(
        Workload(task=task, label=f"{task}, batch {size}", settings={**settings, "batch_size": size}) for size in sizes
    )


def _noisy(task: str, **settings: object) -> tuple[Workload, ...]:
    return tuple(
        Workload(
            task=task, label=f"{task}, {kind} {share:.0%}", settings={**settings, "noise": kind, "noise_rate": share}
        )
        for kind in ("uniform", "flip")
        for share in (0.2, 0.4, 0.6)
    )


# ---- methods that several experiments share

#: With SGD; the schedule that is learned gets none of the momentum that the others have, as in its paper.
_SGD_FAMILY = (
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
_ADAM_FAMILY = (
    "adam/constant",
    "adam/multistep",
    "adam/exponential",
    "adam/cosine",
    "adam/sgdr",
    "l4-adam",
    "hd-adam",
    "adam/mlr-snet",
)
#: A schedule that was learned elsewhere, and baselines that are set by hand.
_TRANSFERRED = (
    "sgd-momentum/constant",
    "sgd-momentum/multistep",
    "sgd-momentum/exponential",
    "sgd-momentum/cosine",
    "sgd-momentum/sgdr",
    "sgd/mlr-snet-transferred",
)
#: Each base at its own rate and under a cosine; by the papers' additive rule one rate, each level alone, combinations
#: as published, by exact derivatives and regularised; and the same by the package's own rule.
_HIERARCHY = tuple(
    name
    for base in ("sgd-nesterov", "adam")
    for name in (
        f"{base}/constant",
        f"{base}/cosine",
        f"hd-{base}",
        *(f"hyper-{base}/{level}/additive" for level in ("layer", "unit", "parameter")),
        *(f"cam-{base}/{levels}" for levels in ("global+layer", "global+layer+parameter")),
        *(f"cam-{base}/{levels}/exact" for levels in ("global+layer", "global+layer+parameter")),
        *(f"pulled-{base}/global+layer/{form}" for form in ("virtual", "implicit")),
        *(f"hyper-{base}/{level}" for level in ("global", "layer", "unit", "parameter")),
        *(f"hyper-{base}/{levels}" for levels in ("global+layer", "global+layer+unit", "global+layer+parameter")),
        f"hyper-{base}/global+layer/fixed",
    )
)
#: Every kind of method, a line a family.
_FIELD = (
    *("sgd/constant", "sgd/mlr-snet"),
    *("sgd-momentum/constant", "sgd-momentum/multistep", "sgd-momentum/exponential", "sgd-momentum/cosine"),
    *("sgd-momentum/warmup-cosine", "sgd-momentum/sgdr", "sgd-momentum/onecycle", "sgd-momentum/wsd"),
    *("sgd-momentum/plateau", "sgd-momentum/mlr-snet", "sgd-momentum/mlr-snet-transferred"),
    *("adam/constant", "adamw/constant", "adamw/cosine", "adamw/wsd", "adamw/mlr-snet"),
    *("hyper-sgd-momentum/global", "hyper-sgd-momentum/global+layer", "hyper-sgd-momentum/global+layer+unit"),
    *("hyper-adamw/global", "hyper-adamw/global+layer", "hd-sgd", "hd-adam", "rtho", "marthe"),
    *("l4-momentum", "l4-adam", "sps", "armijo", "sasa"),
    *("radam", "nadam", "rmsprop", "adagrad", "adabound", "muon"),
    *("lookahead-sgd", "schedule-free-sgd", "schedule-free-adamw"),
    *("prodigy", "d-adapt-adamw", "dog", "momo", "momo-adam", "alig"),
    *("l2l", "rnnprop"),
)
#: Run as they come, without any tuning.
_UNTUNED = (
    *("sgd-momentum/calibrated", "adamw/calibrated", "sgd-momentum/staircase"),
    *("sgd/mlr-snet-published", "sgd/mlr-snet-transferred"),
    *("hyper-sgd-momentum/global+layer+unit", "hyper-adamw/global+layer", "schedule-free-adamw", "prodigy"),
)

# ---- workloads

#: CIFAR-10 at a size for two cores.
_SMALL: dict[str, Any] = {"batch_size": 64, "train_size": 4000, "outer_valid": 1000, "threads": 1}
_RESNET = "cifar10/resnet18"

#: Steps of a run and evaluations on the way, so that the whole field takes about an hour on one core.
_FIELD_TASKS = {
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

#: The last four are like the small tasks of ``field/small``, one of them ten times as long as most.
_REACTIVE_TASKS: dict[str, dict[str, Any]] = {
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
_REACTIVE = tuple(
    Workload(task=task, settings={**settings, "eval_every": settings["steps"], "threads": 1})
    for task, settings in _REACTIVE_TASKS.items()
)
#: Of the usual rate: three decades, from a hundredth to ten times.
_REACTIVE_FACTORS = (0.01, 0.1, 10.0)

#: Tasks on which the calibrated schedule is judged. None of them was used in its design. The list and its settings were
#: frozen on 2026-11-30, before any of these tasks was run with that schedule; its results on them may be looked at only
#: once. A schedule that is changed after that look needs other tasks.
_HELD_OUT: dict[str, dict[str, Any]] = {
    # tables and drawn data, most of them over thousands of steps
    "friedman/mlp": {"steps": 6000},
    "spirals/mlp": {"steps": 6000},
    "clusters/mlp": {"steps": 6000},
    "clusters/mlp-deep": {"steps": 2000},
    "breast-cancer/mlp": {"steps": 2000},
    "iris/mlp": {"steps": 1000},
    # self-supervised
    "digits/denoising": {"steps": 5000},
    "digits/lower-half": {"steps": 5000},
    "mnist/autoencoder": {"steps": 300, "batch_size": 32},
    # fine-tunings
    "fine-tune/digits-resnet": {"steps": 300},
    "fine-tune/cifar10-convnet": {"steps": 300},
    "fine-tune/shakespeare-transformer": {"steps": 400},
    "fine-tune/shakespeare-lora": {"steps": 400},
    # images
    "mnist/cnn": {"steps": 150},
    "cifar10/cnn": {"steps": 150, "train_size": 8000},
    "cifar10/lenet5": {"steps": 600, "batch_size": 32, "train_size": 8000, "outer_valid": 1000},
    "cifar10/mlp": {"steps": 600, "batch_size": 32, "train_size": 8000, "outer_valid": 1000},
    "cifar10/vit": {"steps": 200, "batch_size": 16, "train_size": 8000},
    # text: sentences to classify, characters and words to predict
    "mr/textcnn": {"steps": 500, "batch_size": 32},
    "mr/lstm": {"steps": 600, "batch_size": 16},
    "mr/transformer": {"steps": 400, "batch_size": 16},
    "shakespeare/lstm": {"steps": 250, "batch_size": 8, "inner_valid": 10_000, "outer_valid": 10_000},
    "shakespeare/transformer": {"steps": 200, "batch_size": 8, "inner_valid": 10_000, "outer_valid": 10_000},
    "ptb/transformer-small": {"steps": 250, "batch_size": 8, "inner_valid": 4000, "outer_valid": 4000},
    "ptb/lstm-medium": {"steps": 150, "batch_size": 8, "inner_valid": 4000, "outer_valid": 4000},
}
_HELD_OUT_WORKLOADS = tuple(
    Workload(task=task, settings={**settings, "eval_every": settings["steps"], "threads": 1})
    for task, settings in _HELD_OUT.items()
)

_MLR_SNET = "arXiv 2007.14546"
_UNTUNED_KINDS = ("", "/hdm", "/warmup-linear")

_ALL = (
    Experiment(
        name="paper/images",
        summary="ResNet-18 on CIFAR-10 and WRN-28-10 on CIFAR-100, 200 epochs, the families of SGD and of Adam",
        source=_MLR_SNET,
        methods=(*_SGD_FAMILY, *_ADAM_FAMILY),
        small=Scale(workloads=_tasks("cifar10/resnet8", **_SMALL, steps=150, eval_every=75), seeds=1),
        full=Scale(workloads=_tasks(_RESNET, "cifar100/wrn-28-10", epochs=200), seeds=3),
    ),
    Experiment(
        name="paper/imagenet",
        summary="ResNet-50 on ImageNet, 90 epochs, with a schedule that was learned on CIFAR-10",
        source=_MLR_SNET,
        methods=_TRANSFERRED,
        small=Scale(
            workloads=_tasks(
                "imagenet/resnet50", train_size=512, batch_size=8, steps=10, eval_every=10, outer_valid=200
            ),
            seeds=1,
        ),
        full=Scale(workloads=_tasks("imagenet/resnet50", epochs=90), seeds=1),
    ),
    Experiment(
        name="paper/text",
        summary="LSTMs of 2 and of 3 layers on the Penn Treebank, 150 epochs, the families of SGD and of Adam",
        source=_MLR_SNET,
        methods=(*_SGD_FAMILY, *_ADAM_FAMILY),
        small=Scale(workloads=_tasks("ptb/lstm-small", steps=60, eval_every=30), seeds=1),
        full=Scale(workloads=_tasks("ptb/lstm2", "ptb/lstm3", epochs=150), seeds=3),
    ),
    Experiment(
        name="paper/transfer-epochs",
        summary="runs of 100, 400 and 1200 epochs, with a schedule that was learned on one length",
        source=_MLR_SNET,
        methods=_TRANSFERRED,
        small=Scale(workloads=_lengths("cifar10/resnet8", "steps", (75, 150, 300), **_SMALL), seeds=2),
        full=Scale(workloads=_lengths(_RESNET, "epochs", (100, 400, 1200)), seeds=3),
    ),
    Experiment(
        name="paper/transfer-batch",
        summary="batches of 64 to 1024, with a schedule that was learned on 128",
        source=_MLR_SNET,
        methods=_TRANSFERRED,
        small=Scale(
            workloads=_batches("cifar10/resnet8", (16, 64, 256), **{**_SMALL, "steps": 75, "eval_every": 25}), seeds=2
        ),
        full=Scale(workloads=_batches(_RESNET, (64, 256, 512, 1024), epochs=200), seeds=3),
    ),
    Experiment(
        name="paper/transfer-networks",
        summary="ShuffleNetV2, MobileNetV2 and NASNet on CIFAR-10, 200 epochs",
        source=_MLR_SNET,
        methods=_TRANSFERRED,
        small=Scale(
            workloads=_tasks(
                *("cifar10/shufflenetv2", "cifar10/mobilenetv2", "cifar10/nasnet"),
                **{"batch_size": 16, "train_size": 1000, "outer_valid": 200, "threads": 1},
                **{"steps": 30, "eval_every": 30},
            ),
            seeds=1,
        ),
        full=Scale(
            workloads=_tasks("cifar10/shufflenetv2", "cifar10/mobilenetv2", "cifar10/nasnet", epochs=200), seeds=3
        ),
    ),
    Experiment(
        name="paper/transfer-data",
        summary="SVHN and TinyImageNet with ResNet-18, 200 epochs; the Penn Treebank with an LSTM, 150 epochs",
        source=_MLR_SNET,
        methods=_TRANSFERRED,
        small=Scale(
            workloads=(
                *_tasks("svhn/lenet5", "mnist/lenet5", **_SMALL, steps=150, eval_every=75),
                *_tasks("ptb/lstm-small", steps=60, eval_every=30, threads=1),
            ),
            seeds=1,
        ),
        full=Scale(
            workloads=(
                *_tasks("svhn/resnet18", "tinyimagenet/resnet18", epochs=200),
                *_tasks("ptb/lstm2", epochs=150),
            ),
            seeds=3,
        ),
    ),
    Experiment(
        name="paper/noise",
        summary="CIFAR-10 with 20, 40 and 60 % wrong labels, drawn uniformly or taken from the next class",
        source=_MLR_SNET,
        methods=_SGD_FAMILY,
        small=Scale(workloads=_noisy("cifar10/resnet8", **_SMALL, steps=100, eval_every=50), seeds=1),
        full=Scale(workloads=_noisy(_RESNET, epochs=200), seeds=3),
    ),
    Experiment(
        name="paper/hierarchy",
        summary="MLP, LeNet-5, ResNet-18 and -34 on MNIST, CIFAR-10 and SVHN: rates of the network, layers, units",
        source="arXiv 2008.07277",
        methods=_HIERARCHY,
        small=Scale(
            workloads=_tasks(
                *("digits/mlp", "mnist/mlp", "digits/convnet", "cifar10/mlp", "mnist/lenet5", "cifar10/lenet5"),
                *("digits/resnet", "cifar10/resnet8"),
                steps=1000,
                eval_every=500,
                threads=1,
            ),
            seeds=5,
            budgets=(8,),
        ),
        full=Scale(
            workloads=tuple(
                Workload(task=f"{data}/{network}", settings={"epochs": epochs})
                for data in ("mnist", "cifar10", "svhn")
                for network, epochs in {"mlp": 100, "lenet5": 100, "resnet18": 200, "resnet34": 200}.items()
            ),
            seeds=3,
            budgets=(1, 8),
        ),
    ),
    Experiment(
        name="field/small",
        summary="the whole field on 13 small tasks: images, tables, text; classes, numbers, reconstructions",
        source="metastep",
        methods=_FIELD,
        small=Scale(
            workloads=tuple(
                Workload(task=task, settings={"steps": steps, "eval_every": steps // evaluations, "threads": 1})
                for task, (steps, evaluations) in _FIELD_TASKS.items()
            ),
            seeds=3,
            budgets=(1, 8),
            factors=(0.1, 10.0),
        ),
    ),
    Experiment(
        name="reactive/transfer",
        summary="calibrated schedules and all that needs no tuning, at defaults, on 14 tasks",
        source="metastep",
        methods=_UNTUNED,
        small=Scale(workloads=_REACTIVE, seeds=3, budgets=(1,), factors=_REACTIVE_FACTORS),
    ),
    Experiment(
        name="reactive/tuned",
        summary="the baseline of reactive/transfer: cosine with warm-up, at defaults and with 8 trials, on its tasks",
        source="metastep",
        methods=("sgd-momentum/warmup-cosine", "adamw/warmup-cosine"),
        small=Scale(workloads=_REACTIVE, seeds=3, budgets=(1, 8), factors=_REACTIVE_FACTORS),
    ),
    Experiment(
        name="untuned/held-out",
        summary="the calibrated schedule and other methods that need no tuning, at defaults, on 25 held-out tasks",
        source="metastep",
        methods=(
            *("adamw/calibrated", "sgd-momentum/calibrated", "schedule-free-adamw", "prodigy"),
            *(f"hyper-{base}/global+layer{kind}" for base in ("adamw", "sgd-momentum") for kind in _UNTUNED_KINDS),
            "hyper-sgd-momentum/global+layer+unit",
        ),
        small=Scale(workloads=_HELD_OUT_WORKLOADS, seeds=3, budgets=(1,)),
    ),
    Experiment(
        name="untuned/tuned",
        summary="the baselines of untuned/held-out: cosine and linear decay with warm-up, untuned and with 8 trials",
        source="metastep",
        methods=tuple(f"{base}/warmup-{shape}" for base in ("adamw", "sgd-momentum") for shape in ("cosine", "linear")),
        small=Scale(workloads=_HELD_OUT_WORKLOADS, seeds=3, budgets=(1, 8)),
    ),
    Experiment(
        name="untuned/large",
        summary="the calibrated schedule beside linear decay at three rates, on 10.7 and 2.2 million weights",
        source="metastep",
        methods=("adamw/calibrated", "adamw/warmup-linear", "sgd-momentum/calibrated", "sgd-momentum/warmup-linear"),
        small=Scale(
            workloads=(
                *_tasks("shakespeare/transformer-large", steps=2000, eval_every=500, threads=1),
                *_tasks("cifar10/cnn", epochs=10, batch_size=64, eval_every=1000, threads=1),
            ),
            seeds=1,
            budgets=(1,),
            factors=(0.3, 3.0),
        ),
    ),
    Experiment(
        name="untuned/one-configuration",
        summary="candidates for one configuration of all tasks: AdamW and NadamW, cosine and linear, at five rates",
        source="arXiv 2505.24005",
        methods=tuple(f"{base}/warmup-{shape}" for base in ("adamw", "nadamw") for shape in ("cosine", "linear")),
        small=Scale(
            workloads=_HELD_OUT_WORKLOADS, seeds=3, budgets=(1,), factors=(0.1, 0.3, 3.0, 10.0), factor_seeds=3
        ),
    ),
)

#: By name.
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
